"""New weights to servers: what arrives there and what is reported of it, over real Gloo."""

import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from threading import Semaphore
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

from ds_stage2ab.carriers import Transfer
from ds_stage2ab.config.servers import GLOO_TRANSFER
from ds_stage2ab.errors import ServerFault
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.weight_sync import Target, WeightSync
from tests.fakes import FakeServer, Fault
from tests.faults.served import Worker

LIMIT_S = 20.0  # that no test waits for


class Loading(Worker):
    """A worker that has the tensors of the last transfer."""

    def __init__(self):
        super().__init__()
        self.has = {}

    def take(self, bucket):
        begun = []
        for name, dtype, shape in zip(bucket["names"], bucket["dtype_names"], bucket["shapes"], strict=True):
            self.has[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            begun.append(self.group.begin(self.has[name]))
        for one in begun:
            self.group.finish(one)


@dataclass(frozen=True)
class Sent:
    """A tensor of the learner, as it is."""

    name: str
    tensor: torch.Tensor

    @property
    def needs(self):
        return (self.name,)

    def make(self):
        return self.tensor


def syncing(world, weights, *servers, trained=()):
    """Brings these tensors to the servers, in buckets of 40 bytes."""
    model = nn.Module()
    for name, tensor in weights.items():
        model.register_parameter(name, nn.Parameter(tensor, requires_grad=name in trained))
    provider = SimpleNamespace(model=model, part=lambda names, device, *, only_first: nullcontext())
    targets = [
        Target(
            api=ServerApi(server.base_url, timeout_s=LIMIT_S, connections=2),
            group_port=None,
            world_size=1,
            transfer=GLOO_TRANSFER,
        )
        for server in servers
    ]
    tensors = [Sent(name, tensor) for name, tensor in weights.items()]
    sync = WeightSync(provider, lambda: tensors, world, start_id="start", bucket_bytes=40, timeout_s=LIMIT_S)
    return sync, targets


# 6 fp32 numbers are 24 bytes, 5 bf16 10, 2 * 3 fp32 24, one fp32 4, none: 62 in all, in two buckets
WEIGHTS = {
    "fp32": torch.tensor([[1.5, -2.0, 0.1], [torch.inf, -0.0, 1e-40]]),
    "bf16": torch.tensor([1.0, 0.3333, -7.0, 3e38, 0.0]).to(torch.bfloat16),
    "turned": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).T,
    "scalar": torch.tensor(0.25),
    "none": torch.zeros(0, 4),
}


def test_every_server_has_the_learners_weights(world):
    with FakeServer(workers=Loading()) as one, FakeServer(workers=Loading()) as two:
        sync, targets = syncing(world, WEIGHTS, one, two)
        assert sync.sync_weights(3, targets) == {}
        assert [len(request.body["update_info"]["names"]) for request in updates(one)] == [2, 3]
    for server in (one, two):
        assert list(server.workers.has) == list(WEIGHTS)
        for name, tensor in WEIGHTS.items():
            come = server.workers.has[name]
            assert (come.dtype, come.shape) == (tensor.dtype, tensor.shape)
            assert come.tolist() == tensor.tolist()


def updates(server):
    return [request for request in server.requests if request.path == "/update_weights" and request.body["update_info"]]


def test_the_last_transfer_is_told(world):
    with FakeServer(workers=Loading()) as one, FakeServer(workers=Loading()) as two:
        sync, targets = syncing(world, WEIGHTS, one, two)
        assert sync.last is None
        begun = time.monotonic()
        sync.sync_weights(3, targets)
        first, whole_s = sync.last, time.monotonic() - begun
        assert first == Transfer(seconds=first.seconds, num_bytes=62), "what one server got"
        assert 0.9 * whole_s < first.seconds < whole_s, "everything counts, from the pause on"
        sync.sync_weights(3, targets)
        assert sync.last is first, "nothing was sent"
        sync.sync_weights(4, targets)
        assert sync.last is not first and sync.last.num_bytes == 62


