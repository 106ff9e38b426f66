"""One step on a real one-rank DeepSpeed engine: which samples, how many updates, how large, and what stops it."""

import re
from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch

from ds_stage2ab.carriers import Truth
from ds_stage2ab.clock import Clock
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine.build import build_engine, build_optimizer
from ds_stage2ab.engine.window import Window
from ds_stage2ab.errors import EXIT_TRAINING, DataError, TrainingFault
from ds_stage2ab.losses.objective import TERM_NAMES, Objective
from ds_stage2ab.packs.collate import collate
from ds_stage2ab.plan import RunPlan, make_plan
from tests.parts import as_tuples, config_values, merged, write_config
from tests.unit.parts import Bench, WrittenBackend, load_bench

NUM_SAMPLES = 16
R, PER_DEVICE, MICRO_STEPS = 8, 4, 2  # as in config_values: 8 = 4 x 1 rank x 2 micro-steps
RATE = {"training.lr_scheduler": "linear", "training.warmup_steps": 2, "training.max_steps": 4}
UPDATE_TOLERANCE = 1e-4  # of the update's norm, per tensor: the weights' own fp32 rounding is in it


class Watched:
    """Channel A with a diary of what it was asked."""

    name = "A"
    num_passes = 1
    term_names = ()

    def __init__(self, bench):
        self.bench = bench
        self.asked = []

    def segments(self, samples, step, clock):
        self.asked.append((step, [sample.draw for sample in samples]))
        return [self.bench.segments()[self.bench.samples.index(sample)] for sample in samples]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A window and everything around it."""

    bench: Bench
    plan: RunPlan
    objective: Objective
    engine: object
    window: Window
    channel: Watched
    drawn: list

    def weights(self):
        return {name: p.detach().clone() for name, p in self.bench.model.named_parameters()}


@pytest.fixture
def build(quickstart, world, tmp_path):
    """Makes a stage from changes to the small SGD run."""

    def built(changes=None):
        values = merged(config_values(quickstart, tmp_path, "window"), changes or {})
        config = load_config(write_config(tmp_path / "config.yaml", values)).config
        plan = make_plan(config, 1, NUM_SAMPLES)
        bench, drawn = load_bench(quickstart, num_samples=NUM_SAMPLES), []
        objective = Objective(bench.model, torch.tensor(bench.vocabulary.coordinate_ids), config.stage2_ab)
        engine = build_engine(objective, build_optimizer(objective, config.training), plan.deepspeed_config)

        def draw(step, micro_step):
            drawn.append((step, micro_step))
            first = step * R + micro_step * PER_DEVICE
            return bench.samples[first : first + PER_DEVICE]

        return Stage(
            bench=bench,
            plan=plan,
            objective=objective,
            engine=engine,
            window=Window(engine, plan, world, draw),
            channel=Watched(bench),
            drawn=drawn,
        )

    return built


def mean_loss_alone(stage, step):
    """`mean_of` Channel A's segments."""
    return mean_of(stage, stage.bench.segments()[step * R : (step + 1) * R])


def mean_of(stage, segments):
    """Mean over the step's samples of the objective's loss of each alone, and its gradient, by plain torch."""
    loss = sum(stage.objective(collate([segment], num_passes=1))[0] for segment in segments) / R
    named = dict(stage.bench.model.named_parameters())
    return loss.item(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def assert_bit_equal(seen, expected):
    """NaN equals NaN here."""
    assert seen.keys() == expected.keys()
    assert all(torch.equal(seen[name].view(torch.int32), tensor.view(torch.int32)) for name, tensor in expected.items())


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
    ],
    ids=["plain", "packing-off", "one-micro-step", "zero-1", "zero-2-packing-off"],
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
        wanted = -0.005 * tensor
        gap = (after[name] - before[name] - wanted).norm()
        rounding = 1e-7 * before[name].norm()
        assert gap <= UPDATE_TOLERANCE * wanted.norm() + rounding, name
    assert any(not torch.equal(after[name], before[name]) for name in before)


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


