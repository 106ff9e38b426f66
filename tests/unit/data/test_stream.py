import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.data.stream import (
    SampleOrder,
    draws_of,
    epoch_and_place,
    evaluation_draw,
    permutation,
    records_per_epoch,
    request_seed,
)
from ds_stage2ab.errors import ConfigError


def test_permutation_is_pinned():
    # Computed once with coreutils, b2sum -l 128 of "7/0/0" .. "7/0/4", sorted by digest. A change here
    # changes the data order of every run there ever was.
    assert permutation(7, 0, 5) == [1, 2, 0, 3, 4]


@given(st.integers(0, 2**40), st.integers(0, 50), st.integers(0, 60))
def test_permutation_is_one(seed, epoch, num_records):
    assert sorted(permutation(seed, epoch, num_records)) == list(range(num_records))


def test_epochs_and_seeds_differ():
    orders = {tuple(permutation(seed, epoch, 20)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


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


def test_records_per_epoch():
    assert records_per_epoch(23, 8, "drop") == 16  # 2 * 8
    assert records_per_epoch(23, 8, "wrap") == 23
    with pytest.raises(ConfigError, match="7 records are fewer than the 8 samples"):
        records_per_epoch(7, 8, "wrap")


def test_epoch_and_place():
    assert epoch_and_place(37, 16) == (2, 5)  # 37 = 2 * 16 + 5


def test_order_drop_leaves_out_other_records_each_epoch():
    order = SampleOrder(0, 23, 8, "drop")
    epochs = [[order.record_of(draw) for draw in range(16 * e, 16 * e + 16)] for e in range(8)]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert set().union(*epochs) == set(range(23))


def test_order_wrap_goes_on_within_a_step():
    order = SampleOrder(0, 10, 4, "wrap")
    assert sorted(order.record_of(draw) for draw in range(10)) == list(range(10))
    assert [order.record_of(draw) for draw in (10, 11)] == permutation(0, 1, 10)[:2]


@given(st.permutations(range(40)))
def test_order_does_not_depend_on_what_was_asked_before(draws):
    straight = SampleOrder(5, 11, 4, "wrap")
    expected = {draw: straight.record_of(draw) for draw in range(40)}
    mixed = SampleOrder(5, 11, 4, "wrap")
    assert {draw: mixed.record_of(draw) for draw in draws} == expected


def test_request_seed_by_the_formula():
    digest = hashlib.blake2b(b"3/-1/scene-7").digest()
    assert request_seed(3, evaluation_draw(0), "scene-7") == int.from_bytes(digest[:8], "big") // 2
    assert 0 <= request_seed(3, 5, "\u4e2d") < 2**63
    assert request_seed(3, 5, "a") != request_seed(3, 6, "a")
