"""What several files about the engine share."""

import pytest
import torch

from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine.build import DTYPES, build_engine, build_optimizer
from ds_stage2ab.engine.tuner import FULL, add_adapters
from ds_stage2ab.engine.window import Window
from ds_stage2ab.losses.objective import Objective
from ds_stage2ab.plan import make_plan
from tests.parts import config_values, merged, write_config
from tests.unit.engine.stage import NUM_SAMPLES, PER_DEVICE, R, Stage, Watched
from tests.unit.parts import load_bench


@pytest.fixture
def build(quickstart, world, tmp_path):
    """Makes a stage from changes to the small SGD run; `parts` are another checkpoint and its data."""

    def built(changes=None, parts=quickstart):
        values = merged(config_values(parts, tmp_path, "window"), changes or {})
        config = load_config(write_config(tmp_path / "config.yaml", values)).config
        plan = make_plan(config, 1, NUM_SAMPLES)
        bench, drawn = load_bench(parts, num_samples=NUM_SAMPLES), []
        for parameter in bench.model.parameters():
            parameter.data = parameter.data.to(DTYPES[config.model.precision])
        if config.tuner.type != FULL:
            coordinates = bench.vocabulary.coordinate_ids
            add_adapters(bench.model, config.tuner, config.model.freeze, coordinates, seed=0, source=parts.model)
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
            window=Window(engine, plan, world, draw, bench.dummy_segment()),
            channel=Watched(bench),
            drawn=drawn,
        )

    return built
