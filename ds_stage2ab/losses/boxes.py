"""Loss terms on whole boxes, (x1, y1, x2, y2) as fractions of the image sides.

    bbox_smoothl1   mean over the four coordinates of SmoothL1 with beta (Girshick 2015, eq. 3; beta as in PyTorch)
    bbox_ciou       1 - IoU + rho^2 / c^2 + alpha v     (Zheng et al. 2020, eq. 8 to 11), alpha without gradient

Shapes: N boxes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_SIDE = 1.0 / 999
"""Sides below one bin count as one bin: the data cannot hold a thinner box, and an inverted or empty
prediction keeps finite gradients (its centre and SmoothL1 still pull it into shape)."""


def smooth_l1(predicted_N4: Tensor, target_N4: Tensor, beta: float) -> Tensor:
    """Mean SmoothL1 over the four coordinates, shape [N]."""
    return F.smooth_l1_loss(predicted_N4, target_N4, beta=beta, reduction="none").mean(-1)


def complete_iou_loss(predicted_N4: Tensor, target_N4: Tensor) -> Tensor:
    """CIoU loss of each pair of boxes, shape [N], in [0, about 3).

    Args:
        predicted_N4: fp32; any order of corners, any size.
        target_N4: fp32, x2 > x1 and y2 > y1.
    """
    low_N2, high_N2 = predicted_N4[:, :2], predicted_N4[:, 2:]
    target_low_N2, target_high_N2 = target_N4[:, :2], target_N4[:, 2:]
    size_N2 = (high_N2 - low_N2).clamp(min=MIN_SIDE)
    target_size_N2 = target_high_N2 - target_low_N2

    overlap_N = (torch.minimum(high_N2, target_high_N2) - torch.maximum(low_N2, target_low_N2)).clamp(min=0).prod(-1)
    iou_N = overlap_N / (size_N2.prod(-1) + target_size_N2.prod(-1) - overlap_N)

    # Around all four corners: an inverted prediction must not shrink the hull that its distance is measured by.
    outer_high_N2 = torch.maximum(torch.maximum(low_N2, high_N2), target_high_N2)
    outer_low_N2 = torch.minimum(torch.minimum(low_N2, high_N2), target_low_N2)
    hull_N2 = outer_high_N2 - outer_low_N2
    centre_gap_N2 = (low_N2 + high_N2 - target_low_N2 - target_high_N2) / 2
    distance_N = centre_gap_N2.square().sum(-1) / hull_N2.square().sum(-1)

    angle_gap_N = torch.atan2(target_size_N2[:, 0], target_size_N2[:, 1]) - torch.atan2(size_N2[:, 0], size_N2[:, 1])
    shape_N = 4 / math.pi**2 * angle_gap_N.square()
    alpha_N = (shape_N / (1 - iou_N + shape_N).clamp(min=torch.finfo(shape_N.dtype).eps)).detach()
    return 1 - iou_N + distance_N + alpha_N * shape_N
