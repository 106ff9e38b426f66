"""One step on a real one-rank DeepSpeed engine: what it skips, what it goes past, and what stops it."""

import re
from dataclasses import replace
from unittest import mock

import pytest
import torch

from ds_stage2ab.carriers import Skipped
from ds_stage2ab.errors import EXIT_TRAINING, DataError, TrainingFault
from tests.unit.engine.stage import (
    PER_DEVICE,
    RATE,
    UPDATE_TOLERANCE,
    R,
    Watched,
    assert_bit_equal,
    mean_loss_alone,
    mean_of,
)


def spoil_some(stage):
    """Make the row of an id NaN that some of the step's samples hold, but not the first; these come back, in order."""
    segments = stage.bench.segments()[:R]
    ids = [set(segment.input_ids.tolist()) for segment in segments]
    first = next(n for n in range(1, R) if ids[n] - set().union(*ids[:n]))
    only = min(ids[first] - set().union(*ids[:first]))
    table = stage.bench.model.get_input_embeddings().weight
    stage.bench.model.lm_head.weight = torch.nn.Parameter(table.detach().clone(), requires_grad=False)
    table.data[only] = torch.nan
    return [segment.sample_id for segment, own in zip(segments, ids, strict=True) if only in own]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(build, zero_stage):
    stage = build({"deepspeed.zero_stage": zero_stage, "training.packing": False})
    spoilt, *_ = spoil_some(stage)
    before = stage.weights()
    with pytest.raises(TrainingFault) as caught:
        stage.window.run(0, stage.channel)
    assert caught.value.code == EXIT_TRAINING
    assert caught.value.why == "a loss of step 1 is nan; no weight was changed by this step"
    assert caught.value.where == f"samples {spoilt}"
    assert_bit_equal(stage.weights(), before)
    assert stage.engine.global_steps == 0


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_a_bad_loss_that_is_tolerated_names_its_own_samples(build, zero_stage):
    stage = build({"deepspeed.zero_stage": zero_stage, "training.packing": False, "training.max_bad_steps": 1})
    spoilt = spoil_some(stage)
    before = stage.weights()
    result = stage.window.run(0, stage.channel)
    assert 0 < len(spoilt) < R
    why = "a loss of step 1 is not finite, and the update was not applied"
    assert (result.applied, result.fault) == (False, f"{why} (samples {', '.join(spoilt)})")
    assert_bit_equal(stage.weights(), before)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_moves_no_weight(build, zero_stage, value):
    # a finite loss whose gradient overflows on its way to one weight; fp32 at stage 0 has no check of DeepSpeed's own
    stage = build({"deepspeed.zero_stage": zero_stage})
    stage.bench.model.model.language_model.norm.weight.register_hook(lambda gradient: torch.full_like(gradient, value))
    before = stage.weights()
    with pytest.raises(TrainingFault) as caught:
        stage.window.run(0, stage.channel)
    assert caught.value.code == EXIT_TRAINING
    assert re.fullmatch("the gradient norm of step 1 is (nan|inf), and the update was not applied", caught.value.why)
    for sample in stage.bench.samples[:R]:
        assert sample.id in caught.value.where
    assert_bit_equal(stage.weights(), before)


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("place", ["loss", "gradient"])
def test_a_bad_step_is_gone_past_and_leaves_nothing_behind(build, zero_stage, place):
    """The step after it is the one that it would have been: no weight, no gradient and no count was carried over."""
    stage = build({"deepspeed.zero_stage": zero_stage, "training.max_bad_steps": 1})
    norm = stage.bench.model.model.language_model.norm.weight
    before, good = stage.weights(), norm.detach().clone()
    hook = norm.register_hook(lambda gradient: gradient * torch.nan)
    if place == "loss":
        norm.data[0] = torch.nan
    pending_faults = stage.window.run(0, stage.channel)
    hook.remove()
    norm.data.copy_(good)
    assert (pending_faults.applied, pending_faults.samples) == (False, R)
    assert "of step 1 is " in pending_faults.fault and stage.bench.samples[0].id in pending_faults.fault
    assert_bit_equal(stage.weights(), before)
    _, gradient = mean_loss_alone(stage, 1)
    after = stage.window.run(1, stage.channel)
    assert (after.applied, after.fault) == (True, "")
    for name, weight in stage.weights().items():
        update = 0.01 * gradient[name]
        gap, moved = (torch.linalg.vector_norm(x) for x in (before[name] - update - weight, update))
        assert gap <= UPDATE_TOLERANCE * moved + 1e-7


