"""Phases that add up: hand-made seconds on a clock that stands still by itself."""

import pytest

from ds_stage2ab.runtime import timers as module
from ds_stage2ab.runtime.timers import Clock


class Hand:
    """Stands in for the module `time`; tests move it."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def hand(monkeypatch):
    made = Hand()
    monkeypatch.setattr(module, "time", made)
    return made


def test_a_phase_has_the_seconds_of_its_block(hand):
    clock = Clock()
    with clock("data"):
        hand.now += 2.5
    hand.now += 10  # outside every phase: nobody's
    assert clock.seconds == {"data": 2.5}


def test_blocks_of_one_phase_add_up(hand):
    clock = Clock()
    for seconds in (1.0, 4.0):
        with clock("data"):
            hand.now += seconds
    with clock("optimizer"):
        hand.now += 0.5
    assert clock.seconds == {"data": 5.0, "optimizer": 0.5}  # 1 + 4


def test_a_phase_inside_another_counts_for_itself_alone(hand):
    clock = Clock()
    with clock("segments"):
        hand.now += 1
        with clock("rollout"):
            hand.now += 20
        hand.now += 2
        with clock("match"):
            hand.now += 300
        hand.now += 4
    assert clock.seconds == {"rollout": 20.0, "match": 300.0, "segments": 7.0}  # 1 + 2 + 4


def test_three_levels_and_what_follows_them(hand):
    clock = Clock()
    with clock("outer"):
        with clock("middle"):
            hand.now += 1
            with clock("inner"):
                hand.now += 10
            hand.now += 2
        hand.now += 100
    with clock("outer"):
        hand.now += 1000  # the inner phases of the block before are not taken off again
    assert clock.seconds == {"inner": 10.0, "middle": 3.0, "outer": 1100.0}  # 1 + 2, 100 + 1000
    assert sum(clock.seconds.values()) == hand.now - 100.0


def test_a_phase_inside_its_own_kind_is_counted_once(hand):
    clock = Clock()
    with clock("data"):
        hand.now += 1
        with clock("data"):
            hand.now += 2
    assert clock.seconds == {"data": 3.0}


def test_a_block_that_fails_is_counted_and_its_error_goes_on(hand):
    clock = Clock()

    @clock("rollout")
    def broken():
        hand.now += 5
        raise ValueError("broken")

    @clock("segments")
    def outer():
        hand.now += 1
        broken()

    with pytest.raises(ValueError, match="broken"):
        outer()
    with clock("data"):
        hand.now += 2
    assert clock.seconds == {"rollout": 5.0, "segments": 1.0, "data": 2.0}


def test_two_clocks_know_nothing_of_each_other(hand):
    one, two = Clock(), Clock()
    with one("data"), two("data"):
        hand.now += 3
    assert one.seconds == two.seconds == {"data": 3.0}
