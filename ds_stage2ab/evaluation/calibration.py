"""What the scores of predicted objects are worth: calibration error, shares above thresholds, the best threshold.

Invariants:
- Objects are taken by falling score; each gets the free true object of its name with the highest IoU, 0.5 at least, as
  in COCO's evaluation (Lin et al. 2014). So the pairs above a threshold do not depend on what lies below it.
- The best F1 is that of a threshold: objects of equal score count together.
- The calibration error is 0 where in each tenth of the scores the mean score is the share of right objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ds_stage2ab.evaluation.average_precision import Detections
from ds_stage2ab.evaluation.f1 import MIN_IOU, name_of
from ds_stage2ab.matching.iou import pairwise_iou

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
NUM_BINS = 10
"""Of equal width (Guo et al. 2017, "On Calibration of Modern Neural Networks", section 2)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Of a set of images with scored objects."""

    shares: tuple[float, ...]
    # of the objects with a score of at least each of `THRESHOLDS`
    error: float
    # expected calibration error: mean distance of score and precision over the bins, weighted by their objects
    best_f1: float
    best_threshold: float
    # objects with this score or a higher one give it


def calibration(images: Sequence[Detections]) -> Calibration | None:
    """The figures of a set; None if nothing is predicted or nothing is true."""
    scores_P = np.concatenate([np.asarray(image.scores, dtype=float) for image in images] or [np.empty(0)])
    num_true = sum(len(image.truth) for image in images)
    if not len(scores_P) or not num_true:
        return None
    right_P = np.concatenate([_right(image) for image in images])
    f1, threshold = _best(scores_P, right_P, num_true)
    return Calibration(
        shares=tuple(float((scores_P >= one).mean()) for one in THRESHOLDS),
        error=_error(scores_P, right_P),
        best_f1=f1,
        best_threshold=threshold,
    )


def _right(image: Detections) -> NDArray[np.bool_]:
    """For each predicted object, whether it gets a true one."""
    iou_PG = pairwise_iou([one.box for one in image.predicted], [one.box for one in image.truth])
    names = [name_of(one) for one in image.truth]
    right_P, free_G = np.zeros(len(image.predicted), dtype=bool), np.ones(len(names), dtype=bool)
    for place in np.argsort(-np.asarray(image.scores, dtype=float), kind="stable"):
        name = name_of(image.predicted[place])
        same_G = free_G & np.array([one == name for one in names], dtype=bool)
        ious_G = np.where(same_G, iou_PG[place], 0.0)
        if len(names) and ious_G.max() >= MIN_IOU:
            right_P[place], free_G[ious_G.argmax()] = True, False
    return right_P


def _error(scores_P: NDArray[np.float64], right_P: NDArray[np.bool_]) -> float:
    bins_P = np.minimum((scores_P * NUM_BINS).astype(int), NUM_BINS - 1)
    # of each bin |sum of scores - number of right ones|, which is its size times the distance of the means
    gaps_B = np.abs(np.bincount(bins_P, weights=scores_P - right_P, minlength=NUM_BINS))
    return float(gaps_B.sum() / len(scores_P))


def _best(scores_P: NDArray[np.float64], right_P: NDArray[np.bool_], num_true: int) -> tuple[float, float]:
    order = np.argsort(-scores_P, kind="stable")
    ranked_P = scores_P[order]
    f1_P = 2 * right_P[order].cumsum() / (np.arange(1, len(order) + 1) + num_true)
    is_last_P = np.append(ranked_P[1:] != ranked_P[:-1], True)
    best = int(np.where(is_last_P, f1_P, -1.0).argmax())
    return float(f1_P[best]), float(ranked_P[best])
