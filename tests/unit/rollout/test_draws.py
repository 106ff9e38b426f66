"""Draws by noise: how often each token comes, and that no row knows of another."""

import math

import pytest
import torch

from ds_stage2ab.rollout.draws import draw_processors
from tests.unit.parts import greedy_sampling

P = torch.tensor([0.4, 0.3, 0.2, 0.1])
NUM_DRAWS = 20_000
BOUND = 27.9
"""Of chi-square with at most 5 degrees of freedom, exceeded once in 26,000 times; the seeds are fixed."""


def sampling(**changes):
    return greedy_sampling(**{"temperature": 1.0} | changes)


def draw(processors, scores_BV):
    """The tokens [B] that a greedy `generate` would take."""
    ids = torch.zeros(len(scores_BV), 1, dtype=torch.long)
    for processor in processors:
        scores_BV = processor(ids, scores_BV)
    return scores_BV.argmax(-1)


def counts(p, **changes):
    """How often each token is the first draw of NUM_DRAWS requests with seeds 0, 1, ..."""
    scores_BV = p.log().expand(NUM_DRAWS, -1).clone()
    return draw(draw_processors(sampling(**changes), range(NUM_DRAWS)), scores_BV).bincount(minlength=len(p))


def chi_square(seen, p):
    """Sum of (seen - expected)^2 / expected over the tokens that can come; the others never did."""
    expected = p * seen.sum() / p.sum()
    assert not seen[p == 0].any()
    return ((seen - expected)[p > 0] ** 2 / expected[p > 0]).sum().item()


def test_greedy_needs_no_processor():
    assert draw_processors(greedy_sampling(), [1, 2]) == []
    assert draw_processors(greedy_sampling(top_p=0.5, top_k=3), [1]) == []


@pytest.mark.parametrize("p", [P, torch.tensor([0.5, 0.25, 0.15, 0.06, 0.03, 0.01])])
def test_the_first_draws_of_many_requests_follow_the_softmax(p):
    assert chi_square(counts(p), p) < BOUND


def test_the_draws_of_one_request_follow_the_softmax_step_after_step():
    processors, scores = draw_processors(sampling(), [5]), P.log()[None]
    seen = torch.cat([draw(processors, scores.clone()) for _ in range(NUM_DRAWS // 4)])
    assert chi_square(seen.bincount(minlength=4), P) < BOUND
    # and one draw says nothing of the next: pairs follow the product of their shares
    pairs = (4 * seen[0::2] + seen[1::2]).bincount(minlength=16)
    assert chi_square(pairs, torch.outer(P, P).flatten()) < 50.0  # 15 degrees of freedom: once in 80,000


def test_a_constant_in_all_scores_changes_no_draw():
    seeds, scores_BV = range(64), P.log().expand(64, -1)
    plain = draw(draw_processors(sampling(), seeds), scores_BV.clone())
    assert torch.equal(draw(draw_processors(sampling(), seeds), scores_BV + 3.0), plain)
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


def streams(seeds, scores_BV, num_steps=12):
    """The tokens of each row [num_steps, B]."""
    processors = draw_processors(sampling(top_k=40, top_p=0.95), seeds)
    return torch.stack([draw(processors, scores_BV.clone()) for _ in range(num_steps)])


def test_a_row_draws_the_same_whatever_stands_beside_it():
    scores_BV = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    together = streams([11, 22, 33], scores_BV)
    for row, seed in enumerate((11, 22, 33)):
        assert torch.equal(streams([seed], scores_BV[row : row + 1])[:, 0], together[:, row])
    other = streams([33, 22, 44], scores_BV[[2, 1, 0]])  # another place, other neighbours
    assert torch.equal(other[:, :2], together[:, [2, 1]])


def test_seeds_decide():
    scores_BV = torch.zeros(2, 50)
    one, other = streams([11, 12], scores_BV).T
    assert not torch.equal(one, other)
    assert torch.equal(*streams([11, 11], scores_BV).T)
    assert len(set(one.tolist())) > 6  # of 12 draws: the noise goes on, it is not that of the first step again


@pytest.mark.parametrize("bit", [0, 31, 32, 33, 47, 62])
def test_every_bit_of_a_seed_decides(bit):
    """Of 63; two requests of a run whose seeds agree in their low 32 would get the same answer to the same prompt."""
    seed = 0x1234_5678_9ABC_DEF0
    one, other = streams([seed, seed ^ 1 << bit], torch.zeros(2, 50)).T
    assert not torch.equal(one, other)


def test_the_largest_and_the_smallest_seed_of_a_request_are_legal():
    assert streams([0, 2**63 - 1], torch.zeros(2, 50)).shape == (12, 2)


def test_scores_of_lower_precision_are_added_in_fp32():
    # in bf16 two scores of 40 and a little noise would often tie: 8 bits leave steps of 0.25
    (noise,) = [step for step in draw_processors(sampling(), [1]) if type(step).__name__ == "GumbelNoise"]
    noisy = noise(torch.zeros(1, 1, dtype=torch.long), torch.full((1, 200), 40.0, dtype=torch.bfloat16))
    assert noisy.dtype == torch.float32
    assert len(noisy.unique()) == 200


def test_the_noise_is_that_of_gumbel():
    (noise,) = [step for step in draw_processors(sampling(), [1]) if type(step).__name__ == "GumbelNoise"]
    drawn = noise(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, NUM_DRAWS))
    # mean: Euler's constant 0.57722; standard deviation pi / sqrt(6) = 1.28255; the mean of 20,000 strays by 0.009
    assert drawn.mean().item() == pytest.approx(0.57722, abs=0.04)
    assert drawn.std().item() == pytest.approx(math.pi / math.sqrt(6), abs=0.04)
    assert torch.isfinite(drawn).all()
