"""IoU beside pycocotools', and assignments beside every possible one, on random small cases.

`make test` takes 1,000 of each, `make soak` 10,000.
"""

from itertools import combinations, permutations
from random import Random

import numpy as np
import pytest
from pycocotools import mask

from ds_stage2ab.carriers import Truth
from ds_stage2ab.evaluation.f1 import MIN_IOU, score_image
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.iou import pairwise_iou

FEW, MANY = 1_000, 10_000


def random_boxes(random: Random, number: int, side: int) -> list[tuple[int, int, int, int]]:
    corners = [(random.randrange(side - 1), random.randrange(side - 1)) for _ in range(number)]
    return [(x, y, random.randrange(x + 1, side), random.randrange(y + 1, side)) for x, y in corners]


def coco_iou(first, second) -> np.ndarray:
    """[P, G] by pycocotools; its boxes are x, y, width, height."""
    boxes = [np.array([(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in some], dtype=float) for some in (first, second)]
    return np.asarray(mask.iou(*boxes, [0] * len(second))).reshape(len(first), len(second))


def check_iou(cases: int) -> None:
    random = Random(0)
    for _ in range(cases):
        side = random.choice([6, 40, 1000])
        first, second = (random_boxes(random, random.randrange(1, 6), side) for _ in range(2))
        np.testing.assert_allclose(pairwise_iou(first, second), coco_iou(first, second), rtol=1e-12, atol=0)


def cheapest(allowed: dict[tuple[int, int], float], rows: int, columns: int, fp_cost: float, fn_cost: float) -> float:
    """The least cost of all one-to-one choices of allowed pairs (which cost what they map to)."""
    best = float("inf")
    for size in range(min(rows, columns) + 1):
        for chosen in combinations(range(rows), size):
            for partners in permutations(range(columns), size):
                pairs = list(zip(chosen, partners, strict=True))
                if all(pair in allowed for pair in pairs):
                    alone = fp_cost * (rows - size) + fn_cost * (columns - size)
                    best = min(best, sum(allowed[pair] for pair in pairs) + alone)
    return best


def check_assignments(cases: int) -> None:
    random = Random(1)
    for _ in range(cases):
        side = random.choice([4, 8, 30])
        first, second = (random_boxes(random, random.randrange(5), side) for _ in range(2))
        costs = {"fp_cost": random.choice([0.25, 0.5, 1.0]), "fn_cost": random.choice([0.25, 0.5, 1.0])}
        gate = random.choice([0.0, 0.3, 0.5])
        predicted, truth = ([Truth(desc="a", box=box) for box in boxes] for boxes in (first, second))
        match = match_boxes(predicted, truth, candidate_top_k=10, iou_gate=gate, **costs)
        iou = coco_iou(first, second) if first and second else np.zeros((len(first), len(second)))
        allowed = {(p, g): 1 - iou[p, g] for p, g in np.ndindex(iou.shape) if iou[p, g] >= gate}
        assert set(match.pairs) <= allowed.keys()
        paid = sum(allowed[pair] for pair in match.pairs)
        paid += costs["fp_cost"] * len(match.spurious) + costs["fn_cost"] * len(match.missed)
        assert paid == pytest.approx(cheapest(allowed, *iou.shape, **costs), abs=1e-9)
        check_score(predicted, truth, iou)


def check_score(predicted, truth, iou) -> None:
    """Evaluation: as many pairs as can be, and the largest summed IoU of so many."""
    allowed = {(p, g): 1 - iou[p, g] - 100.0 for p, g in np.ndindex(iou.shape) if iou[p, g] >= MIN_IOU}
    best = cheapest(allowed, *iou.shape, fp_cost=0.0, fn_cost=0.0)
    score = score_image(predicted, truth)
    assert score.matched_boxes == len(score.pairs)  # all have one description
    assert len(score.pairs) - score.iou_sum - 100.0 * len(score.pairs) == pytest.approx(best, abs=1e-9)


def test_iou_beside_pycocotools():
    check_iou(FEW)


def test_assignments_beside_all_others():
    check_assignments(FEW)


@pytest.mark.soak
def test_ten_thousand_of_each():
    check_iou(MANY)
    check_assignments(MANY)
