"""Ranks are threads here; what they share is a real barrier, so a rank that calls too rarely hangs the test."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_stage2ab.errors import NoServerLeft
from ds_stage2ab.packs.rounds import NUM_FLAGS, synchronized_rounds

TIMEOUT_S = 5


class Agreement:
    """What `world.Agreement` is to ranks that are processes."""

    def __init__(self, ranks, number):
        self.ranks, self.number, self.flags = ranks, number, [0] * NUM_FLAGS

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        self.ranks.calls[self.number] += 1
        self.ranks.told[self.number] = (error, self.flags)
        self.ranks.barrier.wait(TIMEOUT_S)
        errors, flags = zip(*self.ranks.told, strict=True)
        self.ranks.barrier.wait(TIMEOUT_S)
        self.flags = [max(column) for column in zip(*flags, strict=True)]
        failed = [one for one in errors if one is not None]
        if failed and error is None:
            raise RuntimeError("another rank failed") from failed[0]


class Ranks:
    """So many ranks with `counts` packs each; one of them fails in front of its pack `fails[1]`.

    `losses` are (rank, pack): before it the rank has no server left.
    """

    def __init__(self, counts, fails=None, losses=()):
        self.counts, self.fails, self.losses = counts, fails, losses
        self.proven = [0] * len(counts)
        self.calls, self.told = [0] * len(counts), [None] * len(counts)
        self.barrier = Barrier(len(counts))

    def run(self):
        """What each rank ran: (pack, is the last round), or what it raised."""
        with ThreadPoolExecutor(len(self.counts)) as pool:
            return list(pool.map(self._rank, range(len(self.counts))))

    def _rank(self, number):
        done = []

        def packs():
            for index in range(self.counts[number] + 1):
                if (number, index) == self.fails:
                    raise ValueError("no pack")
                for _ in range(self.losses.count((number, index))):
                    before = list(self.proven)
                    yield NoServerLeft("gone")
                    assert self.proven[number] > before[number]  # not asked again before
                if index < self.counts[number]:
                    yield (number, index), index == self.counts[number] - 1

        try:
            agree, recover = partial(Agreement, self, number), partial(self._prove, number)
            for turn in synchronized_rounds(packs(), lambda: "dummy", agree, recover):
                done.append(turn)
        except (ValueError, RuntimeError) as error:
            done.append(str(error))
        return done

    def _prove(self, number):
        """Collective, as the proof of servers is."""
        self.barrier.wait(TIMEOUT_S)
        self.proven[number] += 1


COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=4)


@settings(max_examples=50, deadline=None)
@given(COUNTS)
def test_every_rank_runs_the_largest_number_of_packs(counts):
    assert [len(rounds) for rounds in Ranks(counts).run()] == [max(counts)] * len(counts)


@settings(max_examples=50, deadline=None)
@given(COUNTS)
def test_own_packs_come_first_each_once(counts):
    for number, rounds in enumerate(Ranks(counts).run()):
        own = [(number, index) for index in range(counts[number])]
        assert [pack for pack, _ in rounds] == own + ["dummy"] * (max(counts) - len(own))


@settings(max_examples=50, deadline=None)
@given(COUNTS)
def test_exactly_the_last_round_is_marked(counts):
    for rounds in Ranks(counts).run():
        assert [last for _, last in rounds] == [False] * (max(counts) - 1) + [True] * (max(counts) > 0)


@settings(max_examples=50, deadline=None)
@given(COUNTS)
def test_every_rank_agrees_once_per_round_and_once_at_the_end(counts):
    ranks = Ranks(counts)
    ranks.run()
    assert set(ranks.calls) == {max(counts) + 1}


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=5))
def test_ranks_without_servers_are_waited_for_by_all(counts, places):
    """Each rank's packs come in order, each once; all prove equally often; exactly the last round is marked."""
    losses = [(rank % len(counts), place % (counts[rank % len(counts)] + 1)) for rank, place in places]
    ranks = Ranks(counts, losses=losses)
    rounds = ranks.run()
    assert len(set(map(len, rounds))) == len(set(ranks.proven)) == 1
    assert bool(losses) <= ranks.proven[0] <= len(losses)
    for number, own in enumerate(rounds):
        assert [pack for pack, _ in own if pack != "dummy"] == [(number, index) for index in range(counts[number])]
        assert [last for _, last in own] == [False] * (len(own) - 1) + [True] * bool(own)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_failure_is_raised_everywhere_before_another_pack_runs(place):
    """Rank 1 fails in front of its pack `place`; the others have five."""
    for number, rounds in enumerate(Ranks([5, 4, 5], fails=(1, place)).run()):
        assert len(rounds) == place + 1
        assert rounds[-1] == ("no pack" if number == 1 else "another rank failed")
