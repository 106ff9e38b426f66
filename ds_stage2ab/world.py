"""The learner ranks: who am I, and the few things that all ranks do together.

Every method here is a collective: all ranks call it, in the same order, or none does.
"""

import os
import socket
from typing import TypeVar

import torch
import torch.distributed as dist

from ds_stage2ab.errors import Stage2Error

T = TypeVar("T")


def fill_launcher_variables() -> None:
    """Let a script that no launcher started run as one rank; a launcher's own variables win."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.update(alone)


class World:
    """The default process group of this run.

    Args:
        device: where collectives take their tensors ("cpu" for Gloo, "cuda:<local rank>" for NCCL).
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()

    def all_max(self, value: int) -> int:
        """Largest value over all ranks."""
        box = torch.tensor([value], dtype=torch.long, device=self.device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return int(box.item())

    def all_sum(self, values: torch.Tensor) -> torch.Tensor:
        """Element-wise sum over all ranks, float64 in and out, on the CPU."""
        total = values.to(self.device, dtype=torch.float64, copy=True)
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total.cpu()

    def gather(self, value: T) -> list[T]:
        """Every rank's picklable value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        everybody: list = [None] * self.size
        dist.all_gather_object(everybody, value)
        return everybody

    def from_first(self, value: T) -> T:
        """Rank 0's picklable value, on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def close(self) -> None:
        """Leave the process group: on the interpreter's own way down its threads may abort the process."""
        dist.destroy_process_group()

    def agree_on_failure(self) -> "Agreement":
        """`with world.agree_on_failure():` around a block without collectives that may fail on some ranks."""
        return Agreement(self)


class Agreement:
    """At the end of the block all ranks exchange what happened; if one failed, every rank raises the same error.

    The lowest failing rank speaks for all, so that all ranks leave with its message and exit code.
    """

    def __init__(self, world: World) -> None:
        self.world = world

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not self.world.all_max(int(error is not None)):
            return False
        seen = self.world.gather(_portable(error))
        first = next(rank for rank, failure in enumerate(seen) if failure is not None)
        if first == self.world.rank:
            return False  # our own error goes on as it is
        failure = seen[first]
        raise type(failure)(f"rank {first}: {failure.why}", where=failure.where, fix=failure.fix) from error


def _portable(error: BaseException | None) -> Stage2Error | None:
    """An error that can travel to another rank."""
    if error is None or isinstance(error, Stage2Error):
        return error
    return Stage2Error(f"{type(error).__name__}: {error}")
