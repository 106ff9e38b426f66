"""What several files about the engine share."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import Qwen2VLImageProcessorPil

from ds_stage2ab.config.load import load_config
from ds_stage2ab.engine.build import build_engine, build_optimizer
from ds_stage2ab.engine.checkpoint import Checkpoints
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.losses.objective import Objective
from ds_stage2ab.plan import make_plan
from tests.parts import config_values, merged, write_config
from tests.unit.engine.saving import section
from tests.unit.engine.stage import stage_of
from tests.unit.parts import load_bench


@pytest.fixture
def build(quickstart, world, tmp_path):
    """Makes a stage from changes to the small SGD run; `parts` are another checkpoint and its data."""

    def built(changes=None, parts=quickstart, before=lambda model: None):
        values = merged(config_values(parts, tmp_path, "window"), changes or {})
        config = load_config(write_config(tmp_path / "config.yaml", values)).config
        return stage_of(config, world, parts, before)

    return built


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=1)


@pytest.fixture(scope="module")
def engine(quickstart, bench, world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    config = load_config(write_config(folder / "c.yaml", config_values(quickstart, folder, "checkpoint"))).config
    objective = Objective(bench.model, torch.tensor(bench.vocabulary.coordinate_ids), config.stage2_ab)
    optimizer = build_optimizer(objective, config.training)
    return build_engine(objective, optimizer, make_plan(config, 1, 64).deepspeed_config)


@pytest.fixture
def source(quickstart, tmp_path):
    """A copy of the checkpoint that the run started from, for a test to damage."""
    return Path(shutil.copytree(quickstart.model, tmp_path / "source"))


@pytest.fixture
def own(source):
    """The source's own image processor."""
    return Qwen2VLImageProcessorPil.from_pretrained(source)


@pytest.fixture
def whole_model(bench, world):
    return WholeModel(bench.model, world, is_partitioned=False)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def checkpoints(source, own, engine, whole_model, world, tmp_path, warnings):
    parts = (tmp_path / "checkpoints", source, own, engine, whole_model, world)
    return Checkpoints(*parts, section=section(), warn=warnings.append)
