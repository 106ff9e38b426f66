"""Segments back to back in one row: offsets, shifted slots, restarting positions."""

import pytest
import torch

from ds_stage2ab.carriers import Segment, Vision
from ds_stage2ab.packs.collate import collate, dummy_pack, make_packs


def segment(
    name: str, length: int, *, slots: tuple[int, ...] = (), bins: tuple[int, ...] = (), scores: int = 0
) -> Segment:
    """A segment of `length` tokens with recognisable numbers: ids 100, 101, ..., an image of two patches."""
    first = 100 * (1 + ord(name) - ord("a"))
    return Segment(
        input_ids=torch.arange(first, first + length),
        # the rows of time, height and width start at 0 too, and differ from the text row and from each other
        position_ids=torch.arange(length)[None] * torch.tensor([[1], [2], [3], [4]]),
        vision=Vision(pixel_values=torch.full((2, 3), float(first)), image_grid_thw=torch.tensor([[1, 1, 2]])),
        weights=torch.arange(length) / first,
        is_desc=torch.arange(length) == 1,
        slots=torch.tensor(slots, dtype=torch.long),
        bins=torch.tensor(bins, dtype=torch.long),
        score_slots=torch.arange(1, 1 + scores),
        score_bins=torch.arange(scores) + first,
        sample_id=name,
        draw=0,
        terms={},
    )


A = segment("a", 5, slots=(1, 2, 3, 4), bins=(10, 11, 12, 13))
B = segment("b", 3, scores=1)
C = segment("c", 6, slots=(0, 2, 4, 5), bins=(20, 21, 22, 23), scores=2)


def test_tokens_stand_back_to_back():
    pack = collate([A, B, C], num_passes=3)
    assert pack.input_ids.tolist() == [100, 101, 102, 103, 104, 200, 201, 202, 300, 301, 302, 303, 304, 305]
    assert pack.boundaries == (0, 5, 8, 14)  # 5, 5 + 3, 8 + 6
    assert pack.segment_of.tolist() == [0] * 5 + [1] * 3 + [2] * 6
    assert pack.sample_ids == ("a", "b", "c")
    assert pack.is_desc.nonzero().flatten().tolist() == [1, 6, 9]  # token 1 of each: 1, 5 + 1, 8 + 1
    torch.testing.assert_close(pack.weights, torch.cat([A.weights, B.weights, C.weights]), rtol=0, atol=0)
    assert pack.num_passes == 3 and pack.real


def test_slots_are_shifted_to_the_pack_and_bins_are_not():
    pack = collate([A, B, C], num_passes=1)
    assert pack.slots.tolist() == [1, 2, 3, 4, 8, 10, 12, 13]  # those of C moved by 5 + 3
    assert pack.bins.tolist() == [10, 11, 12, 13, 20, 21, 22, 23]
    assert pack.score_slots.tolist() == [6, 9, 10]  # those of B moved by 5, of C by 5 + 3
    assert pack.score_bins.tolist() == [200, 300, 301]


def test_every_row_of_positions_restarts_at_each_segment():
    pack = collate([A, B], num_passes=1)
    assert pack.position_ids.tolist() == [
        [0, 1, 2, 3, 4, 0, 1, 2],
        [0, 2, 4, 6, 8, 0, 2, 4],
        [0, 3, 6, 9, 12, 0, 3, 6],
        [0, 4, 8, 12, 16, 0, 4, 8],
    ]


def test_images_are_in_the_order_of_their_segments():
    pack = collate([C, A], num_passes=1)
    assert pack.vision.pixel_values[:, 0].tolist() == [300, 300, 100, 100]
    assert pack.vision.image_grid_thw.tolist() == [[1, 1, 2], [1, 1, 2]]


def test_three_rows_of_positions_are_a_mistake():
    # without the text row attention silently runs across segments
    three = Segment(**{name: getattr(A, name) for name in Segment.__slots__} | {"position_ids": A.position_ids[1:]})
    with pytest.raises(AssertionError, match="the text row and three vision rows"):
        collate([three], num_passes=1)


def packed(segments, *, capacity=8, packing=True, online=False, num_passes=1):
    """(packs, which of them is marked as last)."""
    pairs = list(make_packs(segments, capacity=capacity, packing=packing, online=online, num_passes=num_passes))
    return [pack for pack, _ in pairs], [last for _, last in pairs]


def test_packs_are_in_the_order_of_their_first_segment():
    # lengths 5 3 6 5 into 8: first-fit gives {0, 1}, {2}, {3}; decreasing 6 5 5 3 gives {2}, {0, 1}, {3} as well
    packs, last = packed([A, B, C, segment("d", 5)], num_passes=2)
    assert [pack.sample_ids for pack in packs] == [("a", "b"), ("c",), ("d",)]
    assert last == [False, False, True]
    assert [len(pack.input_ids) for pack in packs] == [8, 6, 5]
    assert all(pack.num_passes == 2 and pack.real for pack in packs)


@pytest.mark.parametrize("online", [False, True])
def test_without_packing_each_segment_is_a_pack(online):
    packs, last = packed([A, B, C], capacity=1000, packing=False, online=online)
    assert [pack.sample_ids for pack in packs] == [("a",), ("b",), ("c",)]
    assert [pack.boundaries for pack in packs] == [(0, 5), (0, 3), (0, 6)]
    assert last == [False, False, True]


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("packing", [False, True])
def test_no_segments_are_no_packs(packing, online):
    assert packed([], packing=packing, online=online) == ([], [])


def test_a_segment_above_the_capacity_is_refused():
    with pytest.raises(ValueError, match=r"length 6 at index 1 is not within 1\.\.5"):
        packed([A, C], capacity=5)


def test_a_pack_is_handed_out_while_segments_still_come():
    """Of lengths 6 5 6 5 6 into 8 the fifth needs a fifth pack: the fullest, the first, is handed out for it."""
    taken = []

    def coming():
        for one in (segment("a", 6), segment("b", 5), segment("c", 6), segment("d", 5), segment("e", 6)):
            taken.append(one.sample_id)
            yield one

    packs = make_packs(coming(), capacity=8, packing=True, online=True, num_passes=1)
    assert taken == []
    first, last = next(packs)
    assert (first.sample_ids, last, taken) == (("a",), False, ["a", "b", "c", "d", "e"])
    rest = [(pack.sample_ids, last) for pack, last in packs]
    assert rest == [(("b",), False), (("c",), False), (("d",), False), (("e",), True)]


def test_a_dummy_pack_holds_everything_and_is_not_real():
    pack = dummy_pack(C, num_passes=4)
    assert not pack.real and pack.num_passes == 4
    whole = collate([C], num_passes=4)
    assert torch.equal(pack.input_ids, whole.input_ids) and torch.equal(pack.slots, whole.slots)
    assert torch.equal(pack.vision.pixel_values, C.vision.pixel_values)  # it runs through the vision tower too
