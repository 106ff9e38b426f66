"""Draws by noise: how often each token comes, that they are cut off as transformers does."""

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from ds_stage2ab.ops.sampling import gumbel_noise
from ds_stage2ab.rollout.draws import choose
from tests.unit.parts import greedy_sampling

P = torch.tensor([0.4, 0.3, 0.2, 0.1])
NUM_DRAWS = 20_000
BOUND = 27.9
"""Of chi-square with at most 5 degrees of freedom, exceeded once in 26,000 times; the seeds are fixed."""


def sampling(**changes):
    return greedy_sampling(**{"temperature": 1.0} | changes)


def places(*values):
    return torch.tensor(values, dtype=torch.int64)


def counts(p, **changes):
    """How often each token is the first draw of NUM_DRAWS requests with seeds 0, 1, ..."""
    seeds = torch.arange(NUM_DRAWS)
    drawn = choose(p.log().expand(NUM_DRAWS, -1), sampling(**changes), seeds, torch.zeros_like(seeds))
    return drawn.bincount(minlength=len(p))


def chi_square(seen, p):
    """Sum of (seen - expected)^2 / expected over the tokens that can come; the others never did."""
    expected = p * seen.sum() / p.sum()
    assert not seen[p == 0].any()
    return ((seen - expected)[p > 0] ** 2 / expected[p > 0]).sum().item()


def test_greedy_is_the_largest_score():
    scores = torch.tensor([[0.0, 3.0, 1.0], [5.0, 5.0, 4.0]])
    for limits in ({}, {"top_p": 0.5, "top_k": 3}):
        assert choose(scores, greedy_sampling(**limits), places(1, 2), places(0, 9)).tolist() == [1, 0]


@pytest.mark.parametrize("p", [P, torch.tensor([0.5, 0.25, 0.15, 0.06, 0.03, 0.01])])
def test_the_first_draws_of_many_requests_follow_the_softmax(p):
    assert chi_square(counts(p), p) < BOUND


def test_the_draws_of_one_request_follow_the_softmax_step_after_step():
    positions = torch.arange(NUM_DRAWS)
    seen = choose(P.log().expand(NUM_DRAWS, -1), sampling(), torch.full_like(positions, 5), positions)
    assert chi_square(seen.bincount(minlength=4), P) < BOUND
    # and one draw says nothing of the next: pairs follow the product of their shares
    pairs = (4 * seen[0::2] + seen[1::2]).bincount(minlength=16)
    assert chi_square(pairs, torch.outer(P, P).flatten()) < 50.0  # 15 degrees of freedom: once in 80,000


def test_a_constant_in_all_scores_changes_no_draw():
    seeds, scores_BV = torch.arange(64), P.log().expand(64, -1)
    plain = choose(scores_BV, sampling(), seeds, seeds)
    assert torch.equal(choose(scores_BV + 3.0, sampling(), seeds, seeds), plain)
    assert len(set(plain.tolist())) == 4


def test_temperature_sharpens_and_flattens():
    for temperature in (0.5, 2.0):
        expected = P ** (1 / temperature)  # softmax of log p / T, up to its sum
        assert chi_square(counts(P, temperature=temperature), expected) < BOUND
        assert chi_square(counts(P, temperature=temperature), P) > BOUND


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"top_k": 1}, [1.0, 0, 0, 0]),
        ({"top_k": 2}, [0.4, 0.3, 0, 0]),
        ({"top_k": 9}, [0.4, 0.3, 0.2, 0.1]),
        # the smallest set that holds at least top_p: 0.4 < 0.6 <= 0.4 + 0.3, and 0.7 < 0.8 <= 0.9
        ({"top_p": 0.6}, [0.4, 0.3, 0, 0]),
        ({"top_p": 0.8}, [0.4, 0.3, 0.2, 0]),
        ({"top_p": 0.3}, [1.0, 0, 0, 0]),
        # top_k first: 0.4 / 0.7 = 0.57 is enough for 0.5 alone; of all four 0.4 would not be
        ({"top_k": 2, "top_p": 0.5}, [1.0, 0, 0, 0]),
        # temperature first: 0.16 / (0.16 + 0.09 + 0.04 + 0.01) = 0.53 is enough for 0.5 alone; 0.4 would not be
        ({"temperature": 0.5, "top_p": 0.5}, [1.0, 0, 0, 0]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_cut_off_is_never_drawn_and_the_rest_keeps_its_shares(changes, expected):
    assert chi_square(counts(P, **changes), torch.tensor(expected)) < BOUND


def test_a_token_that_is_forbidden_is_never_drawn():
    forbidden = torch.tensor([0.0, 0.7, 0.3, 0.0])  # log 0 = -inf
    assert chi_square(counts(forbidden), forbidden) < BOUND


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 500])
@pytest.mark.parametrize("top_p", [0.2, 0.9, 1.0])
def test_candidates_are_those_of_transformers(temperature, top_k, top_p):
    """The draw is the argmax of what its warpers leave, with the noise added."""
    scores = 3 * torch.randn(200, 300, generator=torch.Generator().manual_seed(4))
    scores[:, ::5] = -torch.inf
    warped, none = TemperatureLogitsWarper(temperature)(None, scores), torch.zeros(1, 0)
    if top_k:
        warped = TopKLogitsWarper(top_k)(none, warped)
    if top_p < 1:
        warped = TopPLogitsWarper(top_p)(none, warped)
    seeds, positions = torch.arange(200) << 40, torch.arange(200)
    expected = (warped + gumbel_noise(seeds, positions, 300)).argmax(1)
    changes = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    assert torch.equal(choose(scores, sampling(**changes), seeds, positions), expected)


def test_scores_of_lower_precision_are_added_in_higher():
    # in bf16 two scores of 40 and a little noise would often tie, and the lowest id would come: steps of 0.25
    scores = torch.full((400, 200), 40.0, dtype=torch.bfloat16)
    drawn = choose(scores, sampling(), torch.arange(400), torch.zeros(400, dtype=torch.int64))
    assert drawn.float().mean().item() == pytest.approx(99.5, abs=4 * 57.7 / 20)  # uniform: deviation 200 / sqrt(12)
