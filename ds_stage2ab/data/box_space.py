"""Boxes that are legal but look like those of another convention: pixels read as bins, or bins read as pixels.

One box proves nothing; a whole set does, where the two conventions would look different: images of well below 1,000
pixels whose boxes never leave the pixel range, or images of well above whose boxes never leave the range of bins.
"""

from __future__ import annotations

from collections.abc import Iterable

from ds_stage2ab.carriers import Record
from ds_stage2ab.codec.bins import MAX_BIN, bin_to_pixel

MIN_BOXES = 20
"""Fewer boxes may keep to a range by chance."""
SMALL, LARGE = 800, 1250
"""Pixels: images with sides up to the first, or from the second on, distinguish the conventions."""
REACHED = 0.9
"""Share of the range that some box must reach: else the objects are just small."""


def other_convention(records: Iterable[Record], box_format: str) -> str:
    """A warning if the boxes look like the other convention; empty if they look right, or if it cannot be decided.

    Args:
        box_format: `bins` or `pixel`, as the records were read.
    """
    telling = _small(records) if box_format == "bins" else _large(records)
    boxes = len(telling)
    if boxes < MIN_BOXES or not all(x <= 1 and y <= 1 for x, y in telling):
        return ""
    if max(x for x, _ in telling) < REACHED or max(y for _, y in telling) < REACHED:
        return ""
    if box_format == "bins":
        return (
            f"boxes look like pixels: none of {boxes:,} in images of at most {SMALL} pixels leaves its image's size,"
            " read as bins of 0..999; if they are pixels, set data.box_format: pixel"
        )
    return (
        f"boxes look like bins: none of {boxes:,} in images of at least {LARGE} pixels goes beyond pixel {MAX_BIN};"
        " if they are bins of 0..999, set data.box_format: bins"
    )


def _small(records: Iterable[Record]) -> list[tuple[float, float]]:
    """Right and lower edges, read as pixels, as shares of the image."""
    return [
        (truth.box[2] / record.width, truth.box[3] / record.height)
        for record in records
        if max(record.width, record.height) <= SMALL
        for truth in record.objects
    ]


def _large(records: Iterable[Record]) -> list[tuple[float, float]]:
    """Right and lower edges, in pixels, as shares of the range of bins."""
    num_bins = MAX_BIN + 1
    return [
        (bin_to_pixel(truth.box[2], record.width) / num_bins, bin_to_pixel(truth.box[3], record.height) / num_bins)
        for record in records
        if min(record.width, record.height) >= LARGE
        for truth in record.objects
    ]
