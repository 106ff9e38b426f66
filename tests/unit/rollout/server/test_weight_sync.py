"""New weights to servers: what arrives there and what is told of it, over real Gloo; which tensors travel together."""

import time
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

from ds_stage2ab.carriers import Transfer
from ds_stage2ab.config.servers import GLOO_TRANSFER
from ds_stage2ab.errors import ServerFault
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.weight_sync import Target, WeightSync, buckets
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


def syncing(world, weights, *servers):
    """Brings these tensors to the servers, in buckets of 40 bytes."""
    model = nn.Module()
    for name, tensor in weights.items():
        model.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
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
    return [request for request in server.requests if request.path == "/update_weights"]


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

    # (failed, what rank 0 says): servers that are behind, that are ready, by NCCL; bytes, servers; or ready ones alone
    rank_0 = {4: (1, 1, 0), 3: (62, 1), 2: (1,)}

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


# --- which tensors travel together ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needed:
    """A tensor of a checkpoint, by the parameters it is made from."""

    name: str
    needs: tuple[str, ...]


@pytest.fixture
def model():
    """Parameters a to e of 40, 20, 60, 200 and 12 bytes."""
    made = nn.Module()
    for name, count, dtype in (("a", 10, torch.float32), ("b", 10, torch.bfloat16), ("c", 15, torch.float32)):
        made.register_parameter(name, nn.Parameter(torch.zeros(count, dtype=dtype)))
    made.register_parameter("d", nn.Parameter(torch.zeros(50)))
    made.register_parameter("e", nn.Parameter(torch.zeros(3)))
    return made


def names(model: nn.Module, tensors: list[Needed], most_bytes: int) -> list[str]:
    return ["".join(one.name for one in bucket) for bucket in buckets(tensors, model, most_bytes)]


def plain(letters: str) -> list[Needed]:
    return [Needed(letter, (letter,)) for letter in letters]


def test_buckets_hold_at_most_so_many_bytes(model):
    # 40 + 20 = 60; with c 120; d is larger than any of these limits and travels alone; e begins a new one
    assert names(model, plain("abcde"), 60) == ["ab", "c", "d", "e"]
    assert names(model, plain("abcde"), 59) == ["a", "b", "c", "d", "e"]
    assert names(model, plain("abcde"), 120) == ["abc", "d", "e"]
    assert names(model, plain("abcde"), 332) == ["abcde"]
    assert names(model, plain("abcde"), 331) == ["abcd", "e"]


def test_a_large_tensor_does_not_take_a_later_one_with_it(model):
    assert names(model, plain("dea"), 60) == ["d", "ea"]


def test_a_tensor_weighs_what_it_is_made_from(model):
    """Merged of a base (200) and two adapters (20 + 12): 232."""
    merged = Needed("m", ("d", "b", "e"))
    assert names(model, [*plain("a"), merged, *plain("c")], 272) == ["am", "c"]
    assert names(model, [*plain("a"), merged, *plain("c")], 271) == ["a", "m", "c"]


def test_partitioned_parameters_weigh_what_they_are_whole(model):
    """ZeRO 3 leaves nothing of a parameter here, and its number of elements in `ds_numel`."""
    whole = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data = torch.zeros(0, dtype=parameter.dtype)
        parameter.ds_numel = whole[name]
    assert names(model, plain("abcde"), 60) == ["ab", "c", "d", "e"]
    assert names(model, plain("abcde"), 331) == ["abcd", "e"]
