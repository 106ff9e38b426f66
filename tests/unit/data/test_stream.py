from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.data.stream import (
    SampleOrder,
    draws_of,
    epoch_and_place,
    evaluation_draw,
    permutation,
    shuffled_objects,
)


def test_permutation_is_pinned():
    # Computed once with coreutils, b2sum -l 128 of "7/0/0" .. "7/0/4", sorted by digest. A change here
    # changes the data order of every run there ever was.
    assert permutation(7, 0, 5) == [1, 2, 0, 3, 4]


@given(st.integers(0, 2**40), st.integers(0, 50), st.integers(0, 60))
def test_permutation_is_one(seed, epoch, num_records):
    assert sorted(permutation(seed, epoch, num_records)) == list(range(num_records))


def test_epochs_and_seeds_differ():
    params = {tuple(permutation(seed, epoch, 20)) for seed in range(3) for epoch in range(3)}
    assert len(params) == 9


def test_draws_by_hand():
    # R 16, W 2, p 2, so G 4. Step 3, micro-step 1, rank 1: 3*16 + (1*2 + 1)*2 = 54, and one more.
    assert draws_of(3, 1, 1, effective_batch_size=16, num_ranks=2, per_device_batch_size=2) == [54, 55]


@given(st.integers(0, 20), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_all_ranks_and_micro_steps_cover_a_step_once(step, num_ranks, per_device, micro_steps):
    size = num_ranks * per_device * micro_steps
    seen = [
        draw
        for micro_step in range(micro_steps)
        for rank in range(num_ranks)
        for draw in draws_of(
            step,
            rank,
            micro_step,
            effective_batch_size=size,
            num_ranks=num_ranks,
            per_device_batch_size=per_device,
        )
    ]
    assert seen == list(range(step * size, (step + 1) * size))


def test_a_micro_step_outside_the_window_is_a_mistake():
    with pytest.raises(AssertionError):
        draws_of(0, 0, 4, effective_batch_size=8, num_ranks=1, per_device_batch_size=2)


def test_evaluation_draws_are_no_training_draws():
    assert [evaluation_draw(index) for index in range(3)] == [-1, -2, -3]


def test_epoch_and_place():
    assert epoch_and_place(37, 16) == (2, 5)  # 37 = 2 * 16 + 5


def test_order_drop_leaves_out_other_records_each_epoch():
    order = SampleOrder(0, 23, 16)
    epochs = [[order.record_of(draw) for draw in range(16 * e, 16 * e + 16)] for e in range(8)]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert set().union(*epochs) == set(range(23))


def test_order_uses_every_record_when_nothing_is_left_over():
    order = SampleOrder(0, 10, 10)
    assert sorted(order.record_of(draw) for draw in range(10)) == list(range(10))
    assert [order.record_of(draw) for draw in (10, 11)] == permutation(0, 1, 10)[:2]


def test_epochs_that_wrap_use_every_record_in_each():
    order = SampleOrder(0, 10, 10)  # in steps of 4 the third one holds the end of the first epoch and what follows
    epochs = [[order.record_of(draw) for draw in range(10 * e, 10 * e + 10)] for e in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert [order.record_of(draw) for draw in range(8, 12)] == epochs[0][8:] + epochs[1][:2]


@given(st.permutations(range(40)))
def test_order_does_not_depend_on_what_was_asked_before(draws):
    straight = SampleOrder(5, 11, 8)
    expected = {draw: straight.record_of(draw) for draw in range(40)}
    mixed = SampleOrder(5, 11, 8)
    assert {draw: mixed.record_of(draw) for draw in draws} == expected


def test_shuffled_objects_differ_by_draw_and_keep_everything():
    record = Record(
        id="a", image=Path("a.png"), width=9, height=9, where="a.jsonl:1",
        objects=tuple(Truth(desc=str(k), box=(k, 0, k + 1, 1)) for k in range(6)),
    )  # fmt: skip
    params = [shuffled_objects(record, 0, draw).objects for draw in range(4)]
    assert len(set(params)) == 4
    assert all(sorted(order, key=lambda truth: truth.box) == list(record.objects) for order in params)
    assert shuffled_objects(record, 0, 2).objects == params[2]
