"""What several files about the engine share."""

import pytest

from ds_stage2ab.config.load import load_config
from tests.parts import config_values, merged, write_config
from tests.unit.engine.stage import stage_of


@pytest.fixture
def build(quickstart, world, tmp_path):
    """Makes a stage from changes to the small SGD run; `parts` are another checkpoint and its data."""

    def built(changes=None, parts=quickstart):
        values = merged(config_values(parts, tmp_path, "window"), changes or {})
        config = load_config(write_config(tmp_path / "config.yaml", values)).config
        return stage_of(config, world, parts)

    return built
