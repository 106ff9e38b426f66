"""Ranks are threads here; what they share is a real barrier, so a rank that calls too rarely hangs the test."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from hypothesis import given, settings
from hypothesis import strategies as st

from ds_stage2ab.packs.rounds import in_lockstep

TIMEOUT_S = 5


def run_ranks(counts: list[int]) -> list[tuple[list[tuple[object, bool]], int]]:
    """Each rank's rounds and its number of agreements, for ranks that hold `counts` packs."""
    values = [0] * len(counts)
    barrier = Barrier(len(counts))

    def rank(number: int) -> tuple[list[tuple[object, bool]], int]:
        calls = 0

        def all_max(value: int) -> int:
            nonlocal calls
            calls += 1
            values[number] = value
            barrier.wait(TIMEOUT_S)
            largest = max(values)
            barrier.wait(TIMEOUT_S)
            return largest

        packs = [(number, index) for index in range(counts[number])]
        return list(in_lockstep(packs, lambda: "stand-in", all_max)), calls

    with ThreadPoolExecutor(len(counts)) as pool:
        return list(pool.map(rank, range(len(counts))))


COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(COUNTS)
def test_every_rank_runs_the_largest_number_of_packs(counts):
    assert [len(rounds) for rounds, _ in run_ranks(counts)] == [max(counts)] * len(counts)


@settings(max_examples=50, deadline=None)
@given(COUNTS)
def test_own_packs_come_first_each_once(counts):
    for number, (rounds, _) in enumerate(run_ranks(counts)):
        packs = [pack for pack, _ in rounds]
        own = [(number, index) for index in range(counts[number])]
        assert packs == own + ["stand-in"] * (max(counts) - len(own))


@settings(max_examples=50, deadline=None)
@given(COUNTS)
def test_exactly_the_last_round_is_marked(counts):
    for rounds, _ in run_ranks(counts):
        assert [last for _, last in rounds] == [False] * (max(counts) - 1) + [True] * (max(counts) > 0)


@settings(max_examples=50, deadline=None)
@given(COUNTS)
def test_every_rank_agrees_equally_often(counts):
    assert {calls for _, calls in run_ranks(counts)} == {max(counts) + 1}
