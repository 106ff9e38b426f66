"""The Gloo group beside the training group, in which the ranks agree.

Under NCCL a collective that has lost a rank ends the process from a thread of NCCL's own, without an error that could
be caught, named or given an exit code. In this group it is an error after the same time-out, on every device.
"""

import ipaddress
import os
import pickle
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ds_stage2ab.runtime.gloo import address_towards, gloo_group

PREFIX = "ds_stage2ab/control"


class ControlGroup:
    """All ranks of the default process group; tensors lie on the CPU.

    Every method is a collective and raises a RuntimeError if a rank is gone, or does not come within the time-out of
    the default process group.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        store = dist.PrefixStore(PREFIX, dist.group.WORLD.get_group_store())
        address = _own_address(store, self.rank, self.size)
        self._group = gloo_group(store, self.rank, self.size, store.timeout, address=address)

    def all_reduce(self, tensor: Tensor, op: dist.ReduceOp.RedOpType) -> None:
        """Reduce over all ranks, in place."""
        options = dist.AllreduceOptions()
        options.reduceOp = op
        self._group.allreduce([tensor], options).wait()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable value, by rank."""
        own = _as_bytes(value)
        lengths = [torch.zeros(1, dtype=torch.long) for _ in range(self.size)]
        self._group.allgather([lengths], [torch.tensor([len(own)])]).wait()
        longest = max(int(length) for length in lengths)
        parts = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.size)]
        self._group.allgather([parts], [torch.cat([own, own.new_zeros(longest - len(own))])]).wait()
        return [_as_value(part[: int(length)]) for part, length in zip(parts, lengths, strict=True)]

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable value."""
        own = _as_bytes(value) if self.rank == 0 else None
        length = torch.tensor([0 if own is None else len(own)])
        self._group.broadcast(length, 0).wait()
        content = torch.zeros(int(length), dtype=torch.uint8) if own is None else own
        self._group.broadcast(content, 0).wait()
        return _as_value(content)


def _own_address(store: dist.Store, rank: int, size: int) -> str:
    """The address that faces rank 0, or, beside rank 0 on its machine, one that faces a rank on another machine."""
    own = address_towards(os.environ["MASTER_ADDR"])
    store.set(f"address {rank}", own)
    elsewhere = other_machine(own, [store.get(f"address {other}").decode() for other in range(size)])
    return own if elsewhere is None else address_towards(elsewhere)


def other_machine(own: str, everybodys: list[str]) -> str | None:
    """An address to face instead, if a rank has a loopback address and another one has none."""
    if not ipaddress.ip_address(own).is_loopback:
        return None
    return next((address for address in everybodys if not ipaddress.ip_address(address).is_loopback), None)


def _as_bytes(value: Any) -> Tensor:
    return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)


def _as_value(content: Tensor) -> Any:
    return pickle.loads(content.numpy().tobytes())
