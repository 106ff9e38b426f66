"""Philox against its published vectors; draws: one function for each line of the module's list of invariants, and the
compiled op against it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab import ops
from ds_stage2ab.ops import reference
from ds_stage2ab.ops.sampling import gumbel_noise, philox

CODES = pytest.mark.parametrize("code", [ops, reference], ids=["ops", "reference"])
# philox4x32-10 of the file kat_vectors of Random123: counter, key, words
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SEED = 0x1234_5678_9ABC_DEF0
INF, NAN = float("inf"), float("nan")


def draw(code, scores, *, temperature=1.0, top_k=0, top_p=1.0, seeds=None, positions=None):
    """Of scores [B, V], the seeds SEED, SEED + 1, ... and the positions 0, 1, ... unless others are given."""
    rows = torch.arange(len(scores))
    seeds = SEED + rows if seeds is None else torch.tensor(seeds)
    positions = rows if positions is None else torch.tensor(positions)
    return code.sample_tokens(scores, temperature, top_k, top_p, seeds, positions)


def test_the_words_are_the_published_ones():
    counter, key, words = (torch.tensor(part).unbind(1) for part in zip(*KNOWN, strict=True))
    assert all(map(torch.equal, philox([*counter], [*key]), words))


# --- invariants -----------------------------------------------------------------------------------------------------


@CODES
@pytest.mark.parametrize("limits", [{}, {"top_k": 5, "top_p": 0.9}, {"top_p": 0.9, "temperature": 0.7}], ids=str)
def test_a_draw_depends_on_its_row_seed_and_position_alone(code, limits):
    scores = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    seeds, positions = [SEED, 7, 7, 0, 2**63 - 1, 1], [0, 3, 4, 0, 500, 2**32 - 1]
    together = draw(code, scores, seeds=seeds, positions=positions, **limits)
    for row in range(6):
        alone = draw(code, scores[row : row + 1], seeds=[seeds[row]], positions=[positions[row]], **limits)
        assert alone == together[row]
    backwards = draw(code, scores.flip(0), seeds=seeds[::-1], positions=positions[::-1], **limits)
    assert torch.equal(backwards, together.flip(0))


@CODES
def test_candidates_are_the_largest_scores_and_those_equal_to_the_last(code):
    # weights 8, 4, 4, 2, 1, 1 of 20
    scores = torch.tensor([4.0, 1, 8, 4, 2, 1]).log().expand(4000, -1)
    for limits, candidates in [
        ({"top_k": 1}, {2}),
        ({"top_k": 2}, {0, 2, 3}),  # the second and the third are equal
        ({"top_k": 4}, {0, 2, 3, 4}),
        ({"top_k": 9}, {*range(6)}),
        ({"top_p": 0.39}, {2}),  # 8 / 20 = 0.4
        ({"top_p": 0.41}, {0, 2, 3}),
        ({"top_p": 0.79}, {0, 2, 3}),  # (8 + 4 + 4) / 20 = 0.8
        ({"top_p": 0.81}, {0, 2, 3, 4}),
        ({"top_p": 0.0}, {2}),
        # the three of top_k 2 weigh 16, so that 8 are 0.5 of them
        ({"top_k": 2, "top_p": 0.49}, {2}),
        ({"top_k": 2, "top_p": 0.51}, {0, 2, 3}),
        # squared: 64, 16, 16, 4, 1, 1 of 102: 64 / 102 = 0.627
        ({"temperature": 0.5, "top_p": 0.62}, {2}),
        ({"temperature": 0.5, "top_p": 0.63}, {0, 2, 3}),
    ]:
        assert {*draw(code, scores, **limits).tolist()} == candidates, limits


@CODES
def test_the_largest_sum_is_drawn_and_of_equal_ones_the_lowest_id(code):
    scores = torch.randn(200, 37, generator=torch.Generator().manual_seed(1))
    noise = gumbel_noise(SEED + torch.arange(200), torch.arange(200), 37)
    for temperature in (0.3, 1.0, 4.0):
        expected = (scores.double() / temperature + noise).argmax(1)
        assert torch.equal(draw(code, scores, temperature=temperature), expected)
    # above any noise, and equal
    assert draw(code, torch.tensor([[0.0, INF, 1, INF, 0]])).tolist() == [1]


def test_noise_is_gumbel_and_finite():
    # the smallest and the largest word: u = 2^-33 and 1 - 2^-33, so -log(33 log 2) and 33 log 2
    ends = -torch.log(-torch.log((torch.tensor([0, 2**32 - 1]).double() + 0.5) * 2.0**-32))
    assert ends.tolist() == pytest.approx([-3.1299, 22.8739], abs=1e-4)
    noise = gumbel_noise(torch.arange(40) << 30, torch.arange(40), 25_000)  # a million
    assert noise.dtype == torch.float64 and torch.isfinite(noise).all()
    # mean: Euler's constant; deviation: pi / sqrt(6); both stray by about 0.0013
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.005)
    assert noise.std().item() == pytest.approx(1.28255, abs=0.007)
    # more than x with probability 1 - exp(-exp(-x)), which is 4.5e-5 at 10: 45 of a million, give or take 6.7
    assert (noise > 10).sum().item() == pytest.approx(45, abs=27)


@CODES
@pytest.mark.parametrize("limits", [{}, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 3, "top_p": 0.5}], ids=str)
def test_what_is_forbidden_or_no_number_is_not_drawn(code, limits):
    scores = torch.tensor([[NAN, -INF, -3e38, NAN, -INF]]).expand(64, -1)
    assert draw(code, scores, **limits).tolist() == [2] * 64
    for nothing in (NAN, -INF):
        assert draw(code, torch.full((3, 5), nothing), **limits).tolist() == [0, 0, 0]


# --- seeds and positions --------------------------------------------------------------------------------------------


@CODES
@pytest.mark.parametrize("bit", [0, 31, 32, 33, 47, 62])
def test_every_bit_of_a_seed_decides(code, bit):
    """Of 63; two requests of a run whose seeds agree in their low 32 would get the same answer to the same prompt."""
    flat, positions = torch.zeros(12, 50), [*range(12)]
    one = draw(code, flat, seeds=[SEED] * 12, positions=positions)
    assert not torch.equal(one, draw(code, flat, seeds=[SEED ^ 1 << bit] * 12, positions=positions))


@CODES
@pytest.mark.parametrize("bit", [0, 7, 16, 31])
def test_every_bit_of_a_position_decides(code, bit):
    flat, seeds = torch.zeros(12, 50), [*range(12)]
    one = draw(code, flat, seeds=seeds, positions=[5] * 12)
    assert not torch.equal(one, draw(code, flat, seeds=seeds, positions=[5 ^ 1 << bit] * 12))


def test_ids_of_a_block_have_words_of_their_own():
    noise_V = gumbel_noise(torch.tensor([SEED]), torch.tensor([3]), 10)[0]
    assert len(noise_V.unique()) == 10
    words = torch.stack(philox([*torch.tensor([1, 3, 0, 0])], [*torch.tensor([SEED & 0xFFFFFFFF, SEED >> 32])]))
    assert torch.equal(noise_V[4:8], -torch.log(-torch.log((words.double() + 0.5) / 2**32)))  # ids 4 to 7


# --- the compiled op ------------------------------------------------------------------------------------------------

SCORES = st.one_of(st.floats(-8, 8, width=32), st.integers(-2, 2).map(float), st.sampled_from([INF, -INF, NAN]))


@st.composite
def _cases(draw_: st.DrawFn):
    num_rows, num_ids = draw_(st.integers(0, 3)), draw_(st.integers(1, 20))
    row = st.lists(SCORES, min_size=num_ids, max_size=num_ids)
    scores = torch.tensor(draw_(st.lists(row, min_size=num_rows, max_size=num_rows))).reshape(-1, num_ids).float()
    limits = draw_(st.floats(0.01, 5)), draw_(st.integers(0, num_ids + 2)), draw_(st.sampled_from([0, 0.3, 0.9, 1]))
    seeds = draw_(st.lists(st.integers(0, 2**63 - 1), min_size=num_rows, max_size=num_rows))
    positions = draw_(st.lists(st.integers(0, 2**32 - 1), min_size=num_rows, max_size=num_rows))
    return scores, *limits, torch.tensor(seeds, dtype=torch.int64), torch.tensor(positions, dtype=torch.int64)


@given(_cases())
def test_compiled_draws_are_the_reference(case):
    assert torch.equal(ops.sample_tokens(*case), reference.sample_tokens(*case))


@pytest.mark.parametrize("limits", [{}, {"top_k": 50, "top_p": 0.9, "temperature": 0.7}, {"top_p": 0.95}], ids=str)
def test_compiled_draws_of_a_real_vocabulary_are_the_reference(limits):
    scores = 3 * torch.randn(2, 151_936, generator=torch.Generator().manual_seed(2))
    scores[1, 151_700] = 25.0  # all but certain
    assert torch.equal(draw(ops, scores, **limits), draw(reference, scores, **limits))


def test_strides_do_not_matter():
    spread = torch.randn(37, 4, generator=torch.Generator().manual_seed(3)).T
    assert torch.equal(draw(ops, spread), draw(ops, spread.contiguous()))


# --- refused --------------------------------------------------------------------------------------------------------


@CODES
def test_wrong_arguments_are_refused(code):
    scores, rows = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    for sentence, arguments in {
        "scores must be float32 with 2 axes": (scores.double(), 1.0, 0, 1.0, rows, rows),
        "the second of at least one id": (scores[:, :0], 1.0, 0, 1.0, rows, rows),
        "seeds must be int64, one for each row": (scores, 1.0, 0, 1.0, rows.int(), rows),
        "positions must be int64, one for each row": (scores, 1.0, 0, 1.0, rows, rows[:1]),
        "temperature must be above 0": (scores, 0.0, 0, 1.0, rows, rows),
        "top_k must not be negative": (scores, 1.0, -1, 1.0, rows, rows),
        r"top_p in \[0, 1\]": (scores, 1.0, 0, 1.5, rows, rows),
    }.items():
        with pytest.raises(ValueError, match=sentence):
            code.sample_tokens(*arguments)