class Mixed:
    """Channel B whose answers find, miss, invent, break off and keep silent."""

    def __init__(self, bench):
        def written(*objects):
            return as_tuples(encode_answer(objects, bench.vocabulary, get_codec("array"))).ids[:-1]

        ghost = written(Truth(desc="ghost", box=(0, 0, 3, 3)))
        kinds = (lambda ids: ids, lambda ids: ids[: len(ids) // 2], lambda ids: ghost, lambda ids: ids[:0])
        answers = {sample.draw: kinds[sample.draw % 4](written(*sample.objects)) for sample in bench.samples}
        self.channel = bench.rollout_matching(WrittenBackend(answers))
        self.name, self.num_passes, self.term_names = "B", 1, self.channel.term_names
        self.made = []

    def segments(self, samples, step, clock):
        self.made = self.channel.segments(samples, step, clock)
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
        gap = (stage.weights()[name] - before[name] + 0.005 * tensor).norm()
        assert gap <= UPDATE_TOLERANCE * (0.005 * tensor).norm() + 1e-7 * before[name].norm(), name
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


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(build, zero_stage):
    stage = build({"deepspeed.zero_stage": zero_stage, "training.packing": False})
    # the row of an id that only the answer of one sample holds
    segments = stage.bench.segments()[:R]
    ids = [set(segment.input_ids.tolist()) for segment in segments]
    guilty = next(n for n in range(1, R) if ids[n] - set().union(*ids[:n]))
    only = min(ids[guilty] - set().union(*ids[:guilty]))
    table = stage.bench.model.get_input_embeddings().weight
    stage.bench.model.lm_head.weight = torch.nn.Parameter(table.detach().clone(), requires_grad=False)
    table.data[only] = torch.nan
    before = stage.weights()
    with pytest.raises(TrainingFault) as caught:
        stage.window.run(0, stage.channel)
    assert caught.value.code == EXIT_TRAINING
    assert caught.value.why == "a loss of step 1 is nan; no weight was changed by this step"
    assert caught.value.where == f"samples {segments[guilty].sample_id}"
    assert_bit_equal(stage.weights(), before)
    assert stage.engine.global_steps == 0


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_moves_no_weight(build, zero_stage, value):
    # a finite loss whose gradient overflows on its way to one weight; fp32 at stage 0 has no check of DeepSpeed's own
    stage = build({"deepspeed.zero_stage": zero_stage})
    stage.bench.model.model.language_model.norm.weight.register_hook(lambda gradient: gradient * value)
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
    bad = stage.window.run(0, stage.channel)
    hook.remove()
    norm.data.copy_(good)
    assert (bad.applied, bad.samples) == (False, R)
    assert "of step 1 is " in bad.fault and stage.bench.samples[0].id in bad.fault
    assert_bit_equal(stage.weights(), before)
    _, gradient = mean_loss_alone(stage, 1)
    after = stage.window.run(1, stage.channel)
    assert (after.applied, after.fault) == (True, "")
    for name, weight in stage.weights().items():
        update = 0.01 * gradient[name]
        gap, moved = (torch.linalg.vector_norm(x) for x in (before[name] - update - weight, update))
        assert gap <= UPDATE_TOLERANCE * moved + 1e-7


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
    with pytest.raises(TrainingFault, match=r"the gradient norm of step 1 is 0\.0, though something was supervised"):
        stage.window.run(0, stage.channel)


def test_a_step_that_supervises_nothing_is_legal_and_moves_nothing(build):
    stage = build()
    before, none = stage.weights(), torch.zeros(0, dtype=torch.long)

    class Silent(Watched):
        def segments(self, samples, step, clock):
            loud = super().segments(samples, step, clock)
            return [replace(one, weights=torch.zeros_like(one.weights), slots=none, bins=none) for one in loud]

    result = stage.window.run(0, Silent(stage.bench))
    assert (result.loss, result.grad_norm, result.samples) == (0.0, 0.0, R)
    assert_bit_equal(stage.weights(), before)


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
