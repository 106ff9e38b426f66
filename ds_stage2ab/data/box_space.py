"""Boxes that are legal but look like those of another form: pixels read as bins, 0..1000 read as pixels.

One box proves nothing; a whole set does, where the two readings differ much. Another unit shows where its range is well
below the declared one's and the boxes fill it without ever leaving it; another layout, where every box is legal in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ds_stage2ab.carriers import Box, Record
from ds_stage2ab.data.box_forms import FORMS, HALF_BIN, BoxForm, numbers_of

MIN_BOXES = 20
"""Fewer boxes may keep to a range by chance."""
TELLING = 0.801
"""An image tells two units apart where the one's largest number is at most this share of the other's."""
REACHED = 0.9
"""Share of the range that some box must reach: else the objects are just small."""
OFF_CENTRE = 0.98
"""Of the image's side: a box that ends there or before, read in another layout, is not simply centred."""


@dataclass(frozen=True, slots=True)
class SizedBox:
    """A box, and the size of its image in pixels."""

    box: Box
    width: int
    height: int


def boxes_of(records: Iterable[Record]) -> list[SizedBox]:
    """All boxes of a set."""
    return [SizedBox(truth.box, record.width, record.height) for record in records for truth in record.objects]


def other_form(boxes: Sequence[SizedBox], box_format: str) -> str:
    """A warning if the boxes look like those of another form; empty if they look right, or if it cannot be decided.

    Args:
        box_format: `data.box_format`, by which they were read.
    """
    declared = FORMS[box_format]
    for name, form in FORMS.items():
        if form.unit != declared.unit:
            number = _in_unit(boxes, declared, form)
        elif form.layout != declared.layout == "corners":
            number = _in_layout(boxes, declared, form)
        else:
            continue
        if number:
            return (
                f"boxes look like {form.called}: each of {number:,}, in images where that shows, is one,"
                f" and data.box_format is {box_format}; if they are, set data.box_format: {name}"
            )
    return ""


def _in_unit(boxes: Sequence[SizedBox], declared: BoxForm, form: BoxForm) -> int:
    """How many boxes, in images that tell the units apart, fill the range of the other form; 0 if one leaves it."""
    ends = []
    for one in boxes:
        sides, declared_sides = form.sides(one.width, one.height), declared.sides(one.width, one.height)
        if any(side > TELLING * whole for side, whole in zip(sides, declared_sides, strict=True)):
            continue
        shares = _shares(one, declared, form)
        if not shares:
            return 0
        ends.append(shares[2:])
    filled = len(ends) >= MIN_BOXES and all(max(axis) >= REACHED for axis in zip(*ends, strict=True))
    return len(ends) if filled else 0


def _in_layout(boxes: Sequence[SizedBox], declared: BoxForm, form: BoxForm) -> int:
    """How many boxes are legal in another layout of the same unit; 0 if one is not, or if most are merely centred."""
    off_centre = 0
    for one in boxes:
        shares = _shares(one, declared, form)
        if not shares:
            return 0
        off_centre += max(shares[2:]) <= OFF_CENTRE
    return len(boxes) if len(boxes) >= MIN_BOXES and off_centre >= len(boxes) / 2 else 0


def _shares(one: SizedBox, declared: BoxForm, form: BoxForm) -> tuple[float, ...]:
    """Corners of a box in another form, as shares of the image; empty if it is none there, up to the lost half bin."""
    numbers = numbers_of(one.box, declared, one.width, one.height)
    lost = [HALF_BIN * side for side in declared.sides(one.width, one.height)] * 2
    sides = form.sides(one.width, one.height) * 2
    corners = form.corners(numbers)
    inside = all(-gone <= v <= side + gone for v, side, gone in zip(corners, sides, lost, strict=True))
    x1, y1, x2, y2 = (v / side for v, side in zip(corners, sides, strict=True))
    return (x1, y1, x2, y2) if inside and x2 > x1 and y2 > y1 else ()
