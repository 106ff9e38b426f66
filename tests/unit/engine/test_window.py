"""One step on a real one-rank DeepSpeed engine: which samples, how many updates, how large, and what stops it."""

import re
from dataclasses import dataclass, replace
from unittest import mock

import pytest
import torch

from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine.build import build_engine, build_optimizer
from ds_stage2ab.engine.window import Window
from ds_stage2ab.errors import EXIT_TRAINING, DataError, TrainingFault
from ds_stage2ab.losses.objective import TERM_NAMES, Objective
from ds_stage2ab.packs.collate import collate
from ds_stage2ab.plan import RunPlan, make_plan
from tests.parts import config_values, merged, write_config
from tests.unit.parts import Bench, load_bench

NUM_SAMPLES = 16
R, PER_DEVICE, MICRO_STEPS = 8, 4, 2  # as in config_values: 8 = 4 x 1 rank x 2 micro-steps
RATE = {"training.lr_scheduler": "linear", "training.warmup_steps": 2, "training.max_steps": 4}
UPDATE_TOLERANCE = 1e-4  # of the update's norm, per tensor: the weights' own fp32 rounding is in it


class Watched:
    """Channel A with a diary of what it was asked."""

    name = "A"
    num_passes = 1

    def __init__(self, bench):
        self.bench = bench
        self.asked = []

    def segments(self, samples, step):
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
    """Mean over the step's samples of the objective's loss of each alone, and its gradient, by plain torch."""
    segments = stage.bench.segments()[step * R : (step + 1) * R]
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
    assert tuple(result.terms) == TERM_NAMES
    assert result.terms["loss/total"][1] == R
    assert result.loss == result.terms["loss/total"][0] / R
    num_slots = sum(len(segment.slots) for segment in stage.bench.segments()[:R])
    assert result.terms["coord/mass"][1] == num_slots
    phases = ("data", "segments", "forward_backward", "optimizer")
    assert result.seconds["step"] == pytest.approx(sum(result.seconds[phase] for phase in phases))


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
        def segments(self, samples, step):
            loud = super().segments(samples, step)
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
