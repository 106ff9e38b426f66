"""Curves: smoothing by hand, and a PNG from whatever a run holds."""

import math
from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from ds_stage2ab.metrics.curves import COLOURS, draw_curves, resumptions, smoothed
from ds_stage2ab.metrics.journal import EvaluationRecord, History, StepRecord
from ds_stage2ab.metrics.registry import METRICS


def step(number, channel="A", applied=True, **metrics):
    values = {name.replace("__", "/"): value for name, value in metrics.items()}
    return StepRecord(step=number, channel=channel, applied=applied, metrics=values, skipped=(), wall_time=0.0)


def test_a_run_that_went_on_is_marked_where_it_did():
    """Twice after step 2: the second attempt came to no step of its own."""
    attempts = {1: 1, 2: 1, 3: 3, 4: 3, 5: 4}
    steps = tuple(replace(step(number), attempt=attempt) for number, attempt in attempts.items())
    evaluations = (EvaluationRecord(step=2, metrics={}, wall_time=0.0, attempt=1),)
    assert resumptions(History(steps=steps, evaluations=evaluations)) == [2, 4]
    assert resumptions(History(steps=steps[:2], evaluations=())) == []


def test_smoothing_by_hand():
    # Half-life 1: decay 0.5 per step. Means: 4; (0.5 * 4 + 1) / 1.5 = 2; weight 1.5 -> two steps on 0.375:
    # (0.375 * 2 + 7.5) / 1.375 = 6.
    assert smoothed([1, 2, 4], [4.0, 1.0, 7.5], half_life=1.0) == pytest.approx([4.0, 2.0, 6.0])


def test_smoothing_passes_non_finite_values_by():
    means = smoothed([1, 2, 3], [math.nan, 2.0, math.inf], half_life=5.0)
    assert math.isnan(means[0])
    assert means[1:] == [2.0, 2.0]


def drawn(monkeypatch, tmp_path, history):
    """Title of each panel -> its axes, the right one of a panel behind it."""
    figures = []
    monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda canvas, path: figures.append(canvas.figure))
    draw_curves(history, tmp_path / "curves.png", "run")
    panels = {}
    for axes in figures[0].axes:
        own = next((name for name, sides in panels.items() if sides[0].bbox.bounds == axes.bbox.bounds), None)
        panels.setdefault(axes.get_title(loc="left") or own, []).append(axes)
    return panels


def labelled(axes):
    """(label, is it dashed?) -> the points of a line."""
    handles = [line for line in axes.lines if not line.get_label().startswith("_")]
    return {(line.get_label(), line.is_dashed()): list(map(tuple, line.get_xydata().tolist())) for line in handles}


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def of_both(number, error, **more):
    """A step that logs what both channels log."""
    channel = "B" if number % 2 == 0 else "A"
    shared = {"loss__total": error, "loss__text_ce": error, "coord__mean_abs_error_bins": error, "coord__mass": 1.0}
    shared |= {"train__grad_norm": error, "train__learning_rate": 0.1, "time__step_s": error}
    return step(number, channel, **shared, train__tokens_per_second=error, **more)


def test_no_line_runs_through_both_channels(monkeypatch, tmp_path):
    panels = drawn(monkeypatch, tmp_path, History(steps=(of_both(1, 4.0), of_both(2, 50.0)), evaluations=()))
    for title, side, label in (
        ("loss terms, before their weights", 0, "text_ce"),
        ("coordinates", 0, "mean absolute error"),
        ("learning rate and gradient norm", 1, "gradient norm (right)"),
        ("speed", 0, "tokens per second"),
        ("speed", 1, "seconds per step (right)"),
    ):
        lines = labelled(panels[title][side])
        assert (lines[label, False], lines[label, True]) == ([(1.0, 4.0)], [(2.0, 50.0)]), title
        names = legend(panels[title][0])
        assert names.count(label) == 1
        assert names[-2:] == ["A steps", "B steps"]
    # The schedule of the learning rate knows no channels.
    rate = labelled(panels["learning rate and gradient norm"][0])
    assert rate == {("learning rate", False): [(1.0, 0.1), (2.0, 0.1)]}


def test_a_run_of_one_channel_has_solid_lines_and_no_word_of_the_other(monkeypatch, tmp_path):
    for steps in ((of_both(1, 4.0), of_both(3, 5.0)), (of_both(2, 4.0), of_both(4, 5.0))):
        panels = drawn(monkeypatch, tmp_path, History(steps=steps, evaluations=()))
        for sides in panels.values():
            assert not any(dashed for axes in sides for _, dashed in labelled(axes))
        assert legend(panels["coordinates"][0]) == ["mean absolute error", "mass on coordinate tokens (right)"]


def test_matches_and_rollouts_are_drawn_where_b_ran(monkeypatch, tmp_path):
    matches = {"match__f1": 0.75, "match__precision": 1.0, "match__recall": 0.6, "match__predicted_per_true": 1.6}
    rollouts = {"parse__ok": 0.9, "rollout__truncation_rate": 0.0, "rollout__tokens_per_second": 700.0}
    b_step = of_both(2, 1.0, **matches, **rollouts)
    panels = drawn(monkeypatch, tmp_path, History(steps=(of_both(1, 1.0), b_step), evaluations=()))
    found = labelled(panels["matches of B steps, on training images"][0])
    assert found == {(name.removeprefix("match__"), False): [(2.0, value)] for name, value in matches.items()}
    left, right = panels["rollouts of B steps"]
    assert labelled(left) == {("parse/ok", False): [(2.0, 0.9)], ("truncation_rate", False): [(2.0, 0.0)]}
    assert labelled(right) == {("tokens per second (right)", False): [(2.0, 700.0)]}
    assert left.get_ylim()[0] < 0  # a rate of 0 is not hidden by the frame
    alone = drawn(monkeypatch, tmp_path, History(steps=(of_both(1, 1.0),), evaluations=()))
    assert len(alone) == 6 and not any("B steps" in title for title in alone)


def test_each_term_has_a_colour_of_its_own():
    terms = [name for name in METRICS if name.startswith("loss/") and name != "loss/total"]
    assert len(set(COLOURS)) == len(COLOURS) >= len(terms)


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
        with_b = any(record.channel == "B" for record in history.steps)
        assert picture.size == (2346 if with_b else 1760, 990)
        assert len(picture.convert("L").getcolors()) > 20
