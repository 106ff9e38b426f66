"""What several files about the engine share."""

import pytest
import torch

from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine.build import build_engine, build_optimizer
from ds_stage2ab.engine.window import Window
from ds_stage2ab.losses.objective import Objective
from ds_stage2ab.plan import make_plan
from tests.parts import config_values, merged, write_config
from tests.unit.engine.stage import NUM_SAMPLES, PER_DEVICE, R, Stage, Watched
from tests.unit.parts import load_bench


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
            window=Window(engine, plan, world, draw, bench.stand_in()),
            channel=Watched(bench),
            drawn=drawn,
        )

    return built
