"""One step on a real one-rank DeepSpeed engine: which samples, how many updates, how large."""

from dataclasses import replace
from unittest import mock

import pytest
import torch

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.losses.objective import TERM_NAMES
from ds_stage2ab.runtime.timers import Clock
from tests.parts import as_tuples
from tests.unit.engine.stage import RATE, R, Watched, mean_loss_alone, mean_of, moved_by
from tests.unit.parts import WrittenBackend


def test_a_step_uses_exactly_its_draws(build):
    stage = build()
    stage.window.run(0, stage.channel)
    stage.window.run(1, stage.channel)
    assert stage.drawn == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert stage.channel.asked == [(0, list(range(8))), (1, list(range(8, 16)))]


def test_a_step_is_one_update_whatever_its_packs(build):
    stage = build({"training.packing": False})
    updates = []
    step = stage.engine.optimizer.step
    with mock.patch.object(stage.engine.optimizer, "step", lambda *a, **k: (updates.append(1), step(*a, **k))[1]):
        for number in (1, 2):
            result = stage.window.run(number - 1, stage.channel)
            assert (stage.engine.global_steps, len(updates), result.packs) == (number, number, 8)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"training.packing": False},
        {"training.per_device_train_batch_size": 8},
        {"deepspeed.zero_stage": 1},
        {"deepspeed.zero_stage": 2, "training.packing": False},
        {"deepspeed.zero_stage": 1, "deepspeed.offload_optimizer": "cpu"},
        {"deepspeed.zero_stage": 2, "deepspeed.offload_optimizer": "cpu"},
    ],
    ids=["plain", "packing-off", "one-micro-step", "zero-1", "zero-2-packing-off", "zero-1-offload", "zero-2-offload"],
)
def test_loss_and_update_are_those_of_the_mean_over_samples(build, changes):
    stage = build(RATE | changes)
    if changes.get("training.per_device_train_batch_size") == R:
        stage.window.draw = lambda step, micro_step: stage.bench.samples[:R]
    before = stage.weights()
    loss, gradient = mean_loss_alone(stage, 0)
    result = stage.window.run(0, stage.channel)
    after = stage.weights()
    assert result.loss == pytest.approx(loss, rel=1e-6)
    norm = torch.cat([tensor.flatten() for tensor in gradient.values()]).double().norm().item()
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    # SGD at the first of two warm-up steps: w - 0.01 / 2 * d mean / dw
    for name, tensor in gradient.items():
        assert moved_by(after[name], before[name], -0.005 * tensor), name
    assert any(not torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_an_engine_that_counts_other_steps_than_the_loop_is_a_mistake(build, zero_stage):
    stage = build({"deepspeed.zero_stage": zero_stage})
    with pytest.raises(AssertionError, match="the engine's step counter and the loop disagree"):
        stage.window.run(1, stage.channel)


class Reporting(Watched):
    """Reports of sample g: 1 of 1, and 2 g of g + 1."""

    term_names = ("rollout/count", "match/f1")

    def segments(self, samples, step, clock):
        plain = super().segments(samples, step, clock)
        terms = [{"rollout/count": (1, 1), "match/f1": (2 * one.draw, one.draw + 1)} for one in plain]
        return [replace(one, terms=own) for one, own in zip(plain, terms, strict=True)]


@pytest.mark.parametrize("packing", [True, False])
def test_the_channels_terms_are_summed_over_samples_whatever_the_packs(build, packing):
    stage = build({"training.packing": packing})
    result = stage.window.run(0, Reporting(stage.bench))
    assert set(result.terms) == {*TERM_NAMES, "rollout/count", "match/f1"}
    assert result.terms["rollout/count"] == (8, 8)
    assert result.terms["match/f1"] == (56, 36)  # 2 (0 + 1 + ... + 7), 1 + 2 + ... + 8
    second = stage.window.run(1, Reporting(stage.bench))
    assert second.terms["match/f1"] == (184, 100)  # 2 (8 + ... + 15), 9 + ... + 16: of this step alone


def test_a_segment_without_a_term_of_its_channel_is_a_mistake(build):
    class Forgetful(Reporting):
        def segments(self, samples, step, clock):
            *others, last = super().segments(samples, step, clock)
            return [*others, replace(last, terms={"rollout/count": (1, 1)})]

    stage = build()
    with pytest.raises(KeyError, match="match/f1"):
        stage.window.run(0, Forgetful(stage.bench))


@pytest.mark.parametrize("change", [lambda made: made[1:], lambda made: [*made, made[0]], lambda made: made[:1] * R])
def test_a_channel_that_loses_or_repeats_a_sample_is_a_mistake(build, change):
    class Careless(Watched):
        def segments(self, samples, step, clock):
            return change(super().segments(samples, step, clock))

    stage = build()
    with pytest.raises(AssertionError, match="the packs of a step hold other samples than were drawn"):
        stage.window.run(0, Careless(stage.bench))
    assert stage.engine.global_steps == 0


class Mixed:
    """Channel B whose answers find, miss, invent, break off and keep silent."""

    def __init__(self, bench):
        def written(*objects):
            return as_tuples(encode_answer(objects, bench.vocabulary, get_codec("array"))).ids[:-1]

        ghost = written(Truth(desc="ghost", box=(0, 0, 3, 3)))
        kinds = (lambda ids: ids, lambda ids: ids[: len(ids) // 2], lambda ids: ghost, lambda ids: ids[:0])
        answers = {sample.draw: kinds[sample.draw % 4](written(*sample.objects)) for sample in bench.samples}
        self.channel = bench.rollout_matching(WrittenBackend(answers))
        self.name, self.num_passes, self.streams, self.term_names = "B", 1, False, self.channel.term_names
        self.made = []

    def segments(self, samples, step, clock):
        self.made = list(self.channel.segments(samples, step, clock))
        return self.made


@pytest.mark.parametrize("packing", [True, False])
def test_loss_and_terms_of_a_step_on_b(build, packing):
    stage = build(RATE | {"training.packing": packing})
    mixed, before = Mixed(stage.bench), stage.weights()
    loss, gradient = mean_of(stage, mixed.segments(stage.bench.samples[:R], 0, Clock()))
    result = stage.window.run(0, mixed)
    assert result.loss == pytest.approx(loss, rel=1e-6)
    assert result.terms["loss/total"] == (pytest.approx(R * loss, rel=1e-6), R)
    assert result.terms["coord/mass"][1] == sum(len(one.slots) for one in mixed.made)
    # SGD at the first of two warm-up steps, as above
    for name, tensor in gradient.items():
        assert moved_by(stage.weights()[name], before[name], -0.005 * tensor), name
    states = {name: total for name, (total, _) in result.terms.items() if name.startswith("parse/") and total}
    assert states["parse/ok"] == 4  # 0 and 4 as they are, 2 and 6 the ghost
    assert states["parse/no_json"] == 2  # 3 and 7
    assert sum(states.values()) == result.terms["rollout/count"][0] == R
    true = sum(len(sample.objects) for sample in stage.bench.samples[:R])
    assert result.terms["match/recall"][1] == true
    assert result.terms["coord/mass"][1] == 4 * true  # matched or appended, every true object is supervised


def test_phases_of_a_step_on_b_add_up(build):
    stage = build()
    seconds = stage.window.run(0, Mixed(stage.bench)).seconds
    assert set(seconds) == {"data", "rollout", "match", "segments", "wait", "forward_backward", "optimizer", "step"}
    assert 0 <= 2 * seconds["step"] - sum(seconds.values()) < 0.1  # what lies between the phases


def test_the_learning_rate_is_the_plans(build):
    stage = build(RATE)
    rates = []
    for step in range(2):
        result = stage.window.run(step, stage.channel)
        rates.append(result.learning_rate)
        assert {group["lr"] for group in stage.engine.optimizer.param_groups} == {result.learning_rate}
    assert rates == [0.005, 0.01]  # warm-up in two steps: 0.01 * 1 / 2, 0.01 * 2 / 2
    assert rates == [stage.plan.learning_rate(step) for step in range(2)]


def test_the_result_counts_samples_tokens_and_packs(build):
    stage = build({"training.packing": False})
    result = stage.window.run(0, stage.channel)
    lengths = [len(segment.input_ids) for segment in stage.bench.segments()[:R]]
    assert (result.samples, result.tokens, result.packs) == (R, sum(lengths), R)
    assert result.applied and result.skipped == ()
    assert set(result.terms) == set(TERM_NAMES)
    assert result.terms["loss/total"][1] == R
    assert result.loss == result.terms["loss/total"][0] / R
    num_slots = sum(len(segment.slots) for segment in stage.bench.segments()[:R])
    assert result.terms["coord/mass"][1] == num_slots
    assert set(result.seconds) == {"data", "segments", "wait", "forward_backward", "optimizer", "step"}


def test_packing_fills_packs_up_to_the_cap(build):
    stage = build()
    lengths = [len(segment.input_ids) for segment in stage.bench.segments()[:R]]
    result = stage.window.run(0, stage.channel)
    assert result.tokens == sum(lengths)
    assert sum(lengths) / stage.plan.global_max_length <= result.packs < R


def test_the_engine_trains_in_train_mode(build):
    # gradient checkpointing silently does nothing in eval mode
    assert build().bench.model.training
