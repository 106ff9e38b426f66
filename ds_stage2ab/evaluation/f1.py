"""Scores of predicted objects: F1 with and without descriptions, precision, recall, IoU of the matched.

Invariants:
- A pair counts only with IoU >= 0.5 and, where descriptions count, equal descriptions (`codec.names.compared`).
- No object is in two pairs; there are as many pairs as possible, and among those choices the summed IoU is largest.
- The order of the objects does not matter to any count, nor to a sum but for rounding.
- Scores of images add up: the score of a set is computed from summed counts, never from a mean of quotients.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.names import compared
from ds_stage2ab.matching.iou import pairwise_iou

MIN_IOU = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageScore:
    """Counts of one image; `boxes` means that descriptions are ignored."""

    predicted: int
    true: int
    pairs: tuple[tuple[int, int], ...]
    # true positives: (place among the predicted, place among the true) of equal description
    iou_sum: float
    # over those pairs
    matched_boxes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetScore:
    """Figures of a set of images, each in 0..1 but `predicted_per_true`.

    With nothing predicted and nothing true F1, precision and recall are 1; if only one of the two is
    empty, all three are 0. Without a pair the IoU is 0.
    """

    f1: float
    # 2 TP / (predicted + true)
    precision: float
    # TP / predicted
    recall: float
    # TP / true
    matched_iou: float
    # mean IoU of the pairs
    f1_boxes: float
    precision_boxes: float
    recall_boxes: float
    predicted_per_true: float
    # predicted / true; with nothing true the number of predicted, or 1 if that is 0 too


def score_image(predicted: Sequence[Truth], truth: Sequence[Truth]) -> ImageScore:
    """Compare the objects predicted for an image, in any order, with the true ones."""
    iou_PG = pairwise_iou([one.box for one in predicted], [one.box for one in truth])
    near_PG = iou_PG >= MIN_IOU
    same_PG = np.array([[name_of(one) == name_of(other) for other in truth] for one in predicted], dtype=bool).reshape(
        iou_PG.shape
    )
    pairs = _best_pairs(iou_PG, near_PG & same_PG)
    return ImageScore(
        predicted=len(predicted),
        true=len(truth),
        pairs=pairs,
        iou_sum=math.fsum(float(iou_PG[pair]) for pair in pairs),
        matched_boxes=len(_best_pairs(iou_PG, near_PG)),
    )


def wrong_names(
    predicted: Sequence[Truth], truth: Sequence[Truth], pairs: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """Boxes that were found under another name: further pairs (place among the predicted, place among the true).

    Args:
        pairs: of equal description; their objects are taken.
    """
    found, hit = ({pair[side] for pair in pairs} for side in (0, 1))
    left = [place for place in range(len(predicted)) if place not in found]
    open_ = [place for place in range(len(truth)) if place not in hit]
    iou_PG = pairwise_iou([predicted[p].box for p in left], [truth[g].box for g in open_])
    return tuple((left[row], open_[column]) for row, column in _best_pairs(iou_PG, iou_PG >= MIN_IOU))


@dataclass(frozen=True, slots=True, kw_only=True)
class DescriptionCounts:
    """Counts of one description over a set."""

    predicted: int
    true: int
    matched: int
    iou_sum: float
    # over the matched pairs

    @property
    def precision(self) -> float | None:
        return share(self.matched, self.predicted)

    @property
    def recall(self) -> float | None:
        return share(self.matched, self.true)

    @property
    def f1(self) -> float | None:
        return share(2 * self.matched, self.predicted + self.true)

    @property
    def matched_iou(self) -> float | None:
        return share(self.iou_sum, self.matched)


def share(part: float, whole: float) -> float | None:
    """`part / whole`; None where the denominator is 0."""
    return part / whole if whole else None


def count_by_description(
    images: Iterable[tuple[Sequence[Truth], Sequence[Truth], Sequence[tuple[int, int]]]],
) -> dict[str, DescriptionCounts]:
    """Description (as compared) -> its counts, in alphabetical order.

    Args:
        images: (predicted, true, pairs of `score_image`) of each.
    """
    predicted: Counter[str] = Counter()
    true: Counter[str] = Counter()
    ious: dict[str, list[float]] = {}
    for found, truth, pairs in images:
        predicted.update(map(name_of, found))
        true.update(map(name_of, truth))
        for p, g in pairs:
            iou = float(pairwise_iou([found[p].box], [truth[g].box])[0, 0])
            ious.setdefault(name_of(truth[g]), []).append(iou)
    return {
        name: DescriptionCounts(
            predicted=predicted[name],
            true=true[name],
            matched=len(ious.get(name, ())),
            iou_sum=math.fsum(ious.get(name, ())),
        )
        for name in sorted(predicted.keys() | true.keys())
    }


def set_score(images: Iterable[ImageScore]) -> SetScore:
    """The figures of a set, from the sums of its images' counts."""
    scores = list(images)
    predicted = sum(score.predicted for score in scores)
    true = sum(score.true for score in scores)
    matched = sum(len(score.pairs) for score in scores)
    matched_boxes = sum(score.matched_boxes for score in scores)
    empty = 1.0 if predicted == true == 0 else 0.0
    return SetScore(
        f1=_quotient(2 * matched, predicted + true, empty),
        precision=_quotient(matched, predicted, empty),
        recall=_quotient(matched, true, empty),
        matched_iou=_quotient(math.fsum(score.iou_sum for score in scores), matched, 0.0),
        f1_boxes=_quotient(2 * matched_boxes, predicted + true, empty),
        precision_boxes=_quotient(matched_boxes, predicted, empty),
        recall_boxes=_quotient(matched_boxes, true, empty),
        predicted_per_true=_quotient(predicted, true, predicted or 1.0),
    )


def name_of(truth: Truth) -> str:
    """The form in which descriptions are compared."""
    return compared(truth.desc)


def _best_pairs(iou_PG: NDArray[np.float64], allowed_PG: NDArray[np.bool_]) -> tuple[tuple[int, int], ...]:
    """The pairs (row, column) of the best assignment.

    A pair that is not allowed costs more than all allowed pairs together, so that the Hungarian method
    finds the most pairs first and the largest summed IoU among those.
    """
    forbidden = 1.0 + min(iou_PG.shape)
    rows, columns = linear_sum_assignment(np.where(allowed_PG, 1.0 - iou_PG, forbidden))
    chosen = allowed_PG[rows, columns]
    return tuple(zip(rows[chosen].tolist(), columns[chosen].tolist(), strict=True))


def _quotient(part: float, whole: float, otherwise: float) -> float:
    return part / whole if whole else otherwise
