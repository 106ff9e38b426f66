"""Lengths -> bins, offline. Plain Python, integers only.

Invariants:
- every index is in exactly one bin, and no bin's sum exceeds the capacity
- the result is a function of the lengths and the capacity alone
- indices ascend within a bin, and bins ascend by their smallest index
- never more bins than first-fit, never more than best-fit decreasing
- a length above the capacity, or below 1, is refused
"""

from bisect import bisect_left, insort


def pack_lengths(lengths: list[int], capacity: int) -> list[list[int]]:
    """Put items into as few bins as the better of two classic heuristics needs.

    First-fit in the given order and best-fit decreasing (Johnson 1973); on a tie first-fit wins, which keeps
    neighbours together. Ties inside each are broken by the smaller index.

    Args:
        lengths: item sizes, in tokens.
        capacity: bin size, in tokens.

    Returns:
        The indices in each bin.

    Raises:
        ValueError: a length is below 1 or above the capacity.
    """
    for index, length in enumerate(lengths):
        if not 1 <= length <= capacity:
            raise ValueError(f"length {length} at index {index} is not within 1..{capacity}")
    in_order = _first_fit(lengths, capacity)
    decreasing = _best_fit_decreasing(lengths, capacity)
    best = decreasing if len(decreasing) < len(in_order) else in_order
    return sorted(sorted(members) for members in best)


def _first_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """Each item into the first bin with room, found in O(log n) in a tree of the largest free space."""
    leaves = 1
    while leaves < len(lengths):
        leaves *= 2
    free = [capacity] * (2 * leaves)
    bins: list[list[int]] = []
    for index, length in enumerate(lengths):
        node = 1
        while node < leaves:
            node *= 2
            if free[node] < length:
                node += 1
        place = node - leaves
        if place == len(bins):
            bins.append([])
        bins[place].append(index)
        free[node] -= length
        while node > 1:
            node //= 2
            free[node] = max(free[2 * node], free[2 * node + 1])
    return bins


def _best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    """Longest first, each item into the fullest bin that still has room."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    bins: list[list[int]] = []
    open_bins: list[tuple[int, int]] = []  # (free space, bin), ascending
    for index in order:
        place = bisect_left(open_bins, (lengths[index], -1))
        if place == len(open_bins):
            free, chosen = capacity, len(bins)
            bins.append([])
        else:
            free, chosen = open_bins.pop(place)
        bins[chosen].append(index)
        insort(open_bins, (free - lengths[index], chosen))
    return bins
