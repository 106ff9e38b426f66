"""The forms in which data sets write boxes (`data.box_format`), and the one place where any of them becomes bins.

Invariants:
- A box that is accepted has four bins in 0..999 with x2 > x1 and y2 > y1.
- `numbers_of` gives back the numbers that `to_bins` was given, up to half a bin.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ds_stage2ab.carriers import Box
from ds_stage2ab.codec.bins import MAX_BIN, bin_of_token, bin_to_pixel, fraction_of, pixel_to_bin
from ds_stage2ab.codec.bins import bin_of as bin_of_fraction

MAX_SHOWN = 60  # characters of a value in a message
HALF_BIN = 0.5 / MAX_BIN  # of the image's side
THOUSAND = 1000.0


class Refused(ValueError):
    """One problem of a line, for the user."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why = why
        self.fix = fix


class BoxRefused(Refused):
    """Why four values are no box of a form, and what to do if they are one of this form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxForm:
    """One value of `data.box_format`."""

    unit: Literal["bins", "norm1000", "pixel", "fraction"]
    layout: Literal["corners", "xywh", "cxcywh"]
    # (x1, y1, x2, y2), (left, top, width, height) or (centre x, centre y, width, height)
    called: str
    # for messages

    def sides(self, width: int, height: int) -> tuple[float, float]:
        """The largest x and y of an image of this size, in pixels, in the form's unit."""
        if self.unit == "pixel":
            return float(width), float(height)
        side = {"bins": float(MAX_BIN), "norm1000": THOUSAND, "fraction": 1.0}[self.unit]
        return side, side

    def corners(self, numbers: Sequence[float]) -> tuple[float, float, float, float]:
        """(x1, y1, x2, y2) of four numbers of this layout."""
        x, y, third, fourth = numbers
        if self.layout == "corners":
            return x, y, third, fourth
        if self.layout == "cxcywh":
            x, y = x - third / 2, y - fourth / 2
        return x, y, x + third, y + fourth


FORMS = {
    "bins": BoxForm(unit="bins", layout="corners", called="bins of 0..999"),
    "norm1000": BoxForm(unit="norm1000", layout="corners", called="0..1000, as Qwen3-VL writes"),
    "pixel": BoxForm(unit="pixel", layout="corners", called="pixels"),
    "pixel_xywh": BoxForm(unit="pixel", layout="xywh", called="left, top, width, height in pixels, as COCO"),
    "fraction": BoxForm(unit="fraction", layout="corners", called="fractions of the image, 0..1"),
    "fraction_cxcywh": BoxForm(
        unit="fraction", layout="cxcywh", called="centre, width, height as fractions of the image, as YOLO"
    ),
}
"""`data.box_format` -> how it is read."""


def to_bins(values: list[Any], form: BoxForm, width: int, height: int) -> Box:
    """The bins of a box as a data set writes it.

    Args:
        values: four JSON values.
        width, height: of the image, pixels.

    Raises:
        BoxRefused: they are no box of this form.
    """
    if form.unit == "bins":
        bins = _bins(values)
        _check_order(values, form, bins)
        return bins
    corners = _checked_corners(values, form, width, height)
    if form.unit == "pixel":
        box = tuple(pixel_to_bin(v, size) for v, size in zip(corners, (width, height) * 2, strict=True))
    else:
        box = tuple(bin_of_fraction(v / side) for v, side in zip(corners, form.sides(width, height) * 2, strict=True))
    if box[2] <= box[0] or box[3] <= box[1]:
        raise BoxRefused(
            f"bbox_2d is {shown(values)}, thinner than one of the 1,000 bins of {width} x {height} pixels",
            "leave this object out, or cut the image into parts",
        )
    return box


def numbers_of(box: Box, form: BoxForm, width: int, height: int) -> tuple[float, float, float, float]:
    """The numbers that `to_bins` was given, but for rounding."""
    if form.unit == "pixel":
        x1, y1, x2, y2 = (bin_to_pixel(k, size) for k, size in zip(box, (width, height) * 2, strict=True))
    else:
        x1, y1, x2, y2 = (fraction_of(k) * side for k, side in zip(box, form.sides(width, height) * 2, strict=True))
    if form.layout == "corners":
        return x1, y1, x2, y2
    if form.layout == "xywh":
        return x1, y1, x2 - x1, y2 - y1
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def shown(value: Any) -> str:
    """A JSON value in a message."""
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _bins(values: list[Any]) -> Box:
    bins = [bin_of_token(value) if isinstance(value, str) else value for value in values]
    if not all(_is_number(k) and 0 <= k <= MAX_BIN and k == int(k) for k in bins):
        raise BoxRefused(
            f"bbox_2d is {shown(values)}, not four bins (whole numbers from 0 to {MAX_BIN}, or <|coord_k|>)",
            "correct the box",
        )
    return tuple(map(int, bins))


def _checked_corners(
    values: list[Any], form: BoxForm, width: int, height: int
) -> tuple[float, float, float, float]:
    """The corners in the form's unit. Where a sum makes them, they may leave the image by the rounding of its parts."""
    sides = form.sides(width, height) * 2
    corners = ()
    if all(_is_number(value) and 0 <= value <= side for value, side in zip(values, sides, strict=True)):
        corners = form.corners(values)
    slack = 0.0 if form.layout == "corners" else HALF_BIN
    inside = [-slack * side <= v <= side + slack * side for v, side in zip(corners, sides, strict=False)]
    if not corners or not all(inside):
        outside = _outside(form, width, height)
        raise BoxRefused(f"bbox_2d is {shown(values)}, {outside} or no numbers", "correct the box")
    if form.unit == "pixel" and max(values) <= 1 and any(value != int(value) for value in values):
        raise BoxRefused(f"bbox_2d is {shown(values)}: within one pixel, these look like fractions", "correct the box")
    _check_order(values, form, corners)
    return corners


def _outside(form: BoxForm, width: int, height: int) -> str:
    if form.unit == "pixel":
        return f"outside the image of {width} x {height} pixels"
    return f"outside the image, whose sides are 0..{form.sides(width, height)[0]:g}"


def _check_order(values: list[Any], form: BoxForm, corners: Sequence[float]) -> None:
    x1, y1, x2, y2 = corners
    if x2 > x1 and y2 > y1:
        return
    if form.layout == "corners":
        raise BoxRefused(f"bbox_2d is {shown(values)}, but x2 > x1 and y2 > y1 must hold", "write [x1, y1, x2, y2]")
    raise BoxRefused(f"bbox_2d is {shown(values)}, but width and height must be above 0", "correct the box")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
