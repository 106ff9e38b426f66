"""The servers of a run, and a probe that knows which of them compute with other weights."""

import pytest
from torch import nn

from ds_stage2ab.engine.tuner import merged_tensors
from ds_stage2ab.rollout.server import fleet, http_client, proving
from ds_stage2ab.rollout.server.weight_sync import WeightSync
from tests.faults.test_sync_faults import ParameterProvider
from tests.unit.parts import load_bench
from tests.unit.rollout.server.proofs import Probing, SmallScenes
from tests.unit.serving import LONG, backend_of

PAUSE_S = 0.0


@pytest.fixture(scope="module")
def scenes(quickstart):
    return SmallScenes(load_bench(quickstart, num_samples=6), quickstart)


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(fleet, "FIRST_PAUSE_S", PAUSE_S)
    monkeypatch.setattr(proving, "LONGEST_WAIT_S", PAUSE_S)


@pytest.fixture
def drawing(scenes, world):
    """(backend, probe) of these servers."""

    def opened(*servers, **more):
        model = ParameterProvider()
        model.model[0].requires_grad_(False)
        sync = WeightSync(
            model, lambda: merged_tensors(model.model), world, start_id="start", bucket_bytes=100, timeout_s=5.0
        )
        probe = Probing()
        settings = {"sync": sync, "world": world, "probe": probe, "recover_s": LONG, "probe_every": 1, **more}
        return backend_of(scenes.bench, list(servers), **settings), probe

    assert isinstance(ParameterProvider().model, nn.Module)
    return opened
