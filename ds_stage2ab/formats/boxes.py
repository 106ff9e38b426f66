"""A foreign box -> bins, or the reason why it is left out.

Invariants:
- A box that is kept has four bins in 0..999 with x2 > x1 and y2 > y1.
- Each of its sides lies within half a bin of where it was, but for what was cut at the border of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ds_stage2ab.carriers import Box
from ds_stage2ab.codec.bins import bin_of
from ds_stage2ab.formats.source import Corners

SLACK = 1e-6
"""Of a side, or of a pixel: what rounding may do without being counted as cut or as shorter."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Bins of an image as it is shown."""

    box: Box
    clipped: bool
    # whether a part outside the image was cut off


def place(corners: Corners, orientation: int, shown: tuple[int, int], min_side: float) -> Placed | str:
    """The bins of a box: of the image's sides, k = round(999 x / width), as evaluation reads them back.

    Args:
        corners: fractions of the image as it is stored.
        orientation: EXIF's, 1..8, by which it is shown; 1 for corners that are of the shown image already.
        shown: width and height of the shown image, pixels.
        min_side: shortest side that is kept, pixels.

    Returns: the bins, or a reason of `source.LEFT_OUT`.
    """
    if not all(map(math.isfinite, corners)):
        return "bad_box"
    x1, y1, x2, y2 = corners
    if x2 <= x1 or y2 <= y1:
        return "zero_area"
    x1, y1, x2, y2 = turned(corners, orientation)
    if x2 <= 0 or y2 <= 0 or x1 >= 1 or y1 >= 1:
        return "outside"
    clipped = min(x1, y1) < -SLACK or max(x2, y2) > 1 + SLACK
    x1, y1, x2, y2 = max(0.0, x1), max(0.0, y1), min(1.0, x2), min(1.0, y2)
    if min((x2 - x1) * shown[0], (y2 - y1) * shown[1]) < min_side - SLACK:
        return "too_small"
    box = (bin_of(x1), bin_of(y1), bin_of(x2), bin_of(y2))
    return Placed(box, clipped) if box[2] > box[0] and box[3] > box[1] else "too_thin"


def turned(corners: Corners, orientation: int) -> Corners:
    """Corners on the stored image, as fractions, -> those on the image as EXIF's orientation shows it.

    The orientation names the sides of the shown image that the stored first row and column lie on (Exif 2.32, tag 274).
    """
    x1, y1, x2, y2 = corners
    if orientation in (2, 3, 7, 8):  # mirrored along x before axes are swapped
        x1, x2 = 1 - x2, 1 - x1
    if orientation in (3, 4, 6, 7):
        y1, y2 = 1 - y2, 1 - y1
    return (y1, x1, y2, x2) if orientation >= 5 else (x1, y1, x2, y2)


def polygon_corners(points: list[float]) -> Corners | None:
    """The box around a polygon x, y, x, y, ...; None if these are no three points."""
    if len(points) < 6 or len(points) % 2:
        return None
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def numbers(values: object, count: int) -> list[float] | None:
    """So many JSON numbers as floats; None if these are others."""
    if not isinstance(values, list | tuple) or len(values) != count:
        return None
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    try:
        return [float(value) for value in values]
    except OverflowError:  # a whole number beyond every float
        return None
