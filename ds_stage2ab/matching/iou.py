"""Exact intersection over union of boxes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_stage2ab.carriers import Box


def pairwise_iou(first: Sequence[Box], second: Sequence[Box]) -> NDArray[np.float64]:
    """Intersection over union of every box of one list with every box of another.

    Boxes are continuous areas in bins: the width is x2 - x1, with no pixel added. All areas are whole
    numbers below 10^6, so each quotient is the double nearest to the true one, on every platform.

    Args:
        first: [P] boxes with x2 > x1 and y2 > y1.
        second: [G] boxes.

    Returns: float64 [P, G] in 0..1.
    """
    boxes_P4 = np.asarray(first, dtype=np.int64).reshape(-1, 4)
    boxes_G4 = np.asarray(second, dtype=np.int64).reshape(-1, 4)
    low_PG2 = np.maximum(boxes_P4[:, None, :2], boxes_G4[None, :, :2])
    high_PG2 = np.minimum(boxes_P4[:, None, 2:], boxes_G4[None, :, 2:])
    shared_PG = np.clip(high_PG2 - low_PG2, 0, None).prod(axis=2)
    area_P = (boxes_P4[:, 2:] - boxes_P4[:, :2]).prod(axis=1)
    area_G = (boxes_G4[:, 2:] - boxes_G4[:, :2]).prod(axis=1)
    return shared_PG / (area_P[:, None] + area_G[None, :] - shared_PG)
