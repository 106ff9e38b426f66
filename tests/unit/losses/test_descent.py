"""The sign of every term, by what descending along it does to a distribution or a box."""

import pytest
import torch

from ds_stage2ab.losses.boxes import complete_iou_loss, smooth_l1
from ds_stage2ab.losses.coordinates import coordinate_terms, expected_coordinate, slot_distribution

IDS = torch.arange(5, 1005)
TARGET = torch.tensor([700])


def descended(term: str, steps: int = 50, rate: float = 1.0):
    """Distributions at a slot before and after a descent along one term alone, from a broad hill around bin 400."""
    hill = -0.5 * ((torch.arange(1000.0) - 400) / 150) ** 2
    logits = torch.cat([torch.full((5,), 2.0), hill])[None].requires_grad_()
    before = slot_distribution(logits.detach().clone(), IDS)
    for _ in range(steps):
        value = coordinate_terms(slot_distribution(logits, IDS), TARGET, sigma=2.0, huber_delta=0.1)[term].sum()
        (gradient,) = torch.autograd.grad(value, logits)
        logits = (logits - rate * gradient / gradient.abs().max()).detach().requires_grad_()
    return before, slot_distribution(logits.detach(), IDS)


def entropy(slot) -> float:
    return -(slot.log_p_MK.exp() * slot.log_p_MK).sum().item()


def test_entropy_sharpens():
    before, after = descended("coord_entropy")
    assert entropy(after) < 0.8 * entropy(before)


def test_the_gate_raises_the_mass_of_coordinates():
    before, after = descended("coord_gate")
    assert after.log_mass_M.item() > before.log_mass_M.item() / 10  # nearer to 0


@pytest.mark.parametrize("term", ["coord_ce", "coord_soft_ce"])
def test_cross_entropies_raise_the_target(term):
    before, after = descended(term)
    near = slice(698, 703)
    assert after.log_p_MK[0, near].exp().sum() > 20 * before.log_p_MK[0, near].exp().sum()


@pytest.mark.parametrize("term", ["coord_w1", "coord_el1", "coord_ehuber"])
def test_distances_move_the_expectation_to_the_target(term):
    before, after = descended(term)
    gap = [abs(999 * expected_coordinate(slot.log_p_MK).item() - 700) for slot in (before, after)]
    assert gap[1] < gap[0] / 2


def l1(box, target):
    return smooth_l1(box, target, 0.05)


def both(box, target):
    return l1(box, target) + complete_iou_loss(box, target)


OVERLAPPING, FAR, INVERTED = (0.3, 0.3, 0.5, 0.5), (0.7, 0.7, 0.9, 0.9), (0.5, 0.6, 0.2, 0.1)


@pytest.mark.parametrize(
    ("loss", "start"),
    [(one, start) for one in (complete_iou_loss, l1, both) for start in (OVERLAPPING, FAR)]
    # CIoU alone brings the centre of an inverted box home and no more: its sides count as one bin, without gradient.
    + [(l1, INVERTED), (both, INVERTED)],
)
def test_box_terms_move_a_box_onto_its_target(loss, start):
    target = torch.tensor([[0.1, 0.2, 0.4, 0.4]])
    box = torch.tensor([start])
    for _ in range(2000):
        box.requires_grad_()
        (gradient,) = torch.autograd.grad(loss(box, target).sum(), box)
        box = (box - 0.002 * gradient.sign()).detach()
    assert (box - target).abs().max() < 0.02