def test_every_rank_is_told_what_rank_0_has_sent(world):
    """Rank 1 of two: it calls no server and sends nothing, and meets a rank 0 that has sent 62 bytes."""

    def largest(*values):
        return [max(pair) for pair in zip(values, (0, *rank_0[len(values)]), strict=True)]

    # (failed, what rank 0 says): servers that are behind, that are ready, by NCCL, that need all; bytes, servers; or
    # ready ones alone
    rank_0 = {5: (1, 1, 0, 1), 3: (62, 1), 2: (1,)}

    sync, targets = syncing(world, WEIGHTS)
    with mock.patch.multiple(world, rank=1, all_reduce_max=largest, broadcast_object=lambda value: value):
        assert sync.sync_weights(3, targets) == {}
    assert sync.last.num_bytes == 62


def test_a_transfer_that_fails_is_none(world):
    broken = Fault("500", path="/update_weights", when={2})
    with FakeServer(workers=Loading(), faults=(broken,)) as server:
        sync, targets = syncing(world, WEIGHTS, server)
        sync.sync_weights(3, targets)
        first = sync.last
        (fault,) = sync.sync_weights(4, targets).values()
        assert isinstance(fault, ServerFault) and "sending 2 tensors, the first fp32" in fault.why
        assert sync.last is first
        assert sync.sync_weights(3, targets) == {}, "the server may have some of either: those of before are sent again"


# --- the next bucket is made meanwhile --------------------------------------------------------------------------


class Waiting(Loading):
    """Its first bucket is loaded only when the learner has begun to gather the second."""

    def __init__(self):
        super().__init__()
        self.gathers = Semaphore(0)

    def take(self, bucket):
        super().take(bucket)
        if not self.gathers.acquire(timeout=5):
            raise RuntimeError("nothing was gathered meanwhile")


def test_a_bucket_is_gathered_while_the_one_before_is_loaded(world):
    """And what was gathered is let go before it has arrived."""
    with FakeServer(workers=Waiting()) as server:
        sync, targets = syncing(world, WEIGHTS, server)
        model, gathered = sync.provider.model, []

        @contextmanager
        def part(names, device, *, only_first):
            for name in names:
                gathered.append(name)
                getattr(model, name).data = WEIGHTS[name].clone()
            if len(gathered) > len(names):  # not of the first bucket
                server.workers.gathers.release(2)
            yield
            for name in names:
                getattr(model, name).data = torch.empty(0)

        tensors = [Made(name, getattr(model, name)) for name in WEIGHTS]
        sync.tensors = lambda: tensors
        sync.provider.part = part
        assert sync.sync_weights(3, targets) == {}
        assert sync.last.num_bytes == 62 and gathered == sorted(WEIGHTS, key=lambda name: (name not in MOVING, name))
        assert_has(server, WEIGHTS)


def test_no_room_for_the_next_bucket_lets_every_server_go_on(world):
    """One is on its way then."""
    with FakeServer(workers=Loading()) as server:
        sync, targets = syncing(world, WEIGHTS, server)
        (*most, last) = sync.tensors()
        sync.tensors = lambda: [*most, NoRoom("none", last.tensor)]
        with pytest.raises(MemoryError):
            sync.sync_weights(3, targets)
        assert server.state.paused == "" and server.state.weight_version == "default"
        sync.tensors = lambda: [*most, last]
        assert sync.sync_weights(3, targets) == {}
        assert_has(server, WEIGHTS)


class Made(Sent):
    """A tensor that is where its parameter lies now."""

    def make(self):
        return self.tensor.detach()


class NoRoom(Sent):
    def make(self):
        raise MemoryError("no room")


# --- what does not train is sent once ---------------------------------------------------------------------------

MOVING = {"fp32", "bf16"}  # 24 + 10 of the 62 bytes


