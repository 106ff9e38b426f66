"""The static form by hand; one function for each thing that is rounded up, and what is added stays unread."""

import torch

from ds_stage2ab.rollout.decoding.attention import SlotMemory
from ds_stage2ab.rollout.decoding.passes import NAMES, by_name, make_pass
from ds_stage2ab.rollout.decoding.static import Shape, numbers_of, shape_of, static_inputs
from tests.unit.rollout.decoding.test_attention import GROUPS, row

FORM = {"dtype": torch.float32, "heads_per_key": GROUPS}


def test_tokens_queries_and_columns_are_rounded_up():
    memory = SlotMemory(4, 1000)
    # 1000 / 8 = 125 columns, up to 128
    assert shape_of([row(0, 5, answer=3)], memory) == Shape(tokens=4, queries=1, columns=128)
    # 127 columns before the newest token, and one more after it
    assert shape_of([row(0, 120, answer=8)], memory).columns == 128
    assert shape_of([row(0, 120, answer=8, draft=1)], memory) == Shape(tokens=4, queries=25, columns=256)
    # 1 + 4 tokens of 4 slots: two for each
    assert shape_of([row(0, 5, answer=1), row(1, 5, answer=1, draft=3)], memory).tokens == 8
    assert shape_of([row(0, 990, answer=9)], memory).columns == 1000


def test_what_has_no_shape():
    memory = SlotMemory(1, 1000)
    assert shape_of([row(0, 5)], memory) is None, "a prompt"
    assert shape_of([row(0, 5, answer=1, draft=7)], memory) == Shape(tokens=8, queries=25, columns=128)
    assert shape_of([row(0, 5, answer=1, draft=8)], memory) is None, "more tokens than eight for a slot"


def test_the_numbers_of_a_pass_are_those_of_the_ordinary_form_and_more():
    rows, memory = [row(0, 5, answer=3, draft=2), row(1, 4, answer=1)], SlotMemory(3, 20)
    shape = shape_of(rows, memory)
    assert shape == Shape(tokens=6, queries=25, columns=20)
    inputs = static_inputs(numbers_of(rows, shape, memory), shape, memory, **FORM)
    ordinary = make_pass(rows, memory, device=torch.device("cpu"), **FORM)
    for name in ("tokens_T", "picked_N", "slot_N", "num_columns_N", "seeds_N", "indices_N"):
        assert getattr(inputs, name)[:4].tolist() == getattr(ordinary, name).tolist()
    assert inputs.position_ids[..., :4].tolist() == ordinary.position_ids.tolist()
    # rows 0 and 1 have 7 and 4 columns already; two tokens more go behind all slots
    assert inputs.slots.lines_T.tolist() == [7, 8, 9, 24, 60, 60]
    assert (inputs.slots.num_rows, inputs.slots.num_answering) == (3, 6)
    seen = (inputs.slots.mask[:, 0, :25] == 0).sum(-1)
    assert [row_seen.tolist() for row_seen in seen] == [[8, 9, 10] + [1] * 22, [5] + [1] * 24, [1] * 25]
    assert inputs.slots.scatter.tolist()[:4] == [0, 1, 2, 25]


def test_a_pass_of_no_rows_writes_to_no_slot():
    memory, shape = SlotMemory(2, 20), Shape(tokens=2, queries=1, columns=20)
    sizes = dict.fromkeys(NAMES, 2)
    numbers = by_name(numbers_of([], shape, memory), sizes)
    assert numbers["lines"].tolist() == [40, 40] and numbers["visible"].tolist() == [1, 1]


def test_slots_become_longer():
    memory = SlotMemory(2, 3)
    memory.layers[0] = (torch.arange(7.0)[:, None], torch.arange(7.0)[:, None])
    memory.widen(4)
    # the line that nobody reads is still the last
    assert memory.layers[0][0].flatten().tolist() == [0, 1, 2, 0, 3, 4, 5, 0, 0] and memory.spare == 8
