"""From StepResult to records."""

import math

import pytest

from ds_stage2ab.carriers import Skipped, StepResult
from ds_stage2ab.metrics.recorder import Metrics, step_values

BAD = Skipped(sample_id="bad", draw=3, why="image is gone")


class Memory:
    """A sink that remembers."""

    def __init__(self):
        self.steps, self.evaluations, self.closed = [], [], 0

    def step(self, record):
        self.steps.append(record)

    def evaluation(self, record):
        self.evaluations.append(record)

    def close(self):
        self.closed += 1


def always_a(step):
    return "A"


def a_and_b(step):
    """b_ratio 0.5: A B A B ..."""
    return "AB"[step % 2]


def result(**changes):
    fields = {
        "applied": True,
        "loss": 2.5,
        "terms": {"loss/text_ce": (6.0, 4), "loss/desc_ce": (0.0, 0), "coord/mass": (12.0, 24)},
        "skipped": (),
        "samples": 8,
        "tokens": 1200,
        "packs": 3,
        "grad_norm": 0.75,
        "learning_rate": 1e-4,
        "seconds": {"data": 0.25, "forward_backward": 1.5, "optimizer": 0.25, "step": 2.0},
    }
    return StepResult(**({"fault": ""} | fields | changes))


def test_every_number_of_a_step():
    assert step_values(result()) == {
        "loss/text_ce": 1.5,  # 6 / 4
        "coord/mass": 0.5,  # 12 / 24
        "train/objects": 6,  # 24 slots, 4 to a box
        "train/packs": 3,
        "loss/total": 2.5,
        "train/grad_norm": 0.75,
        "train/learning_rate": 1e-4,
        "train/samples": 8,
        "train/skipped_samples": 0,
        "train/tokens": 1200,
        "train/applied": 1,
        "time/data_s": 0.25,
        "time/forward_backward_s": 1.5,
        "time/optimizer_s": 0.25,
        "time/step_s": 2.0,
        "train/tokens_per_second": 600.0,  # 1200 / 2
    }


def test_the_total_is_the_mean_over_raw_samples_also_when_some_were_skipped():
    # 3 samples of loss 4 and one skipped: the step's loss is 12 / 4 = 3, the term alone would say 12 / 3 = 4.
    terms = {"loss/total": (12.0, 3), "coord/mass": (0.0, 0)}
    values = step_values(result(loss=3.0, terms=terms, skipped=(BAD,), samples=4))
    assert values["loss/total"] == 3.0
    assert values["train/skipped_samples"] == 1


def test_a_step_counts_from_zero_and_its_record_says_one():
    sink = Memory()
    metrics = Metrics([sink], 1, always_a, clock=lambda: 7.0)
    metrics.record(0, "A", result())
    assert (sink.steps[0].step, sink.steps[0].channel, sink.steps[0].wall_time) == (1, "A", 7.0)


def test_which_steps_are_logged():
    # Steps 1..12 at every 5: the first, 5, 10, and those with trouble (7 not applied, 8 skipped a sample).
    sink = Memory()
    metrics = Metrics([sink], 5, always_a)
    for step in range(12):
        metrics.record(step, "A", result(applied=step != 6, skipped=(BAD,) if step == 7 else ()))
    assert [record.step for record in sink.steps] == [1, 5, 7, 8, 10]
    assert [record.applied for record in sink.steps] == [True, True, False, True, True]


def logged(channel_for_step, every_steps, num_steps):
    """[(number of the step, its channel)] of a run without trouble, as (1, "A")."""
    sink = Memory()
    metrics = Metrics([sink], every_steps, channel_for_step)
    for step in range(num_steps):
        metrics.record(step, channel_for_step(step), result())
    return [(record.step, record.channel) for record in sink.steps]


def test_the_first_step_of_each_channel_in_an_interval_is_logged():
    # Steps 1..9 are A B A B A B A B A; the intervals are 1..3, 4..7 and 8..
    assert logged(a_and_b, 4, 9) == [(1, "A"), (2, "B"), (4, "B"), (5, "A"), (8, "B"), (9, "A")]
    assert [number for number, _ in logged(a_and_b, 1, 4)] == [1, 2, 3, 4]
    # b_ratio 0.2: of ten steps 5 and 10 are B; the intervals are 1..3, 4..7, 8..
    rare = [(1, "A"), (4, "A"), (5, "B"), (8, "A"), (10, "B")]
    assert logged(lambda step: "AAAAB"[step % 5], 4, 10) == rare


def test_a_resumed_run_logs_the_steps_of_the_whole_one():
    whole, sink = logged(a_and_b, 4, 9), Memory()
    metrics = Metrics([sink], 4, a_and_b)
    for step in range(5, 9):  # continues behind five steps
        metrics.record(step, a_and_b(step), result())
    assert [(record.step, record.channel) for record in sink.steps] == [entry for entry in whole if entry[0] > 5]


def test_tokens_per_second_of_the_rollouts():
    seconds = {"data": 0.0, "rollout": 4.0, "step": 8.0}
    terms = {"coord/mass": (0.0, 0), "rollout/tokens": (600.0, 8)}
    values = step_values(result(terms=terms, seconds=seconds))
    assert values["rollout/tokens"] == 600.0  # a sum: the 8 rollouts of the count play no part
    assert values["rollout/tokens_per_second"] == 150.0  # 600 / 4 s, not / 8 s
    assert values["time/rollout_s"] == 4.0
    assert "rollout/tokens_per_second" not in step_values(result())


def test_a_step_on_a_may_not_emit_a_metric_of_b():
    terms = {"coord/mass": (0.0, 0), "match/f1": (2.0, 4)}
    sink = Memory()
    Metrics([sink], 1, a_and_b).record(1, "B", result(terms=terms))
    assert sink.steps[0].metrics["match/f1"] == 0.5  # 2 / 4
    with pytest.raises(AssertionError, match="match/f1"):
        Metrics([Memory()], 1, a_and_b).record(0, "A", result(terms=terms))


def test_a_step_that_is_not_finite_is_recorded_as_it_is():
    sink = Memory()
    Metrics([sink], 1, a_and_b).record(3, "B", result(applied=False, loss=math.nan, grad_norm=math.inf))
    assert math.isnan(sink.steps[0].metrics["loss/total"])
    assert sink.steps[0].metrics["train/grad_norm"] == math.inf
    assert sink.steps[0].metrics["train/applied"] == 0


def test_evaluations_and_close_reach_every_sink():
    sinks = [Memory(), Memory()]
    metrics = Metrics(sinks, 10, always_a)
    metrics.record_evaluation(0, {"eval/f1": 0.5, "eval/samples": 300})
    metrics.close()
    for sink in sinks:
        assert sink.evaluations[0].step == 0
        assert sink.evaluations[0].metrics == {"eval/f1": 0.5, "eval/samples": 300}
        assert sink.closed == 1


def test_an_undeclared_evaluation_metric_is_refused():
    with pytest.raises(AssertionError, match="'f1'"):
        Metrics([Memory()], 1, always_a).record_evaluation(0, {"f1": 0.5})


def test_other_ranks_have_no_sinks_and_do_nothing():
    metrics = Metrics([], 1, always_a)
    metrics.record(0, "A", result())
    metrics.record_evaluation(1, {"eval/f1": 0.5})
    metrics.close()
