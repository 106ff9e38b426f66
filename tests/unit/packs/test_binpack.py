import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.packs.binpack import pack_lengths

CASES = st.lists(st.integers(1, 50), max_size=60).flatmap(
    lambda lengths: st.tuples(st.just(lengths), st.integers(max(lengths, default=1), 120))
)


def first_fit(lengths: list[int], capacity: int) -> list[list[int]]:
    """The textbook version, quadratic."""
    bins: list[list[int]] = []
    for index, length in enumerate(lengths):
        for members in bins:
            if sum(lengths[i] for i in members) + length <= capacity:
                members.append(index)
                break
        else:
            bins.append([index])
    return bins


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[list[int]]:
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = [(capacity - sum(lengths[i] for i in members), place) for place, members in enumerate(bins)]
        fitting = [entry for entry in room if entry[0] >= lengths[index]]
        if fitting:
            bins[min(fitting)[1]].append(index)
        else:
            bins.append([index])
    return bins


@given(CASES)
def test_every_index_once_and_no_bin_too_full(case):
    lengths, capacity = case
    bins = pack_lengths(lengths, capacity)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= capacity for members in bins)


@given(CASES)
def test_same_input_same_output(case):
    lengths, capacity = case
    assert pack_lengths(lengths, capacity) == pack_lengths(list(lengths), capacity)


@given(CASES)
def test_order_within_and_between_bins(case):
    bins = pack_lengths(*case)
    assert bins == sorted(sorted(members) for members in bins)


@given(CASES)
def test_never_more_bins_than_either_heuristic(case):
    assert len(pack_lengths(*case)) == min(len(first_fit(*case)), len(best_fit_decreasing(*case)))


def test_worked_example():
    # capacity 10. First-fit: [4, 5] [8] [6, 3] [7]; longest first: [8] [7, 3] [6, 4] [5], as many.
    # A tie: first-fit keeps neighbours together.
    assert pack_lengths([4, 8, 5, 6, 3, 7], 10) == [[0, 2], [1], [3, 4], [5]]


def test_decreasing_wins_when_it_needs_fewer():
    # capacity 10. First-fit: [2, 7] [5, 3] [8] [5]; longest first: [8, 2] [7, 3] [5, 5].
    lengths = [2, 7, 5, 8, 3, 5]
    assert len(first_fit(lengths, 10)) == 4 and len(best_fit_decreasing(lengths, 10)) == 3
    assert pack_lengths(lengths, 10) == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize("lengths", [[11], [0], [-1], [3, 11]])
def test_impossible_lengths_are_refused(lengths):
    with pytest.raises(ValueError, match=r"is not within 1\.\.10"):
        pack_lengths(lengths, 10)


def test_nothing_gives_nothing():
    assert pack_lengths([], 10) == []


SETS, FEW_SETS, SET_SIZE, CAP = 500, 10, 256, 12_000
SIGMA = 0.8  # of the logarithm: nine of ten lengths lie within a quarter and the fourfold of the median


def log_normal(seed: int, median: int) -> list[int]:
    """Lengths as those of samples are: many near the median, a few many times as long."""
    rng = random.Random(f"{seed}/{median}")
    drawn = (rng.lognormvariate(math.log(median), SIGMA) for _ in range(SET_SIZE))
    return [min(CAP, max(1, round(length))) for length in drawn]


def assert_close_to_the_bound(num_sets: int, median: int) -> None:
    """Never more packs than either heuristic, and on average within 1 % of what no packing can beat."""
    excess = []
    for seed in range(num_sets):
        lengths = log_normal(seed, median)
        packs = len(pack_lengths(lengths, CAP))
        assert packs <= min(len(first_fit(lengths, CAP)), len(best_fit_decreasing(lengths, CAP)))
        excess.append(packs / math.ceil(sum(lengths) / CAP) - 1)
    assert statistics.mean(excess) <= 0.01


@pytest.mark.parametrize("median", [400, 2500])
def test_few_more_packs_than_the_lower_bound(median):
    assert_close_to_the_bound(FEW_SETS, median)


@pytest.mark.soak
@pytest.mark.parametrize("median", [400, 2500])
def test_few_more_packs_than_the_lower_bound_in_a_thousand_sets(median):
    assert_close_to_the_bound(SETS, median)
