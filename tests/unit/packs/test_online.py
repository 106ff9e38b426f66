import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.packs.online import MAX_OPEN, pack_online

CASES = st.lists(st.integers(1, 50), max_size=60).flatmap(
    lambda lengths: st.tuples(st.just(lengths), st.integers(max(lengths, default=1), 120), st.integers(1, 5))
)


def packs_of(lengths, capacity, max_open=MAX_OPEN):
    """(indices of each pack, whether it was marked as last)."""
    return list(pack_online(range(len(lengths)), lengths.__getitem__, capacity, max_open=max_open))


@given(CASES)
def test_every_item_once_and_no_pack_too_full(case):
    lengths, capacity, max_open = case
    packs = [members for members, _ in packs_of(lengths, capacity, max_open)]
    assert sorted(index for members in packs for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in members) <= capacity for members in packs)


@given(CASES)
def test_the_order_within_a_pack_is_that_of_the_items(case):
    assert all(members == sorted(members) for members, _ in packs_of(*case))


@given(CASES)
def test_exactly_the_last_pack_is_marked(case):
    marks = [last for _, last in packs_of(*case)]
    assert marks == [False] * (len(marks) - 1) + [True] * bool(marks)


@given(CASES)
def test_the_result_does_not_depend_on_when_the_items_come(case):
    """Items one by one, with the packs taken as soon as they are closed, and all at once."""
    lengths, capacity, max_open = case
    coming = (index for index in range(len(lengths)))
    slowly = list(pack_online(coming, lengths.__getitem__, capacity, max_open=max_open))
    assert slowly == packs_of(lengths, capacity, max_open)


@given(CASES)
def test_no_more_packs_are_open_than_allowed(case):
    """Of the items that were taken, those not handed out lie in at most `max_open` packs of the final result."""
    lengths, capacity, max_open = case
    taken, handed_out, final = [], [], packs_of(lengths, capacity, max_open)
    pack_of = {index: place for place, (members, _) in enumerate(final) for index in members}
    coming = (taken.append(index) or index for index in range(len(lengths)))
    for members, _ in pack_online(coming, lengths.__getitem__, capacity, max_open=max_open):
        waiting = {pack_of[index] for index in taken if index not in handed_out}
        assert len(waiting) <= max_open + 1  # the one that is handed out, and the one that needed the place
        handed_out += members


def test_worked_example():
    # capacity 10, two open: 6 | 6 5 | 6+4 5 | 7 opens a third: the fullest, {0, 2}, is closed | 5+5 | 7 | end
    assert packs_of([6, 5, 4, 7, 5], 10, max_open=2) == [([0, 2], False), ([1, 4], False), ([3], True)]


def test_on_a_tie_the_oldest_is_closed():
    assert packs_of([6, 6, 6], 10, max_open=2) == [([0], False), ([1], False), ([2], True)]


def test_an_impossible_length_is_a_mistake():
    with pytest.raises(AssertionError, match=r"length 11 is not within 1\.\.10"):
        packs_of([3, 11], 10)
