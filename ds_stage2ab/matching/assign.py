"""The assignment of predicted to true objects: the cheapest one by exact IoU.

A pair costs 1 - IoU, a prediction without a partner `fp_cost`, a true object without one `fn_cost`. Targets
depend on the result, so it is a function of the objects alone: both lists are sorted by (box, desc) first, and
the solver sees the same matrix for any order of the input. Between assignments of equal cost the solver's
choice on the sorted matrix stands; it only adds, subtracts and compares doubles, and no two different IoUs of
boxes share one, so the choice is the same on every platform.

Invariants:
- Every prediction is in exactly one of `pairs` and `spurious`, every true object in exactly one of `pairs` and
  `missed`, and all three ascend.
- A pair has an IoU of at least `iou_gate`, and its true object is among the prediction's `candidate_top_k` best.
- No other choice among such pairs costs less.
- Permuting either list permutes the result (objects equal in box and description take each other's places).
- Descriptions only order objects of equal boxes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from ds_stage2ab.carriers import Box, Match, ParsedObject, Truth
from ds_stage2ab.matching.iou import pairwise_iou


def match_boxes(
    predicted: Sequence[Truth | ParsedObject],
    truth: Sequence[Truth],
    *,
    candidate_top_k: int,
    iou_gate: float,
    fp_cost: float,
    fn_cost: float,
) -> Match:
    """Match the P objects of a rollout to the G true ones.

    Args:
        predicted: [P] in any order.
        truth: [G] in any order.
        candidate_top_k: how many true objects a prediction may be matched to: the best by IoU, then by the
            distance of the centres, then by their sorted position.
        iou_gate: the least IoU of a pair, in 0..1.
        fp_cost: of a prediction without a partner, >= 0.
        fn_cost: of a true object without a partner, >= 0.

    Returns: the assignment, as indices into the given lists.
    """
    assert candidate_top_k >= 1, f"candidate_top_k {candidate_top_k}"
    assert fp_cost >= 0 and fn_cost >= 0, f"fp_cost {fp_cost}, fn_cost {fn_cost}"
    rows, columns = _order(predicted), _order(truth)
    boxes_P = [predicted[row].box for row in rows]
    boxes_G = [truth[column].box for column in columns]
    iou_PG = pairwise_iou(boxes_P, boxes_G)
    feasible_PG = iou_PG >= iou_gate
    # Candidates are the best by IoU first, so a row of few feasible ones loses none to the limit.
    if feasible_PG.sum(axis=1).max(initial=0) > candidate_top_k:
        feasible_PG &= _candidates(iou_PG, boxes_P, boxes_G, candidate_top_k)
    chosen = _cheapest(iou_PG, feasible_PG, fp_cost, fn_cost)
    pairs = sorted((rows[p], columns[g]) for p, g in chosen)
    return Match(
        pairs=tuple(pairs),
        missed=tuple(sorted(set(columns) - {column for _, column in pairs})),
        spurious=tuple(sorted(set(rows) - {row for row, _ in pairs})),
    )


def _order(objects: Sequence[Truth | ParsedObject]) -> list[int]:
    """Indices of the objects, sorted by box and then by description; the sort is stable."""
    return sorted(range(len(objects)), key=lambda place: (objects[place].box, objects[place].desc))


def _candidates(
    iou_PG: NDArray[np.float64], boxes_P: Sequence[Box], boxes_G: Sequence[Box], top_k: int
) -> NDArray[np.bool_]:
    """Whether each true box is among the `top_k` best of each predicted one."""
    ranking_PG = np.lexsort((_centre_distance(boxes_P, boxes_G), -iou_PG), axis=1)  # stable: position comes last
    among_PG = np.zeros(iou_PG.shape, dtype=np.bool_)
    np.put_along_axis(among_PG, ranking_PG[:, :top_k], True, axis=1)
    return among_PG


def _centre_distance(boxes_P: Sequence[Box], boxes_G: Sequence[Box]) -> NDArray[np.int64]:
    """[P, G] square of twice the distance of the centres, in bins: whole numbers that order as the distance does."""
    twice_P2 = np.asarray(boxes_P, dtype=np.int64).reshape(-1, 2, 2).sum(axis=1)
    twice_G2 = np.asarray(boxes_G, dtype=np.int64).reshape(-1, 2, 2).sum(axis=1)
    return ((twice_P2[:, None] - twice_G2[None, :]) ** 2).sum(axis=2)


def _cheapest(
    iou_PG: NDArray[np.float64], feasible_PG: NDArray[np.bool_], fp_cost: float, fn_cost: float
) -> list[tuple[int, int]]:
    """The pairs (row, column) of the cheapest assignment (Kuhn 1955; scipy solves it by Crouse 2016).

    The matrix is square: each prediction may take a dummy for `fp_cost`, each true object one for `fn_cost`,
    and dummies take each other for nothing. An infeasible pair costs one more than both its ends left alone.
    """
    num_predicted, num_true = iou_PG.shape
    size = num_predicted + num_true
    cost_SS = np.zeros((size, size))
    cost_SS[:num_predicted, :num_true] = np.where(feasible_PG, 1.0 - iou_PG, fp_cost + fn_cost + 1.0)
    cost_SS[:num_predicted, num_true:] = fp_cost
    cost_SS[num_predicted:, :num_true] = fn_cost
    solution = zip(*(places.tolist() for places in linear_sum_assignment(cost_SS)), strict=True)
    return [(p, g) for p, g in solution if p < num_predicted and g < num_true and feasible_PG[p, g]]
