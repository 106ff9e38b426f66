"""Tensors between two ends of a group, both in this process: what comes is what was sent, or an error in time."""

import ipaddress
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from ds_stage2ab.rollout.server.gloo import GlooLink, join
from tests.parts import ROOT
from tests.unit.rollout.server.two_machines import LEARNER

LIMIT_S = 20.0  # that no test waits for
SHORT_S = 1.0
ADDRESS = "127.0.0.2"  # of this machine too, and no host's name

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


def ends(*, timeout_s: float = LIMIT_S, address: str = "127.0.0.1"):
    """(the learner's end, the worker's)."""
    link = GlooLink(address, None, 2, timeout_s)
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


def listening() -> set[str]:
    """IPv4 addresses at which this process waits for connections, not those at any address."""
    own = {os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.islink(entry.path)}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    found = {row[1].split(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in own}
    return {str(ipaddress.ip_address(bytes.fromhex(address)[::-1])) for address in found} - {"0.0.0.0"}


def test_the_learner_waits_for_workers_where_the_server_sees_it():
    """Not where the host's name resolves to, which on many machines no other can reach."""
    before = listening()
    assert ADDRESS not in before
    link, worker = ends(address=ADDRESS)
    assert ADDRESS in listening()
    del link, worker


@pytest.mark.soak
def test_weights_travel_between_two_machines():
    """Two network namespaces; needs the right to make them (root, or user namespaces) and `ip` of iproute2."""
    command = ["unshare", "--map-root-user", "--net", sys.executable, "-m", "tests.unit.rollout.server.two_machines"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == {"from": LEARNER, "same": True}


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
