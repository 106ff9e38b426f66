"""A Gloo group of one learner rank and a server's workers, apart from the groups that either already has.

Learner and server both import this, so it needs nothing but torch.
"""

from datetime import timedelta

import torch.distributed as dist
from torch import Tensor

SENDER = 0
"""Rank of the learner in the group; the workers follow."""


class GlooGroup:
    """Joins at once; every wait is bounded.

    Args:
        store: where the members meet.
        rank: of this member.
        size: members.
        timeout: of the joining, and of every transfer.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, timeout: timedelta) -> None:
        self.timeout = timeout
        self._store = store  # lives as long as the group
        self._group = dist.ProcessGroupGloo(store, rank, size, timeout)

    def send(self, row: Tensor) -> None:
        """From the learner to all others, as `receive` there.

        Raises:
            RuntimeError: a member has gone or does not come in time.
        """
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor, options.timeout = SENDER, 0, self.timeout
        self._group.broadcast([row], options).wait(self.timeout)

    receive = send  # a broadcast is one call on both sides


def join(address: str, port: int, rank: int, size: int, timeout: timedelta) -> GlooGroup:
    """Meet at the learner's store, from another process.

    Raises:
        RuntimeError: nobody answers there in time.
    """
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout)
    return GlooGroup(store, rank, size, timeout)


def hosted(port: int | None, address: str, timeout: timedelta) -> dist.TCPStore:
    """The store at which the workers meet the learner; port None: the operating system chooses.

    Raises:
        RuntimeError: the port is taken.
    """
    return dist.TCPStore(address, port or 0, is_master=True, wait_for_workers=False, timeout=timeout)
