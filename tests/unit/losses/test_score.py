"""The loss of a score: by hand, and that descending along it gives the mean outcome as a probability."""

import math

import pytest
import torch

from ds_stage2ab.losses.coordinates import slot_distribution
from ds_stage2ab.losses.score import score_term
from ds_stage2ab.matching.scores import confidence_of

IDS = torch.arange(3, 1003)
ZERO, SURE = 3, 1002


def test_by_hand():
    """Three quarters on the token of 999, one eighth on that of 0, the rest on a token that is no coordinate."""
    logits = torch.full((1, 1003), -100.0)
    logits[0, [SURE, ZERO, 1]] = torch.tensor([0.75, 0.125, 0.125]).log()
    value = score_term(slot_distribution(logits, IDS), torch.tensor([333]))
    assert value.tolist() == [pytest.approx(-(1 / 3) * math.log(0.75) - (2 / 3) * math.log(0.125), rel=1e-5)]


def test_gradcheck():
    logits = torch.randn(2, 1003, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    some = torch.cat([logits[:, :6], logits[:, -2:]], 1).requires_grad_()

    def value(some):
        whole = torch.cat([some[:, :6], logits[:, 6:-2], some[:, -2:]], 1)
        return score_term(slot_distribution(whole, IDS), torch.tensor([0, 700]))

    assert torch.autograd.gradcheck(value, some)


def test_a_sure_and_wrong_score_has_a_gradient():
    logits = torch.full((1, 1003), -100.0).index_fill(1, torch.tensor([ZERO]), 100.0).requires_grad_()
    score_term(slot_distribution(logits, IDS), torch.tensor([999])).sum().backward()
    assert torch.isfinite(logits.grad).all() and logits.grad[0, SURE] == pytest.approx(-1)


def test_outcomes_of_two_kinds_are_told_by_their_mean():
    """A third of the boxes is good (IoU 0.9), the others are none."""
    logits = torch.zeros(1, 1003, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        scores = slot_distribution(logits.expand(3, -1), IDS)
        score_term(scores, torch.tensor([0, 899, 0])).mean().backward()
        optimizer.step()
    p = torch.softmax(logits.detach()[0], 0)
    assert p[SURE].item() == pytest.approx(0.3, abs=0.01) and p[ZERO].item() == pytest.approx(0.7, abs=0.01)
    assert confidence_of(0, p[ZERO].item()) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize(
    ("score", "probability", "confidence"), [(999, 0.8, 0.8), (0, 0.8, 0.2), (999, None, 1.0), (333, None, 1 / 3)]
)
def test_confidence(score, probability, confidence):
    assert confidence_of(score, probability) == pytest.approx(confidence)
