"""Boxes that an answer repeats: what a set of answers is without them shows whether a gain is more than fewer of them.

Leaving duplicates out of an answer raises its precision without any learning, so figures that rise with it can mislead
(Rex-Omni's SFT model gains as much by it as by its reinforcement learning on VisDrone; Jiang et al. 2025).
"""

from __future__ import annotations

from collections.abc import Sequence

from ds_stage2ab.carriers import ParsedObject, Truth
from ds_stage2ab.matching.iou import pairwise_iou

SAME_IOU = 0.9
"""Boxes that overlap more are one box said again, whatever their names."""


def first_sayings(predicted: Sequence[Truth] | Sequence[ParsedObject]) -> list[int]:
    """Places of the objects that repeat no earlier one that is kept."""
    boxes = [one.box for one in predicted]
    iou_PP = pairwise_iou(boxes, boxes)
    kept: list[int] = []
    for place in range(len(boxes)):
        if not (iou_PP[place, kept] > SAME_IOU).any():
            kept.append(place)
    return kept
