"""Where a description can stand beside its box without covering anything: plain geometry, no drawing.

Rectangles are (left, top, right, bottom) in pixels, as floats or ints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Rectangle = tuple[float, float, float, float]

LABEL_COST = 100.0  # per pixel shared with another label: makes both unreadable, worst
LINE_COST = 0.3  # per pixel shared with any box, however large
SMALL_COST = 4.0  # per pixel shared with a box no larger than the label; less for larger boxes
DISTANCE_COST = 6.0  # per pixel between label and box: near is clear
SIDE_COST = 40.0  # per rank in the order of preferred sides
GAPS = (0.0, 1.0, 2.0, 3.0)  # distances from the box that are tried, in label heights


def place_label(
    box: Rectangle,
    size: tuple[float, float],
    area: Rectangle,
    boxes: Sequence[Rectangle],
    labels: Sequence[Rectangle],
    sides: Sequence[str] = ("above", "below", "right", "left"),
) -> Rectangle:
    """The cheapest place for a label of `size` (width, height) beside `box`, inside `area`.

    Args:
        boxes: every box of the picture, `box` itself included.
        labels: labels that already have their place.
        sides: sides of the box in order of preference, of above, below, left, right.
    """
    best, best_cost = None, float("inf")
    for rank, place in _candidates(box, size, sides):
        moved = _into(place, area)
        cost = SIDE_COST * rank + DISTANCE_COST * distance(moved, box)
        cost += sum(LABEL_COST * overlap(moved, label) for label in labels)
        cost += sum(_cover_cost(moved, other) for other in boxes)
        if cost < best_cost:
            best, best_cost = moved, cost
    assert best is not None, "no side was allowed"
    return best


def _candidates(box: Rectangle, size: tuple[float, float], sides: Sequence[str]) -> Iterator[tuple[int, Rectangle]]:
    """(rank of the side, place) along all four sides, near ones first."""
    left, top, right, bottom = box
    width, height = size
    columns = (left, (left + right - width) / 2, right - width, left - width / 2, right - width / 2)
    rows = (top, (top + bottom - height) / 2, bottom - height)
    for gap in GAPS:
        away = gap * height
        for rank, side in enumerate(sides):
            if side == "above":
                corners = [(x, top - height - away) for x in columns]
            elif side == "below":
                corners = [(x, bottom + away) for x in columns]
            elif side == "left":
                corners = [(left - width - away, y) for y in rows]
            else:
                corners = [(right + away, y) for y in rows]
            for x, y in corners:
                yield rank, (x, y, x + width, y + height)


def _cover_cost(label: Rectangle, box: Rectangle) -> float:
    """Hiding part of a large box matters little, hiding a small one is a loss."""
    label_area, box_area = overlap(label, label), overlap(box, box)
    return overlap(label, box) * (LINE_COST + SMALL_COST * min(1.0, label_area / max(box_area, 1.0)))


def _into(place: Rectangle, area: Rectangle) -> Rectangle:
    """The place moved into the area."""
    left, top, right, bottom = place
    x = min(max(left, area[0]), area[2] - (right - left))
    y = min(max(top, area[1]), area[3] - (bottom - top))
    return x, y, x + right - left, y + bottom - top


def overlap(first: Rectangle, second: Rectangle) -> float:
    """Area that two rectangles share."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def distance(first: Rectangle, second: Rectangle) -> float:
    """Gap between two rectangles, 0 when they touch or overlap."""
    across = max(0.0, first[0] - second[2], second[0] - first[2])
    down = max(0.0, first[1] - second[3], second[1] - first[3])
    return (across**2 + down**2) ** 0.5
