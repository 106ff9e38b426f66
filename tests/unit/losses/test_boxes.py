import math

import pytest
import torch

from ds_stage2ab.losses.boxes import complete_iou_loss, smooth_l1


def boxes(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_smooth_l1_both_branches():
    # beta 0.05: gap 0.01 -> 0.5 * 0.0001 / 0.05 = 0.001; gap 0.1 -> 0.1 - 0.025 = 0.075; gaps 0, 0.
    # mean of four: 0.076 / 4 = 0.019
    loss = smooth_l1(boxes((0.11, 0.3, 0.5, 0.7)), boxes((0.10, 0.2, 0.5, 0.7)), beta=0.05)
    assert loss.item() == pytest.approx(0.019, rel=1e-9)


def test_identical_boxes_lose_nothing():
    box = boxes((0.1, 0.2, 0.5, 0.4))
    assert complete_iou_loss(box, box).item() == pytest.approx(0.0, abs=1e-12)


def test_ciou_of_a_shifted_box():
    # two 0.2 x 0.2 boxes, one moved by 0.1 in x: overlap 0.1 * 0.2 = 0.02, union 0.06, IoU 1/3.
    # centres 0.1 apart; hull 0.3 x 0.2: diagonal^2 = 0.13; same shape: v = 0.  1 - 1/3 + 0.01/0.13
    loss = complete_iou_loss(boxes((0.2, 0.1, 0.4, 0.3)), boxes((0.1, 0.1, 0.3, 0.3)))
    assert loss.item() == pytest.approx(2 / 3 + 0.01 / 0.13, rel=1e-9)


def test_ciou_of_another_shape():
    # target 0.4 x 0.4, prediction 0.4 x 0.2 with the same centre: IoU 1/2, centre term 0.
    # v = 4/pi^2 (atan 1 - atan 2)^2; alpha = v / (1/2 + v).
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(2)) ** 2
    loss = complete_iou_loss(boxes((0.1, 0.2, 0.5, 0.4)), boxes((0.1, 0.1, 0.5, 0.5)))
    assert loss.item() == pytest.approx(0.5 + v / (0.5 + v) * v, rel=1e-9)


def test_a_side_below_one_bin_counts_as_one_bin():
    # A point has the shape of a square, as its 0.2 x 0.2 target around it: only the overlap is missing.
    target = boxes((0.1, 0.1, 0.3, 0.3))
    assert complete_iou_loss(boxes((0.2, 0.2, 0.2, 0.2)), target).item() == pytest.approx(1.0, rel=1e-9)
    # A line of 0.2 has the shape 0.2 x 1/999: v = 4/pi^2 (atan 1 - atan(0.2 * 999))^2; alpha = v / (1 + v).
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(0.2 * 999)) ** 2
    loss = complete_iou_loss(boxes((0.1, 0.2, 0.3, 0.2)), target)
    assert loss.item() == pytest.approx(1 + v / (1 + v) * v, rel=1e-9)


def test_touching_boxes_have_no_overlap():
    # centres 0.2 apart; hull 0.4 x 0.2: 0.04 / 0.2 = 0.2.
    loss = complete_iou_loss(boxes((0.3, 0.1, 0.5, 0.3)), boxes((0.1, 0.1, 0.3, 0.3)))
    assert loss.item() == pytest.approx(1.2, rel=1e-9)


def test_alpha_has_no_gradient():
    predicted = boxes((0.1, 0.2, 0.5, 0.4)).requires_grad_()
    target = boxes((0.1, 0.1, 0.5, 0.5))
    complete_iou_loss(predicted, target).sum().backward()
    # Same centre, so the height h enters by IoU = h / 0.4 and by alpha v alone; with alpha constant
    # d/dh (alpha v) = alpha * 8/pi^2 (atan 1 - atan(0.4/h)) * 0.4 / (h^2 + 0.16), and y2 moves h and the centre.
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(2)) ** 2
    alpha = v / (0.5 + v)
    slope = alpha * 8 / math.pi**2 * (math.atan(1) - math.atan(2)) * 0.4 / (0.04 + 0.16) - 1 / 0.4
    assert predicted.grad[0, 3].item() == pytest.approx(slope, rel=1e-9)


@pytest.mark.parametrize(
    "predicted",
    [
        (0.3, 0.3, 0.3, 0.3),  # a point
        (0.5, 0.6, 0.2, 0.1),  # inverted
        (0.3, 0.1, 0.5, 0.3),  # touching the target
        (0.1, 0.1, 0.3, 0.3),  # identical
        (0.0, 0.0, 1.0, 1.0),
        (0.999, 0.999, 1.0, 1.0),  # tiny and far
    ],
    ids=["point", "inverted", "touching", "identical", "whole", "tiny"],
)
@pytest.mark.parametrize("target", [(0.1, 0.1, 0.3, 0.3), (0.1, 0.1, 0.101, 0.101)], ids=["normal", "tiny"])
def test_gradients_are_finite(predicted, target):
    box = torch.tensor([predicted], requires_grad=True)
    loss = complete_iou_loss(box, torch.tensor([target])) + smooth_l1(box, torch.tensor([target]), beta=0.05)
    loss.sum().backward()
    assert torch.isfinite(loss).all() and torch.isfinite(box.grad).all()


@pytest.mark.parametrize(
    ("predicted", "target"),
    [((0.7, 0.7, 0.4, 0.4), (0.49, 0.49, 0.5, 0.5)), ((0.9, 0.9, 0.1, 0.1), (0.0, 0.0, 0.1, 0.1))],
)
def test_an_inverted_prediction_stays_within_bounds(predicted, target):
    # IoU >= 0, distance^2 / diagonal^2 <= 1 only if the hull covers the inverted corners too, alpha v <= 1.
    box = torch.tensor([predicted], requires_grad=True)
    loss = complete_iou_loss(box, torch.tensor([target]))
    loss.sum().backward()
    assert 0 <= loss.item() < 3
    assert box.grad.abs().max() < 10


def test_gradients_agree_with_finite_differences():
    predicted = boxes((0.15, 0.2, 0.55, 0.45), (0.6, 0.6, 0.9, 0.8)).requires_grad_()
    target = boxes((0.1, 0.1, 0.5, 0.5), (0.1, 0.2, 0.3, 0.35))
    # alpha is a constant of the gradient, so compare a case without a shape term: squares against squares.
    square, square_target = boxes((0.15, 0.2, 0.45, 0.5)).requires_grad_(), boxes((0.1, 0.1, 0.5, 0.5))
    assert torch.autograd.gradcheck(lambda b: smooth_l1(b, target, beta=0.05), predicted)
    assert torch.autograd.gradcheck(lambda b: complete_iou_loss(b, square_target), square, atol=1e-4)
