"""Tensors between two ends of a group, both in this process: what comes is what was sent, or an error in time."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch

from ds_stage2ab.rollout.server.gloo import GlooLink, join

LIMIT_S = 20.0  # that no test waits for
SHORT_S = 1.0

TENSORS = {
    "fp32": torch.tensor([[1.5, -2.0, 0.1], [torch.inf, -0.0, 1e-40]]),
    "bf16": torch.tensor([1.0, 0.3333, -7.0, 3e38, 0.0]).to(torch.bfloat16),
    "fp8": torch.tensor([[0.5], [-448.0]]).to(torch.float8_e4m3fn),
    "int64": torch.tensor([[2**62], [-1], [0]]),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(0.25),
    "none": torch.zeros(0, 4),
    "large": torch.arange(2**20),
}


def ends(*, timeout_s: float = LIMIT_S):
    """(the learner's end, the worker's)."""
    link = GlooLink("127.0.0.1", None, 2, timeout_s)
    told = link.invitation()
    with ThreadPoolExecutor(max_workers=1) as pool:
        joining = pool.submit(join, told["address"], told["port"], 1, told["size"], timedelta(seconds=timeout_s))
        link.join()
        return link, joining.result(timeout=LIMIT_S)


def taken(worker, tensors):
    """What arrives when tensors like these are expected; all of them are begun before the first is there."""
    come = [torch.empty_like(tensor) for tensor in tensors]
    for begun in [worker.begin(tensor) for tensor in come]:
        worker.finish(begun)
    return come


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


def test_tensors_of_every_type_arrive_bit_for_bit_and_in_order():
    link, worker = ends()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for sent in (list(TENSORS.values()), list(TENSORS.values())[::-1]):
            sending = pool.submit(link.send, sent)
            come = taken(worker, sent)
            sending.result(timeout=LIMIT_S)
            assert all(same_bytes(one, other) for one, other in zip(sent, come, strict=True))


def test_a_tensor_that_does_not_lie_in_order_is_no_place_to_receive_into():
    """A copy of it would be filled, and the tensor itself never."""
    _, worker = ends()
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        worker.begin(torch.zeros(2, 3).T)


def test_a_worker_that_takes_nothing_is_waited_for_in_bounds():
    link, _worker = ends(timeout_s=SHORT_S)
    begun = time.monotonic()
    with pytest.raises(RuntimeError):
        link.send([TENSORS["large"], TENSORS["fp32"]])
    assert time.monotonic() - begun < 3 * SHORT_S


def test_a_learner_that_is_gone_is_noticed():
    link, worker = ends()
    begun, coming = time.monotonic(), worker.begin(torch.empty(3))
    del link
    with pytest.raises(RuntimeError):
        worker.finish(coming)
    assert time.monotonic() - begun < LIMIT_S / 2
