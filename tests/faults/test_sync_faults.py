"""A server that does not take its weights ends the transfer in bounded time, and is not left paused.

Fake servers whose worker really meets the learner over Gloo; the learner's side is `WeightSync` itself.
"""

import os
import socket
import time
from contextlib import contextmanager
from functools import partial
from unittest import mock

import pytest
from torch import nn

from ds_stage2ab.config.servers import GLOO_TRANSFER
from ds_stage2ab.engine.build import start_process_group
from ds_stage2ab.engine.tuner import merged_tensors
from ds_stage2ab.errors import EXIT_ENVIRONMENT, ServerFault
from ds_stage2ab.rollout.server import http_client, weight_sync
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.weight_sync import Target, WeightSync
from ds_stage2ab.runtime.ranks import World, fill_launcher_variables
from tests.fakes import FakeServer, Fault
from tests.faults.served import Worker
from tests.unit.parts import load_bench
from tests.unit.serving import backend_of

SYNC_S = 1.0  # longest wait for each part of a transfer
SPARE_S = 0.5
LONGEST_S = 6  # of a transfer that fails: tries, and the workers' part beside the learner's


@pytest.fixture(scope="module")
def world():
    with mock.patch.dict(os.environ):
        fill_launcher_variables()
        yield World(start_process_group(1800))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE_S", 0.005)
    monkeypatch.setattr(weight_sync, "SPARE_S", SPARE_S)


