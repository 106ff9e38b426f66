"""Curves: smoothing by hand, and a PNG from whatever a run holds."""

import math

import pytest
from PIL import Image

from ds_stage2ab.metrics.curves import draw_curves, smoothed
from ds_stage2ab.metrics.journal import EvaluationRecord, History, StepRecord


def step(number, channel="A", applied=True, **metrics):
    values = {name.replace("__", "/"): value for name, value in metrics.items()}
    return StepRecord(step=number, channel=channel, applied=applied, metrics=values, skipped=(), wall_time=0.0)


def test_smoothing_by_hand():
    # Half-life 1: decay 0.5 per step. Means: 4; (0.5 * 4 + 1) / 1.5 = 2; weight 1.5 -> two steps on 0.375:
    # (0.375 * 2 + 7.5) / 1.375 = 6.
    assert smoothed([1, 2, 4], [4.0, 1.0, 7.5], half_life=1.0) == pytest.approx([4.0, 2.0, 6.0])


def test_smoothing_passes_non_finite_values_by():
    means = smoothed([1, 2, 3], [math.nan, 2.0, math.inf], half_life=5.0)
    assert math.isnan(means[0])
    assert means[1:] == [2.0, 2.0]


@pytest.mark.parametrize(
    "history",
    [
        History(steps=(step(1, loss__total=3.0),), evaluations=()),
        History(steps=(), evaluations=(EvaluationRecord(step=0, metrics={"eval/f1": 0.5}, wall_time=0.0),)),
        History(
            steps=(
                step(1, loss__total=3.0, loss__text_ce=1e-4, loss__coord_ce=5.0, train__learning_rate=1e-4),
                step(2, "B", applied=False, loss__total=math.nan, train__grad_norm=math.inf, coord__mass=0.5),
                step(3, loss__total=2.0, time__step_s=1.0, train__tokens_per_second=900.0),
            ),
            evaluations=(EvaluationRecord(step=3, metrics={"eval/f1": 0.5, "eval/recall": 0.4}, wall_time=0.0),),
        ),
    ],
    ids=["one step", "one evaluation", "not finite"],
)
def test_a_picture_of_any_run(tmp_path, history):
    path = tmp_path / "curves.png"
    draw_curves(history, path, "run")
    with Image.open(path) as picture:
        assert picture.size == (1760, 990)
        assert len(picture.convert("L").getcolors()) > 20
