"""The same number of packs on every rank.

A forward or backward may hold collectives, so all ranks must run the same number of them. A round begins with one
all-reduce of (failed, has a pack, has more to come). If any rank has a pack, every rank runs one: a rank without one
runs a dummy pack. The step ends when no rank has more.

Invariants:
- every rank yields the same number of packs, and that is the largest number any rank holds
- a rank's own packs come first, in order, each exactly once
- exactly the last round of all is marked as last, on every rank
- every rank agrees equally often: once per round, and once at the end
- an error while a rank gets its next pack is raised on every rank before any of them runs another
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

P = TypeVar("P")

NUM_FLAGS = 2


class Flags(Protocol):
    """What the ranks exchange at the end of a block; `runtime.ranks.Agreement` is one."""

    flags: list[int]
    # set in the block by each rank; after it the largest of each over all ranks


def synchronized_rounds(
    packs: Iterator[tuple[P, bool]],
    dummy_pack: Callable[[], P],
    agree: Callable[[], AbstractContextManager[Flags]],
) -> Iterator[tuple[P, bool]]:
    """Yield (pack, is the last round) until no rank holds another pack.

    Args:
        packs: this rank's (pack, whether it is its last). Getting the next one may block or raise.
        dummy_pack: makes one; called only if another rank still has a pack.
        agree: a block at whose end a failure of any rank is raised on all, and `NUM_FLAGS` flags are exchanged.
    """
    while True:
        with agree() as agreed:
            pack, finished = next(packs, (None, True))
            agreed.flags = [int(pack is not None), int(not finished)]
        some_pack, some_more = agreed.flags
        if not some_pack:
            return
        yield dummy_pack() if pack is None else pack, not some_more
