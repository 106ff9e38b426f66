"""One test per invariant of the schedule."""

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.schedule import channel_for_step, exact_ratio

SIX_DIGITS = st.integers(0, 10**6).map(lambda n: str(Decimal(n) / 10**6))


def channels(b_ratio, count: int) -> str:
    return "".join(channel_for_step(step, b_ratio) for step in range(count))


@pytest.mark.parametrize(
    ("b_ratio", "expected"),
    [
        # floor(s / 2) for s = 0..4: 0 0 1 1 2, so steps 1 and 3
        ("0.5", "ABAB"),
        # floor(0.3 s) for s = 0..10: 0 0 0 0 1 1 1 2 2 2 3, so steps 3, 6 and 9
        ("0.3", "AAABAABAAB"),
        # floor(0.75 s) for s = 0..4: 0 0 1 2 3
        ("0.75", "ABBB"),
    ],
)
def test_a_step_is_b_when_the_floor_rises(b_ratio, expected):
    assert channels(b_ratio, len(expected)) == expected


def test_0_29_gives_29_in_every_hundred():
    # 0.29 * 100 is 28.999999999999996 in binary floating point; the exact decimal gives 29
    for start in (0, 100, 10**6):
        assert sum(channel_for_step(start + step, 0.29) == "B" for step in range(100)) == 29


@given(SIX_DIGITS, st.integers(0, 400))
def test_the_first_n_steps_hold_floor_of_n_b(b_ratio, count):
    assert channels(b_ratio, count).count("B") == Fraction(b_ratio) * count // 1


@given(SIX_DIGITS, st.integers(0, 10**9))
def test_far_from_the_start_the_definition_still_holds(b_ratio, step):
    ratio = Fraction(b_ratio)
    assert (channel_for_step(step, b_ratio) == "B") == ((step + 1) * ratio // 1 > step * ratio // 1)


@pytest.mark.parametrize(("b_ratio", "letter"), [(0, "A"), ("0", "A"), (0.0, "A"), (1, "B"), (1.0, "B"), ("1.0", "B")])
def test_the_ends_are_pure(b_ratio, letter):
    assert set(channels(b_ratio, 50)) == {letter}


@given(SIX_DIGITS, st.integers(0, 10**6))
def test_every_spelling_of_a_ratio_means_the_same(b_ratio, step):
    spellings = (b_ratio, float(b_ratio), Fraction(b_ratio))
    assert len({channel_for_step(step, spelling) for spelling in spellings}) == 1
    assert len({exact_ratio(spelling) for spelling in spellings}) == 1


@given(SIX_DIGITS, st.lists(st.integers(0, 1000), max_size=20))
def test_the_answer_does_not_depend_on_what_was_asked_before(b_ratio, steps):
    once = {step: channel_for_step(step, b_ratio) for step in steps}
    assert {step: channel_for_step(step, b_ratio) for step in reversed(steps)} == once


@pytest.mark.parametrize(("step", "b_ratio"), [(-1, "0.5"), (0, "1.01"), (0, "-0.1")])
def test_what_the_schema_rules_out_is_a_programming_error(step, b_ratio):
    with pytest.raises(AssertionError):
        channel_for_step(step, b_ratio)
