"""Items -> packs while the items arrive.

Invariants:
- every item is in exactly one pack, and no pack's sum exceeds the capacity
- the result is a function of the items in their order alone, not of when they arrive
- items keep their order within a pack
- at most `max_open` packs are open at any moment; when none has room, the fullest is closed, on a tie the oldest
- exactly the last pack is marked as last when it is yielded
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from ds_stage2ab.errors import NoServerLeft

T = TypeVar("T")

MAX_OPEN = 4
"""More would fill packs a little better and yield the first one later."""


def pack_online(
    items: Iterable[T | NoServerLeft], length_of: Callable[[T], int], capacity: int, *, max_open: int = MAX_OPEN
) -> Iterator[tuple[list[T], bool] | NoServerLeft]:
    """First-fit in the order of the items, with a bounded number of open packs (Johnson's bounded-space packing).

    A pack that is closed before the items end was closed by an item which needs another one, so it is never the last.

    Args:
        items: may block for the next one.
        length_of: an item's size, from 1 to `capacity`, tokens.
        capacity: pack size, tokens.
        max_open: packs that may have room at once.

    Yields: (the items of a closed pack, whether it is the last); a NoServerLeft among the items at once.
    """
    packs: list[list[T]] = []
    room: list[int] = []
    for item in items:
        if isinstance(item, NoServerLeft):
            yield item
            continue
        length = length_of(item)
        assert 1 <= length <= capacity, f"length {length} is not within 1..{capacity}"
        place = next((index for index, free in enumerate(room) if length <= free), len(packs))
        if place == max_open:
            fullest = room.index(min(room))
            del room[fullest]
            yield packs.pop(fullest), False
            place -= 1
        if place == len(packs):
            packs.append([])
            room.append(capacity)
        packs[place].append(item)
        room[place] -= length
    for index, members in enumerate(packs):
        yield members, index == len(packs) - 1
