"""A window on a real DeepSpeed engine, and what a step on it should have done, by plain torch."""

from collections.abc import Callable
from dataclasses import dataclass

import deepspeed
import torch
from torch import nn

from ds_stage2ab.config.sections import Config
from ds_stage2ab.engine.build import DTYPES, build_engine, build_optimizer
from ds_stage2ab.engine.tuner import FULL, add_adapters
from ds_stage2ab.engine.window import Window
from ds_stage2ab.losses.objective import Objective
from ds_stage2ab.packs.collate import collate
from ds_stage2ab.plan import RunPlan, make_plan
from ds_stage2ab.runtime.ranks import World
from tests.parts import Quickstart
from tests.unit.parts import Bench, load_bench

NUM_SAMPLES = 16
R, PER_DEVICE, MICRO_STEPS = 8, 4, 2  # as in config_values: 8 = 4 x 1 rank x 2 micro-steps
RATE = {"training.lr_scheduler": "linear", "training.warmup_steps": 2, "training.max_steps": 4}
UPDATE_TOLERANCE = 1e-4  # of the update's norm, per tensor: the weights' own fp32 rounding is in it


class Watched:
    """Channel A with a diary of what it was asked."""

    name = "A"
    num_passes = 1
    streams = False
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
        named = dict(self.bench.model.named_parameters())
        with deepspeed.zero.GatheredParameters(list(named.values())):  # of no effect below stage 3
            return {name: parameter.detach().clone() for name, parameter in named.items()}


def stage_of(
    config: Config, world: World, parts: Quickstart, before: Callable[[nn.Module], None] = lambda model: None
) -> Stage:
    """Of a config, on this rank of the world; each rank has its own samples of a step.

    Args:
        before: is called with the model before DeepSpeed gets it.
    """
    plan = make_plan(config, world.size, max(NUM_SAMPLES, config.training.effective_batch_size))
    bench, drawn = load_bench(parts, num_samples=NUM_SAMPLES), []
    for parameter in bench.model.parameters():
        parameter.data = parameter.data.to(DTYPES[config.model.precision])
    if config.tuner.type != FULL:
        coordinates = bench.vocabulary.coordinate_ids
        add_adapters(bench.model, config.tuner, config.model.freeze, coordinates, seed=0, source=parts.model)
    before(bench.model)
    objective = Objective(bench.model, torch.tensor(bench.vocabulary.coordinate_ids), config.stage2_ab)
    engine = build_engine(objective, build_optimizer(objective, config.training), plan.deepspeed_config)

    def draw(step, micro_step):
        drawn.append((step, micro_step))
        first = step * R + (micro_step * world.size + world.rank) * PER_DEVICE
        return bench.samples[first : first + PER_DEVICE]

    return Stage(
        bench=bench,
        plan=plan,
        objective=objective,
        engine=engine,
        window=Window(engine, plan, world, draw, bench.dummy_segment()),
        channel=Watched(bench),
        drawn=drawn,
    )


def mean_loss_alone(stage, step):
    """`mean_of` Channel A's segments."""
    return mean_of(stage, stage.bench.segments()[step * R : (step + 1) * R])


def mean_of(stage, segments):
    """Mean over the step's samples of the objective's loss of each alone, and its gradient, by plain torch."""
    loss = sum(stage.objective(collate([segment], num_passes=1))[0] for segment in segments) / R
    named = dict(stage.bench.model.named_parameters())
    return loss.item(), dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def moved_by(after, before, wanted):
    """Whether a tensor made this update, but for the rounding of its own fp32 values."""
    gap = (after - before - wanted).norm()
    return bool(gap <= UPDATE_TOLERANCE * wanted.norm() + 1e-7 * before.norm())


def assert_bit_equal(seen, expected):
    """NaN equals NaN here."""
    assert seen.keys() == expected.keys()
    assert all(torch.equal(seen[name].view(torch.int32), tensor.view(torch.int32)) for name, tensor in expected.items())
