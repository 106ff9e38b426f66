"""From StepResult to records."""

import math

import pytest

from ds_stage2ab.carriers import StepResult
from ds_stage2ab.metrics.recorder import Metrics, step_values


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


def result(**changes):
    fields = {
        "applied": True,
        "loss": 2.5,
        "terms": {"loss/text_ce": (6.0, 4), "loss/desc_ce": (0.0, 0)},
        "skipped": (),
        "samples": 8,
        "tokens": 1200,
        "packs": 3,
        "grad_norm": 0.75,
        "learning_rate": 1e-4,
        "seconds": {"data": 0.25, "forward_backward": 1.5, "optimizer": 0.25, "step": 2.0},
    }
    return StepResult(**(fields | changes))


def test_every_number_of_a_step():
    assert step_values(result()) == {
        "loss/text_ce": 1.5,  # 6 / 4
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
    values = step_values(result(loss=3.0, terms={"loss/total": (12.0, 3)}, skipped=("x",), samples=4))
    assert values["loss/total"] == 3.0
    assert values["train/skipped_samples"] == 1


def test_a_step_counts_from_zero_and_its_record_says_one():
    sink = Memory()
    metrics = Metrics([sink], every_steps=1, clock=lambda: 7.0)
    metrics.record(0, "A", result())
    assert (sink.steps[0].step, sink.steps[0].channel, sink.steps[0].wall_time) == (1, "A", 7.0)


def test_which_steps_are_logged():
    # Steps 1..12 at every 5: the first, 5, 10, and those with trouble (7 not applied, 8 skipped a sample).
    sink = Memory()
    metrics = Metrics([sink], every_steps=5)
    for step in range(12):
        metrics.record(step, "A", result(applied=step != 6, skipped=("bad",) if step == 7 else ()))
    assert [record.step for record in sink.steps] == [1, 5, 7, 8, 10]
    assert [record.applied for record in sink.steps] == [True, True, False, True, True]


def test_a_step_that_is_not_finite_is_recorded_as_it_is():
    sink = Memory()
    Metrics([sink], every_steps=1).record(3, "B", result(applied=False, loss=math.nan, grad_norm=math.inf))
    assert math.isnan(sink.steps[0].metrics["loss/total"])
    assert sink.steps[0].metrics["train/grad_norm"] == math.inf
    assert sink.steps[0].metrics["train/applied"] == 0


def test_evaluations_and_close_reach_every_sink():
    sinks = [Memory(), Memory()]
    metrics = Metrics(sinks, every_steps=10)
    metrics.record_evaluation(0, {"eval/f1": 0.5, "eval/samples": 300})
    metrics.close()
    for sink in sinks:
        assert sink.evaluations[0].step == 0
        assert sink.evaluations[0].metrics == {"eval/f1": 0.5, "eval/samples": 300}
        assert sink.closed == 1


def test_an_undeclared_evaluation_metric_is_refused():
    with pytest.raises(AssertionError, match="'f1'"):
        Metrics([Memory()], every_steps=1).record_evaluation(0, {"f1": 0.5})


def test_other_ranks_have_no_sinks_and_do_nothing():
    metrics = Metrics([], every_steps=1)
    metrics.record(0, "A", result())
    metrics.record_evaluation(1, {"eval/f1": 0.5})
    metrics.close()