class Spoiled(torch.autograd.Function):
    """The same number, whose gradient is none."""

    @staticmethod
    def forward(context, loss):
        return loss.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * torch.nan


@pytest.mark.parametrize("spoil", [lambda loss: loss * torch.nan, Spoiled.apply], ids=["loss", "gradient"])
def test_under_zero_3_a_bad_step_moves_no_weight_and_the_next_one_does(build, spoil):
    stage = build({"deepspeed.zero_stage": 3, "training.max_bad_steps": 1})
    before, forward = stage.weights(), stage.objective.forward
    assert all(weight.numel() for weight in before.values())

    def spoiled(pack):
        loss, terms = forward(pack)
        return spoil(loss), terms

    with mock.patch.object(stage.objective, "forward", spoiled):
        assert not stage.window.run(0, stage.channel).applied
    assert_bit_equal(stage.weights(), before)
    assert stage.window.run(1, stage.channel).applied
    after = stage.weights()
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert not any(torch.equal(after[name], weight) for name, weight in before.items())


def test_too_many_bad_steps_in_a_row_end_the_run(build):
    stage = build({"training.max_bad_steps": 1, "deepspeed.zero_stage": 1})
    hook = stage.bench.model.model.language_model.norm.weight.register_hook(lambda gradient: gradient * torch.nan)
    assert not stage.window.run(0, stage.channel).applied
    hook.remove()
    assert stage.window.run(1, stage.channel).applied  # which begins the count again
    stage.bench.model.model.language_model.norm.weight.register_hook(lambda gradient: gradient * torch.nan)
    stage.window.draw = lambda step, micro_step: stage.bench.samples[:PER_DEVICE]
    assert not stage.window.run(2, stage.channel).applied
    with pytest.raises(TrainingFault, match="the gradient norm of step 4 is inf"):
        stage.window.run(3, stage.channel)


def test_a_gradient_of_zero_is_a_fault_if_something_was_supervised(build):
    stage = build()
    for parameter in stage.bench.model.parameters():
        parameter.register_hook(torch.zeros_like)
    with pytest.raises(TrainingFault) as caught:
        stage.window.run(0, stage.channel)
    assert caught.value.why == "the gradient norm of step 1 is 0.0, though something was supervised"
    for key in ("model.freeze", "tuner", "stage2_ab"):
        assert key in caught.value.fix
    assert "learning_rate" not in caught.value.fix
    for sample in stage.bench.samples[:R]:
        assert sample.id in caught.value.where


def test_a_step_of_boxes_without_words_supervises_something(build):
    class Wordless(Watched):
        def segments(self, samples, step, clock):
            return [replace(one, weights=one.weights * 0) for one in super().segments(samples, step, clock)]

    stage = build()
    for parameter in stage.bench.model.parameters():
        parameter.register_hook(torch.zeros_like)
    with pytest.raises(TrainingFault, match="though something was supervised"):
        stage.window.run(0, Wordless(stage.bench))


def test_a_step_that_supervises_nothing_is_legal_and_moves_nothing(build):
    stage = build()
    before, none = stage.weights(), torch.zeros(0, dtype=torch.long)

    class ReadTimeout(Watched):
        def segments(self, samples, step, clock):
            loud = super().segments(samples, step, clock)
            return [replace(one, weights=torch.zeros_like(one.weights), slots=none, bins=none) for one in loud]

    result = stage.window.run(0, ReadTimeout(stage.bench))
    assert (result.loss, result.grad_norm, result.samples) == (0.0, 0.0, R)
    assert_bit_equal(stage.weights(), before)


