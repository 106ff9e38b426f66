"""A broadcast of tensors from this process to one of its own, and nothing else: what Gloo takes for the same bytes.

    python -m tests.bench.raw_broadcast PORT ROUNDS NUM_ELEMENTS,NUM_ELEMENTS,...
"""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from tests.parts import ROOT

LIMIT = timedelta(seconds=120)  # one round; the other end may wait that long for it to begin


class Broadcast:
    """One end: rank 0 sends, rank 1 receives."""

    def __init__(self, store: dist.Store, rank: int, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors
        self._store = store  # lives as long as the group
        self._group = dist.ProcessGroupGloo(store, rank, 2, LIMIT)

    def __call__(self) -> float:
        """Seconds of a round: every tensor once, until both ends have all."""
        self._meet()
        begun = time.perf_counter()
        for tensor in self.tensors:
            options = dist.BroadcastOptions()
            options.rootRank, options.rootTensor, options.timeout = 0, 0, LIMIT
            self._group.broadcast([tensor], options).wait(LIMIT)
        self._meet()
        return time.perf_counter() - begun

    def _meet(self) -> None:
        self._group.barrier().wait(LIMIT)


@contextmanager
def broadcast_to_another_process(tensors: Sequence[Tensor], rounds: int) -> Iterator[Broadcast]:
    """Sends fp32 tensors; `rounds` is how often it will be called, the other end is waited for."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=LIMIT)
    numbers = ",".join(str(tensor.numel()) for tensor in tensors)
    command = [sys.executable, "-m", "tests.bench.raw_broadcast", str(store.port), str(rounds), numbers]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            yield Broadcast(store, 0, tensors)
            assert process.wait(timeout=LIMIT.total_seconds()) == 0
        finally:
            process.kill()


def receive(port: str, rounds: str, numbers: str) -> None:
    store = dist.TCPStore("127.0.0.1", int(port), is_master=False, timeout=LIMIT)
    end = Broadcast(store, 1, [torch.zeros(int(number)) for number in numbers.split(",")])
    for _ in range(int(rounds)):
        end()


if __name__ == "__main__":
    receive(*sys.argv[1:])