class ParameterProvider:
    """Two layers of a learner, and how often somebody asked for their weights."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        self.asked = 0

    @contextmanager
    def part(self, names, device, *, only_first):
        self.asked += 1
        yield


def syncing(world, *servers, group_port=None, start_id="start"):
    """(what brings the weights after so many steps to the servers, in buckets of a tensor each, the layers)."""
    provider = ParameterProvider()
    targets = [
        Target(
            api=ServerApi(server.base_url, timeout_s=SYNC_S, connections=2),
            group_port=group_port,
            world_size=1,
            transfer=GLOO_TRANSFER,
        )
        for server in servers
    ]
    sync = WeightSync(
        provider, lambda: merged_tensors(provider.model), world, start_id=start_id, bucket_bytes=1, timeout_s=SYNC_S
    )
    return partial(sync.sync_weights, targets=targets), provider


def fault_of_bringing(sync):
    """The fault, which comes in time."""
    begun = time.monotonic()
    ((address, fault),) = sync(3).items()
    assert time.monotonic() - begun < LONGEST_S
    assert isinstance(fault, ServerFault) and fault.code == EXIT_ENVIRONMENT and fault.fix
    assert address.startswith("http://127.0.0.1:")
    return fault


def test_weights_arrive(world):
    with FakeServer(workers=Worker()) as server:
        sync, provider = syncing(world, server)
        assert (sync(3), sync(3), sync(4)) == ({}, None, {})
        assert (server.state.weight_version, server.state.paused) == ("start/4", "")
    assert server.workers.taken == provider.asked == 2 * 4  # two weights and two biases, twice
    asked = [request.path for request in server.requests]
    assert asked.count("/init_weight_transfer_engine") == 1
    caches = ["/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"]
    assert asked[:5] == ["/pause", *caches, "/init_weight_transfer_engine"]
    assert asked[5] == "/start_weight_update" and asked[9:12] == ["/update_weights", "/finish_weight_update", "/resume"]


# path -> (what was being done, whether weights had been gathered for it)
STAGES = {
    "/pause": ("pausing the server", False),
    "/reset_prefix_cache": ("emptying its caches", False),
    "/reset_mm_cache": ("emptying its caches", False),
    "/init_weight_transfer_engine": ("connecting for the transfer of weights", False),
    "/start_weight_update": ("starting a weight update", False),
    "/update_weights": ("sending 1 tensors, the first 0.weight", True),
    "/finish_weight_update": ("finishing a weight update", True),
    "/resume": ("resuming the server", True),
}


@pytest.mark.parametrize("kind", ["hang", "drip", "500", "half"])
@pytest.mark.parametrize("path", STAGES)
def test_a_stage_fails(world, path, kind):
    """No weights are gathered, and none sent, before the server has said yes to everything in front of it."""
    doing, gathered = STAGES[path]
    with FakeServer(workers=Worker(), faults=(Fault(kind, path=path),)) as server:
        sync, provider = syncing(world, server)
        fault = fault_of_bringing(sync)
        assert fault.where == server.base_url and fault.why.startswith(f"{doing}: ")
        assert path in fault.why or path in ("/init_weight_transfer_engine", "/update_weights")
        assert bool(provider.asked) == gathered
        finished = path == "/resume" or (path, kind) == ("/finish_weight_update", "half")
        assert server.state.weight_version == ("start/3" if finished else "default")
        assert server.requests[-1].path == "/resume"
        assert server.state.paused == ("abort" if path == "/resume" and kind != "half" else "")


@pytest.mark.parametrize("path", ["/init_weight_transfer_engine", "/update_weights", "/finish_weight_update"])
def test_the_next_transfer_to_the_same_server_succeeds(world, path):
    """Of the same learner and of a new one; an update that was left open is closed, and all weights are sent again."""
    with FakeServer(workers=Worker(), faults=(Fault("500", path=path, when={0}),)) as server:
        sync, _ = syncing(world, server)
        fault_of_bringing(sync)
        assert sync(3) == {}
        assert (server.state.weight_version, server.state.updating) == ("start/3", False)
        server.state.updating = True
        server.state.paused = "abort"
        other, _ = syncing(world, server, start_id="other")
        assert other(0) == {}
        assert (server.state.weight_version, server.state.updating, server.state.paused) == ("other/0", False, "")


def test_an_update_that_breaks_off_in_the_middle_gives_no_version(world):
    with FakeServer(workers=Worker(), faults=(Fault("500", path="/update_weights", when={2}),)) as server:
        sync, _ = syncing(world, server)
        fault = fault_of_bringing(sync)
        assert "sending 1 tensors, the first 1.weight" in fault.why
        assert server.workers.taken == 2 and server.state.weight_version == "default"


def test_the_group_port_is_taken(world):
    with FakeServer(workers=Worker()) as server, socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        sync, _ = syncing(world, server, group_port=port)
        fault = fault_of_bringing(sync)
        assert fault.where == f"127.0.0.1:{port}" and "group_port" in fault.fix
        assert server.state.paused == ""
        assert "/init_weight_transfer_engine" not in [request.path for request in server.requests]


def test_the_workers_never_come(world):
    """The server says that it calls them; a firewall may be in between."""
    with FakeServer(workers=None) as server:
        sync, _ = syncing(world, server)
        fault = fault_of_bringing(sync)
        assert fault.where == server.base_url and fault.why.startswith("connecting for the transfer of weights: ")
        assert "workers must reach rank 0 at 127.0.0.1:" in fault.fix and "firewall" in fault.fix
        assert server.state.paused == ""


@pytest.mark.parametrize("path", ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update"])
@pytest.mark.parametrize("kind", ["hang", "500"])
def test_one_of_two_servers_fails(world, path, kind):
    """The other gets all weights, and both are let go on."""
    bad = FakeServer(workers=Worker(), faults=(Fault(kind, path=path),))
    with FakeServer(workers=Worker()) as good, bad:
        sync, _ = syncing(world, bad, good)
        assert fault_of_bringing(sync).where == bad.base_url
        assert good.state.paused == bad.state.paused == ""
        assert (good.state.weight_version, bad.state.weight_version) == ("start/3", "default")
        assert good.workers.taken == 4


def test_a_server_that_keeps_its_weights_is_sent_them_once_more(world, quickstart):
    """It says yes to everything, and has the version of before."""
    bench = load_bench(quickstart, num_samples=1)
    with FakeServer(workers=Worker()) as server:
        server.state.keeps_version = True
        provider = ParameterProvider()
        sync = WeightSync(
            provider, lambda: merged_tensors(provider.model), world, start_id="start", bucket_bytes=1, timeout_s=SYNC_S
        )
        backend = backend_of(bench, [server], sync=sync, world=world)
        told = "the server has the weights default, not the current ones, start/3"
        with pytest.raises(ServerFault, match=told) as caught, backend.current_weights(3):
            pytest.fail("nothing may be drawn")
        assert [request.path for request in server.requests].count("/finish_weight_update") == 2
        assert caught.value.where == server.base_url and caught.value.fix
        server.state.keeps_version = False
        with backend.current_weights(4):
            assert server.state.weight_version == "start/4"