class Picky(Watched):
    """Skips what it is told to."""

    def __init__(self, bench, draws):
        super().__init__(bench)
        self.draws = draws

    def segments(self, samples, step, clock):
        for one in super().segments(samples, step, clock):
            skipped = Skipped(sample_id=one.sample_id, draw=one.draw, why="it is too long")
            yield skipped if one.draw in self.draws else one


def test_skipped_samples_count_and_contribute_nothing(build):
    """One that could not be read, two that are too long: R stays R, so the loss is five samples' over eight."""
    stage = build(RATE)
    unreadable, drawn = Skipped(sample_id="gone", draw=5, why="image is gone"), stage.window.draw
    stage.window.draw = lambda step, micro_step: [
        unreadable if one.draw == 5 else one for one in drawn(step, micro_step)
    ]
    kept = [segment for segment in stage.bench.segments()[:R] if segment.draw not in (1, 5, 6)]
    loss, gradient = mean_of(stage, kept)
    before = stage.weights()
    result = stage.window.run(0, Picky(stage.bench, (1, 6)))
    assert result.loss == pytest.approx(loss, rel=1e-6)
    assert (result.samples, result.applied) == (R, True)
    assert [one.draw for one in result.skipped] == [1, 5, 6]
    assert result.terms["loss/total"][1] == R - 3
    for name, tensor in gradient.items():
        gap = (stage.weights()[name] - before[name] + 0.005 * tensor).norm()
        assert gap <= UPDATE_TOLERANCE * (0.005 * tensor).norm() + 1e-7 * before[name].norm(), name


def test_a_step_whose_samples_were_all_skipped_is_none(build):
    stage = build()
    with pytest.raises(DataError) as caught:
        stage.window.run(0, Picky(stage.bench, range(R)))
    assert caught.value.why == "every sample of step 1 was skipped; the first because it is too long"
    assert caught.value.where.startswith(f"samples {stage.bench.samples[0].id}, ")
    assert stage.engine.global_steps == 0


def test_segments_that_come_one_by_one_are_trained_in_between(build):
    """Without packing the first is handed to the engine when the second has come."""
    stage, order = build({"training.packing": False}), []

    class Coming(Watched):
        streams = True

        def segments(self, samples, step, clock):
            for one in super().segments(samples, step, clock):
                order.append(f"segment {one.draw}")
                yield one

    forward = stage.window.engine.backward
    with mock.patch.object(stage.engine, "backward", lambda *a, **k: (order.append("backward"), forward(*a, **k))):
        loss, _ = mean_loss_alone(stage, 0)
        result = stage.window.run(0, Coming(stage.bench))
    assert order[:5] == ["segment 0", "segment 1", "backward", "segment 2", "backward"]
    assert order[-2:] == ["backward", "backward"] and order.count("backward") == R
    assert result.loss == pytest.approx(loss, rel=1e-6)


def test_a_sample_that_cannot_be_read_is_raised_as_it_is(build):
    stage = build()

    def draw(step, micro_step):
        raise DataError("image is gone", where="train.jsonl:7", fix="put it back")

    stage.window.draw = draw
    with pytest.raises(DataError) as caught:
        stage.window.run(0, stage.channel)
    assert str(caught.value) == "train.jsonl:7: image is gone\n  fix: put it back"


def test_a_plan_that_disagrees_with_the_engine_is_a_mistake(build):
    stage = build()
    other = build({"training.per_device_train_batch_size": 2})  # four micro-steps where the engine has two
    stage.window.plan = other.plan
    with pytest.raises(AssertionError, match="the engine's window and the plan disagree"):
        stage.window.run(0, stage.channel)
