"""The same number of packs on every rank.

A forward or backward may hold collectives, so all ranks must run the same number of them. A round begins with one
all-reduce of (failed, has a pack, has more to come, has no server left). If any rank has a pack, every rank runs one: a
rank without one runs a dummy pack. The step ends when no rank has more. Where a rank has no server left for its
rollouts, all of them prove servers together before the next round.

Invariants:
- every rank yields the same number of packs; that is the largest number any rank holds, where no server is lost
- a rank's own packs come first, in order, each exactly once
- exactly the last round of all is marked as last, on every rank
- every rank agrees equally often: once per round, and once at the end
- an error while a rank gets its next pack is raised on every rank before any of them runs another
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

from ds_stage2ab.errors import NoServerLeft

P = TypeVar("P")

NUM_FLAGS = 3


class Flags(Protocol):
    """What the ranks exchange at the end of a block; `runtime.ranks.Agreement` is one."""

    flags: list[int]
    # set in the block by each rank; after it the largest of each over all ranks


def synchronized_rounds(
    packs: Iterator[tuple[P, bool] | NoServerLeft],
    dummy_pack: Callable[[], P],
    agree: Callable[[], AbstractContextManager[Flags]],
    recover: Callable[[], None],
) -> Iterator[tuple[P, bool]]:
    """Yield (pack, is the last round) until no rank holds another pack.

    Args:
        packs: this rank's (pack, whether it is its last). Getting the next one may block or raise.
        dummy_pack: makes one; called only if another rank still has a pack.
        agree: a block at whose end a failure of any rank is raised on all, and `NUM_FLAGS` flags are exchanged.
        recover: called on all ranks when one has no server left for its rollouts; collective.
    """
    is_open = False
    # some round was not the last
    while True:
        with agree() as agreed:
            coming = next(packs, (None, True))
            lost = isinstance(coming, NoServerLeft)
            pack, finished = (None, False) if lost else coming
            agreed.flags = [int(pack is not None), int(not finished), int(lost)]
        some_pack, some_more, some_lost = agreed.flags
        if not some_pack and not some_more:
            if is_open:  # the rest was refused by the servers that came back
                yield dummy_pack(), True
            return
        if some_pack:
            is_open = bool(some_more)
            yield dummy_pack() if pack is None else pack, not some_more
        if some_lost:
            recover()