def moved(weights):
    """One step further: what trains has doubled, in its place."""
    for name in MOVING:
        weights[name].mul_(2)


@pytest.fixture
def weights():
    return {name: tensor.clone() for name, tensor in WEIGHTS.items()}


def assert_has(server, weights):
    assert {name: come.tolist() for name, come in server.workers.has.items()} == {
        name: tensor.tolist() for name, tensor in weights.items()
    }


def sent_names(server):
    return [name for request in updates(server) for name in request.body["update_info"]["names"]]


def test_a_server_that_is_proven_is_sent_what_trains_and_a_new_one_everything(world, weights):
    with FakeServer(workers=Loading()) as old, FakeServer(workers=Loading()) as new:
        sync, (first, second) = syncing(world, weights, old, new, trained=MOVING)
        assert sync.sync_weights(0, [first]) == {} and sync.last.num_bytes == 62
        moved(weights)
        assert sync.sync_weights(1, [first]) == {} and sync.last.num_bytes == 62, "nobody has proven it yet"
        first.has_all = True
        before = len(sent_names(old))
        moved(weights)
        assert sync.sync_weights(2, [first]) == {} and sync.last.num_bytes == 34
        assert sent_names(old)[before:] == ["fp32", "bf16"]
        assert_has(old, weights)
        before = len(sent_names(old))
        moved(weights)
        assert sync.sync_weights(3, [first, second]) == {} and sync.last.num_bytes == 62, "what the new one got"
        assert sent_names(old)[before:] == ["fp32", "bf16"]
        assert sent_names(new) == ["turned", "scalar", "none", "fp32", "bf16"]
        for server in (old, new):
            assert_has(server, weights)
            assert server.state.weight_version == "start/3"


@pytest.mark.parametrize("seen", ["default", "other/9"])
def test_a_server_with_another_version_than_it_was_sent_gets_no_part(world, weights, seen):
    """It was started again, or another learner has sent it something: it may have any weights."""
    with FakeServer(workers=Loading()) as server:
        sync, (target,) = syncing(world, weights, server, trained=MOVING)
        sync.sync_weights(0, [target])
        target.has_all = True
        server.state.weight_version, before = seen, len(updates(server))
        (fault,) = sync.sync_weights(1, [target]).values()
        assert f"the server has the weights {seen}, not the current ones, start/0" in fault.why
        assert len(updates(server)) == before and server.state.paused == ""
        moved(weights)
        assert sync.sync_weights(1, [target]) == {} and sync.last.num_bytes == 62
        assert_has(server, weights)


@pytest.mark.parametrize("path", ["/pause", "/start_weight_update", "/update_weights", "/finish_weight_update"])
def test_a_server_that_has_failed_is_sent_everything(world, weights, path):
    failing = Fault("500", path=path, when=lambda number, body: fails["now"])
    fails = {"now": False}
    with FakeServer(workers=Loading(), faults=(failing,)) as server:
        sync, (target,) = syncing(world, weights, server, trained=MOVING)
        sync.sync_weights(0, [target])
        target.has_all, fails["now"] = True, True
        assert sync.sync_weights(1, [target])
        fails["now"] = False
        moved(weights)
        assert sync.sync_weights(1, [target]) == {} and sync.last.num_bytes == 62
        assert_has(server, weights)


def test_a_new_server_that_fails_does_not_keep_the_others_from_what_trains(world, weights):
    bad = FakeServer(workers=Loading(), faults=(Fault("500", path="/update_weights"),))
    with FakeServer(workers=Loading()) as good, bad:
        sync, (first, second) = syncing(world, weights, good, bad, trained=MOVING)
        sync.sync_weights(0, [first])
        first.has_all = True
        moved(weights)
        assert list(sync.sync_weights(1, [first, second])) == [bad.base_url]
        assert sync.last.num_bytes == 34
        assert_has(good, weights)
