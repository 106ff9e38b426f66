"""The same number of packs on every rank.

A forward or backward may hold collectives, so all ranks must run the same number of them. A rank whose
packs have run out joins with a zero-weight pack until the last rank is done.

Invariants:
- every rank yields the same number of packs, and that is the largest number any rank holds
- a rank's own packs come first, in order, each exactly once
- exactly the last round of all is marked as last, on every rank
- every rank calls `all_max` equally often
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

P = TypeVar("P")


def in_lockstep(
    packs: Iterable[P], stand_in: Callable[[], P], all_max: Callable[[int], int]
) -> Iterator[tuple[P, bool]]:
    """Yield (pack, is the last round) until no rank holds another pack.

    Args:
        packs: this rank's packs, possibly none.
        stand_in: makes the zero-weight pack; called only if another rank still has a pack.
        all_max: largest value over all ranks.
    """
    remaining = iter(packs)
    pack = next(remaining, None)
    more = all_max(int(pack is not None))
    while more:
        following = next(remaining, None)
        more = all_max(int(following is not None))
        yield stand_in() if pack is None else pack, not more
        pack = following
