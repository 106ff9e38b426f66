"""Every loss term's gradient against numerical differences in float64; masked positions get exactly nothing."""

import math

import pytest
import torch

from ds_stage2ab.losses.boxes import complete_iou_loss, smooth_l1
from ds_stage2ab.losses.coordinates import coordinate_terms, expected_coordinate, slot_distribution
from ds_stage2ab.losses.objective import COORDINATE_TERMS
from ds_stage2ab.losses.text import token_cross_entropy, weighted_sample_mean

IDS = torch.arange(7, 1007)  # coordinate ids between seven and three text tokens
BINS = torch.tensor([3, 640])


def random_logits(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 1010, generator=generator, dtype=torch.float64).mul(2).requires_grad_()


@pytest.mark.parametrize("term", COORDINATE_TERMS)
def test_coordinate_terms(term):
    def value(logits):
        # huber_delta well inside the coordinates, so that both of its branches are taken
        return coordinate_terms(slot_distribution(logits, IDS), BINS, sigma=2.0, huber_delta=0.1)[term]

    assert torch.autograd.gradcheck(value, random_logits(), fast_mode=True)


def test_expected_coordinates():
    def value(logits):
        return expected_coordinate(slot_distribution(logits, IDS).log_p_MK)

    assert torch.autograd.gradcheck(value, random_logits(), fast_mode=True)


def test_text_cross_entropy():
    weights, samples = torch.tensor([1.0, 0.25]), torch.tensor([0, 0])

    def value(logits):
        return weighted_sample_mean(token_cross_entropy(logits, torch.tensor([5, 900])), weights, samples, 2)

    assert torch.autograd.gradcheck(value, random_logits(), fast_mode=True)


BOXES = torch.tensor(
    [
        [0.15, 0.20, 0.55, 0.45],  # overlapping
        [0.60, 0.60, 0.90, 0.85],  # apart
        [0.20, 0.15, 0.30, 0.40],  # inside
        [0.05, 0.05, 0.80, 0.90],  # around
    ],
    dtype=torch.float64,
)
TARGETS = torch.tensor([[0.1, 0.1, 0.5, 0.5]] * 4, dtype=torch.float64)


def test_smooth_l1():
    assert torch.autograd.gradcheck(lambda boxes: smooth_l1(boxes, TARGETS, beta=0.07), BOXES.clone().requires_grad_())


def parts(box: list[float], target: list[float]) -> tuple[float, float, float]:
    """(IoU, distance term, shape term v) of one pair by their definitions."""
    (x1, y1, x2, y2), (a1, b1, a2, b2) = box, target
    overlap = max(0.0, min(x2, a2) - max(x1, a1)) * max(0.0, min(y2, b2) - max(y1, b1))
    iou = overlap / ((x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - overlap)
    gap = ((x1 + x2 - a1 - a2) / 2) ** 2 + ((y1 + y2 - b1 - b2) / 2) ** 2
    diagonal = (max(x2, a2) - min(x1, a1)) ** 2 + (max(y2, b2) - min(y1, b1)) ** 2
    shape = 4 / math.pi**2 * (math.atan((a2 - a1) / (b2 - b1)) - math.atan((x2 - x1) / (y2 - y1))) ** 2
    return iou, gap / diagonal, shape


@pytest.mark.parametrize("place", range(4), ids=["overlapping", "apart", "inside", "around"])
def test_ciou_with_alpha_held(place):
    """alpha is a constant of the gradient: differences of 1 - IoU + distance + alpha v with alpha as it is here."""
    box, target = BOXES[place].tolist(), TARGETS[place].tolist()
    iou, distance, shape = parts(box, target)
    alpha = shape / (1 - iou + shape)
    variable = BOXES[place : place + 1].clone().requires_grad_()
    loss = complete_iou_loss(variable, TARGETS[place : place + 1])
    assert loss.item() == pytest.approx(1 - iou + distance + alpha * shape, rel=1e-12)
    loss.sum().backward()
    step = 1e-6
    for corner in range(4):
        ends = []
        for sign in (1, -1):
            moved = [c + sign * step * (k == corner) for k, c in enumerate(box)]
            moved_iou, moved_distance, moved_shape = parts(moved, target)
            ends.append(1 - moved_iou + moved_distance + alpha * moved_shape)
        assert variable.grad[0, corner].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8)


def test_masked_positions_get_exactly_nothing():
    logits = random_logits()
    weights, samples = torch.tensor([1.0, 0.0]), torch.tensor([0, 1])
    values = token_cross_entropy(logits, torch.tensor([5, 900]))
    weighted_sample_mean(values, weights, samples, 2).sum().backward()
    assert logits.grad[0].any()
    assert not logits.grad[1].any()
