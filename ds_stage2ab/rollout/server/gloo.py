"""A Gloo group of one learner rank and a server's workers, separate from the groups that either already has.

Learner and server both import this, so it needs only torch. Each member gives the address that faces the others.
"""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ds_stage2ab.runtime.gloo import address_towards, gloo_group

SENDER = 0
"""Rank of the learner in the group; the workers follow."""


class GlooGroup:
    """Joins at once; every wait is bounded.

    Args:
        store: the rendezvous of the members.
        rank: of this member.
        size: members.
        timeout: of joining, and of every transfer.
        address: of this member's machine, as the others see it.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta, *, address: str) -> None:
        self.timeout = timeout
        self._store = store  # lives as long as the group
        self._group = gloo_group(store, rank, size, timeout, address=address)

    def begin(self, tensor: Tensor) -> dist.Work:
        """Begin to broadcast a tensor from the learner; on a worker, begin to receive it into one like it.

        All members begin the same tensors in the same order. Tensors are sent as bytes, so any dtype works.
        """
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = SENDER, 0, self.timeout
        return self._group.broadcast([tensor.view(-1).view(torch.uint8)], options)

    def finish(self, begun: dist.Work) -> None:
        """Wait until a tensor has been sent, or received.

        Raises:
            RuntimeError: a member is gone, or late.
        """
        begun.wait(self.timeout)


def join(address: str, port: int, rank: int, size: int, timeout: timedelta) -> GlooGroup:
    """Join a group at the learner's store, from another process.

    Raises:
        RuntimeError: the store does not answer in time.
    """
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
    return GlooGroup(store, rank, size, timeout, address=address_towards(address, port))


class GlooLink:
    """The learner's end of a transfer to one server, over host memory and TCP; see `weight_sync.Link`.

    Args:
        address: of this machine, as the server sees it.
        port: of the store; None: the operating system chooses.
        size: members of the group.
        timeout_s: of joining, and of every bucket.

    Raises:
        RuntimeError: the port is taken.
    """

    def __init__(self, address: str, port: int | None, size: int, timeout_s: float) -> None:
        self.address, self.size, self.timeout = address, size, timedelta(seconds=timeout_s)
        self._store = dist.TCPStore(address, port or 0, is_master=True, wait_for_workers=False, timeout=self.timeout)
        self._group: GlooGroup | None = None

    @property
    def place(self) -> str:
        """Address of the store, host:port."""
        return f"{self.address}:{self._store.port}"

    def invitation(self) -> dict[str, Any]:
        """What the workers need to join: `vllm_plugin.InitInfo`."""
        timeout_s = self.timeout.total_seconds()
        return {"address": self.address, "port": self._store.port, "size": self.size, "timeout_s": timeout_s}

    def join(self) -> None:
        """Wait for the workers.

        Raises:
            RuntimeError: one does not come in time.
        """
        self._group = GlooGroup(self._store, SENDER, self.size, self.timeout, address=self.address)

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Send the workers a bucket, tensor after tensor.

        Raises:
            RuntimeError: a worker is gone, or late.
        """
        assert self._group is not None, "join comes first"
        for begun in [self._group.begin(tensor.cpu()) for tensor in tensors]:
            self._group.finish(begun)
