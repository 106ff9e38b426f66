"""One function for each line of the module's list of invariants, and the words of each warning."""

import re
from dataclasses import replace

import pytest

from ds_stage2ab.config.sections import ThresholdSection
from ds_stage2ab.errors import EXIT_TRAINING, TrainingFault, exit_code
from ds_stage2ab.metrics.health_watch import FIGURES, HealthWatch
from ds_stage2ab.metrics.registry import METRICS
from tests.unit.parts import PLAIN_LOSS

SILENT = PLAIN_LOSS.channel_b.health
HEALTHY = {
    "match/predicted_per_true": (10, 10),
    "rollout/truncation_rate": (0, 8),
    "rollout/values_dropped_rate": (0, 10),
    "parse/ok": (7, 8),
    "parse/empty_answer": (1, 8),
    "coord/mass": (39, 40),
}
MANY = {**HEALTHY, "match/predicted_per_true": (30, 10)}
SICK = {
    "predicted_per_true": MANY,
    "truncation_rate": {**HEALTHY, "rollout/truncation_rate": (6, 8)},
    "drop_rate": {**HEALTHY, "rollout/values_dropped_rate": (7, 10)},
    "valid_rate": {**HEALTHY, "parse/ok": (1, 8), "parse/empty_answer": (1, 8)},
    "coord_mass": {**HEALTHY, "coord/mass": (10, 40)},
}


def watch(patience=2, **thresholds):
    changed = {name: ThresholdSection(warn=warn, stop=stop) for name, (warn, stop) in thresholds.items()}
    return HealthWatch(replace(SILENT, patience=patience, **changed))


def warned(health, *steps):
    """Numbers of the steps that warned; a step is terms of Channel B, or None for one of Channel A."""
    return [
        step
        for step, terms in enumerate(steps)
        if health.after_step(step, "A" if terms is None else "B", terms or MANY)
    ]


def test_it_acts_after_patience_b_steps_in_a_row():
    assert warned(watch(3, predicted_per_true=(2, None)), MANY, MANY, MANY) == [2]
    assert warned(watch(3, predicted_per_true=(2, None)), MANY, MANY, HEALTHY, MANY, MANY) == []
    assert warned(watch(1, predicted_per_true=(2, None)), MANY) == [0]


def test_a_run_that_goes_on_counts_on():
    before, again = (watch(3, predicted_per_true=(2, None)) for _ in range(2))
    assert warned(before, MANY, MANY) == []
    again.start_at(before.streaks())
    assert warned(again, MANY) == [0]


def test_a_steps_in_between_change_nothing():
    assert warned(watch(2, predicted_per_true=(2, None)), None, MANY, None, None, MANY) == [4]


def test_it_warns_once_until_a_healthy_b_step():
    steps = (MANY, MANY, MANY, MANY, HEALTHY, MANY, MANY)
    assert warned(watch(2, predicted_per_true=(2, None)), *steps) == [1, 6]


def test_what_a_step_does_not_have_crosses_nothing():
    nothing = dict.fromkeys(HEALTHY, (0, 0))
    thresholds = dict.fromkeys(SICK, (0.5, 0.5))
    assert warned(watch(1, **thresholds), nothing, nothing) == []


@pytest.mark.parametrize("key", SICK)
def test_each_figure_warns_and_stops(key):
    limit = 2 if key == "predicted_per_true" else 0.5
    (warning,) = watch(1, **{key: (limit, None)}).after_step(0, "B", SICK[key])
    figure = next(figure for figure in FIGURES if figure.key == key)
    assert warning.startswith(figure.step) and f" {limit:g} in this B step" in warning
    with pytest.raises(TrainingFault) as caught:
        watch(1, **{key: (None, limit)}).after_step(6, "B", SICK[key])
    assert exit_code(caught.value) == EXIT_TRAINING
    assert caught.value.where == f"step 7, stage2_ab.channel_b.health.{key}.stop"
    assert watch(1, **{key: (limit, limit)}).after_step(0, "B", HEALTHY) == []


def test_the_words():
    health = watch(2, predicted_per_true=(2, None))
    assert health.after_step(0, "B", MANY) == []
    (warning,) = health.after_step(1, "B", MANY)
    assert warning.startswith("match/predicted_per_true was above 2 in the last 2 B steps (now 3); set stage2_ab")


def test_at_the_threshold_nothing_is_crossed():
    at = {**HEALTHY, "match/predicted_per_true": (20, 10), "coord/mass": (20, 40)}
    assert warned(watch(1, predicted_per_true=(2, None), coord_mass=(0.5, None)), at) == []


def test_stop_counts_on_its_own():
    health = watch(2, predicted_per_true=(2, 4))
    worse = {**HEALTHY, "match/predicted_per_true": (50, 10)}
    assert warned(health, MANY, worse) == [1]
    with pytest.raises(TrainingFault, match="above 4 in the last 2 B steps"):
        health.after_step(2, "B", worse)


def test_an_evaluation_warns_at_once_and_never_stops():
    health = watch(5, predicted_per_true=(2, 2), valid_rate=(0.5, 0.5))
    (warning,) = health.after_evaluation({"eval/predicted_per_true": 3.0, "eval/parse_ok_rate": 0.9})
    assert warning.startswith("eval/predicted_per_true is 3, above 2; ")
    assert health.after_evaluation({}) == []


def test_a_remedy_names_metrics_that_are_there():
    """In an evaluation without any B step there is no parse/ metric to look at."""
    for figure in FIGURES:
        for remedy, channel in ((figure.remedy, ("B", "both")), (figure.remedy_of_evaluation, ("eval",))):
            for name in re.findall(r"\b(?:eval/|parse/|drop/|match/|rollout/)\w*", remedy):
                found = [metric for key, metric in METRICS.items() if key.startswith(name)]
                assert found and all(metric.channel in channel for metric in found), (figure.key, name)


def test_every_figure_is_a_declared_metric():
    names = {name for figure in FIGURES for name in (*figure.step.split(" + "), figure.evaluation)}
    assert names <= METRICS.keys()
