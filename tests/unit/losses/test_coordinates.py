"""Distributions with two or three bins of mass, so that every sum can be done by hand."""

import math

import pytest
import torch

from ds_stage2ab.losses.coordinates import coordinate_terms, expected_coordinate, slot_distribution, soft_target

FAR = -1e4  # a logit without probability
IDS = torch.arange(5, 1005)  # coordinate ids behind five text tokens


def logits_with(bins: dict[int, float], text: float = FAR) -> torch.Tensor:
    """[1, 1005] logits: ln of the given probabilities at the bins, `text` at token 0."""
    logits = torch.full((1, 1005), FAR, dtype=torch.float64)
    logits[0, 0] = text
    for k, probability in bins.items():
        logits[0, 5 + k] = math.log(probability)
    return logits.float()


def terms_of(bins: dict[int, float], target: int, **settings: float) -> dict[str, float]:
    slots = slot_distribution(logits_with(bins), IDS)
    settings = {"sigma": 0.01, "huber_delta": 0.001} | settings
    return {name: value.item() for name, value in coordinate_terms(slots, torch.tensor([target]), **settings).items()}


def test_mass_and_restricted_distribution():
    # exp-logits: text 1, bins 1/4 and 3/4 -> mass 1/2, inside the bins 1/4 and 3/4.
    slots = slot_distribution(logits_with({10: 0.25, 20: 0.75}, text=0.0), IDS)
    assert slots.log_mass_M.item() == pytest.approx(math.log(0.5), rel=1e-6)
    assert slots.log_p_MK[0, [10, 20]].exp().tolist() == pytest.approx([0.25, 0.75], rel=1e-6)


def test_a_mass_of_nearly_one_is_never_above_it():
    logits = torch.randn(2000, 1010, generator=torch.Generator().manual_seed(0)) * 2 + 30
    logits[:, :5] = logits[:, 1005:] = 15  # e^-15 of a coordinate: the sums differ by their rounding
    slots = slot_distribution(logits, IDS)
    assert (slots.log_mass_M <= 0).all() and (slots.log_mass_M > -1e-4).all()


def test_gate_is_minus_log_mass():
    slots = slot_distribution(logits_with({10: 0.25, 20: 0.75}, text=0.0), IDS)
    gate = coordinate_terms(slots, torch.tensor([10]), sigma=2.0, huber_delta=0.001)["coord_gate"]
    assert gate.item() == pytest.approx(math.log(2), rel=1e-6)


def test_expected_coordinate():
    # 0.25 * 100/999 + 0.75 * 300/999 = 250/999.
    slots = slot_distribution(logits_with({100: 0.25, 300: 0.75}), IDS)
    assert expected_coordinate(slots.log_p_MK).item() == pytest.approx(250 / 999, rel=1e-6)


def test_soft_target_ratio_of_neighbours():
    # exp(-1/2 (1/2)^2) = exp(-1/8) one bin from the centre at sigma 2.
    target = soft_target(torch.tensor([500]), sigma=2.0)[0]
    assert target.sum().item() == pytest.approx(1.0, abs=1e-6)
    assert (target[501] / target[500]).item() == pytest.approx(math.exp(-1 / 8), rel=1e-5)
    assert (target[498] / target[500]).item() == pytest.approx(math.exp(-1 / 2), rel=1e-5)


def test_soft_ce_with_a_needle_is_the_hard_ce():
    # sigma 0.01 puts all mass on bin 10: -ln(1/4) = ln 4 for both.
    terms = terms_of({10: 0.25, 20: 0.75}, target=10)
    assert terms["coord_soft_ce"] == pytest.approx(math.log(4), rel=1e-5)
    assert terms["coord_ce"] == pytest.approx(math.log(4), rel=1e-5)


def test_w1_is_mass_times_distance():
    # three quarters of the mass must move 10 bins: 0.75 * 10/999.
    assert terms_of({10: 0.25, 20: 0.75}, target=10)["coord_w1"] == pytest.approx(7.5 / 999, rel=1e-4)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (998, 999)])
def test_w1_counts_every_border_of_two_bins(first, second):
    # three quarters of the mass must move one bin, at either end of the scale: 0.75 * 1/999.
    assert terms_of({first: 0.25, second: 0.75}, target=first)["coord_w1"] == pytest.approx(0.75 / 999, rel=1e-4)


def test_w1_is_zero_at_the_soft_target():
    soft = soft_target(torch.tensor([500]), sigma=2.0)
    logits = torch.cat([torch.full((1, 5), FAR), soft.clamp(min=1e-30).log()], dim=1)
    terms = coordinate_terms(slot_distribution(logits, IDS), torch.tensor([500]), sigma=2.0, huber_delta=0.001)
    assert terms["coord_w1"].item() == pytest.approx(0.0, abs=1e-6)


def test_expected_l1_and_huber():
    # |c - c_b|: 0 with 1/4, 10/999 with 3/4. Huber beyond delta: delta (d - delta/2) = 0.001 (10/999 - 0.0005).
    terms = terms_of({10: 0.25, 20: 0.75}, target=10)
    assert terms["coord_el1"] == pytest.approx(7.5 / 999, rel=1e-4)
    assert terms["coord_ehuber"] == pytest.approx(0.75 * 0.001 * (10 / 999 - 0.0005), rel=1e-4)


def test_entropy_of_a_fair_coin():
    assert terms_of({10: 0.5, 20: 0.5}, target=10)["coord_entropy"] == pytest.approx(math.log(2), rel=1e-5)


def test_minimising_entropy_sharpens():
    logits = logits_with({10: 0.4, 20: 0.6}).requires_grad_()
    terms = coordinate_terms(slot_distribution(logits, IDS), torch.tensor([10]), sigma=2.0, huber_delta=0.001)
    terms["coord_entropy"].sum().backward()
    likelier, unlikelier = logits.grad[0, 5 + 20], logits.grad[0, 5 + 10]
    assert likelier < 0 < unlikelier  # descent raises the likelier bin


def test_no_slot_gives_empty_terms_with_a_gradient():
    logits = torch.zeros(0, 1005, requires_grad=True)
    terms = coordinate_terms(
        slot_distribution(logits, IDS), torch.zeros(0, dtype=torch.long), sigma=2.0, huber_delta=0.1
    )
    sum(value.sum() for value in terms.values()).backward()
    assert all(value.shape == (0,) for value in terms.values()) and logits.grad.shape == (0, 1005)


@pytest.mark.parametrize(
    "term", ["coord_soft_ce", "coord_w1", "coord_gate", "coord_ce", "coord_el1", "coord_ehuber", "coord_entropy"]
)
def test_gradients_stay_finite_at_extreme_logits(term):
    logits = torch.zeros(2, 1005)
    logits[0, 5] = 1e4
    logits[1, 0] = 1e4
    logits.requires_grad_()
    terms = coordinate_terms(slot_distribution(logits, IDS), torch.tensor([999, 0]), sigma=2.0, huber_delta=0.001)
    terms[term].sum().backward()
    assert torch.isfinite(terms[term]).all() and torch.isfinite(logits.grad).all()
