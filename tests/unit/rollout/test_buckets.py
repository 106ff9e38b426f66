"""Tensors that travel together: back to back in one row of bytes, each at a multiple of 16."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from ds_stage2ab.rollout.buckets import Parcel, fill, open_row, places
from ds_stage2ab.rollout.weight_sync import buckets

# 6 fp32 numbers are 24 bytes, padded to 32; 5 bf16 are 10, padded to 16; 3 int64 are 24, padded to 32; one is 4, to 16
TENSORS = {
    "fp32": torch.tensor([[1.5, -2.0, 0.1], [torch.inf, -0.0, 1e-40]]),
    "bf16": torch.tensor([1.0, 0.3333, -7.0, 3e38, 0.0]).to(torch.bfloat16),
    "int64": torch.tensor([[2**62], [-1], [0]]),
    "scalar": torch.tensor(0.25),
    "none": torch.zeros(0, 4),
}


def parcels_of(tensors: dict[str, torch.Tensor]) -> list[Parcel]:
    return [
        Parcel(name=name, dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape))
        for name, tensor in tensors.items()
    ]


def filled(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    parcels = parcels_of(tensors)
    row = torch.full((places(parcels)[1],), 0xAB, dtype=torch.uint8)
    fill(row, parcels, tensors.values())
    return row


def test_every_tensor_begins_at_a_multiple_of_16():
    assert places(parcels_of(TENSORS)) == ([0, 32, 48, 80, 96], 96)
    assert [parcel.num_bytes for parcel in parcels_of(TENSORS)] == [24, 10, 24, 4, 0]
    assert places([]) == ([], 0)


def test_the_bytes_are_the_tensors_own():
    row = filled({"a": torch.tensor([1.0]), "b": torch.tensor([258])})  # fp32 1.0 is 0x3f800000, 258 is 0x0102
    assert row.tolist() == [0, 0, 0x80, 0x3F, *[0xAB] * 12, 2, 1, *[0] * 6, *[0xAB] * 8]


def same_bytes(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))


def test_mixed_tensors_come_back_bit_for_bit():
    opened = open_row(filled(TENSORS), parcels_of(TENSORS))
    for sent, came in zip(TENSORS.values(), opened, strict=True):
        assert (came.dtype, came.shape) == (sent.dtype, sent.shape)
        assert same_bytes(sent, came)


def test_an_opened_row_is_looked_at_in_place():
    row = filled({"a": torch.tensor([1.0, 2.0])})
    (view,) = open_row(row, parcels_of({"a": torch.tensor([1.0, 2.0])}))
    view[1] = 1.0
    assert row[:8].tolist() == [0, 0, 0x80, 0x3F] * 2


def test_views_that_do_not_lie_in_order_are_sent_as_they_look():
    turned = torch.tensor([[1, 2, 3], [4, 5, 6]]).T
    (came,) = open_row(filled({"a": turned}), parcels_of({"a": turned}))
    assert came.tolist() == [[1, 4], [2, 5], [3, 6]]


def test_a_row_of_another_length_or_a_missing_tensor_is_a_mistake():
    parcels = parcels_of(TENSORS)
    with pytest.raises(AssertionError, match="a row of 95 bytes, not of 96"):
        open_row(torch.zeros(95, dtype=torch.uint8), parcels)
    with pytest.raises(ValueError, match="shorter"):
        fill(torch.zeros(96, dtype=torch.uint8), parcels, list(TENSORS.values())[:-1])


# --- which tensors travel together ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needed:
    """A tensor of a checkpoint, by the parameters it is made from."""

    name: str
    needs: tuple[str, ...]


@pytest.fixture
def model():
    """Parameters a to e of 40, 20, 60, 200 and 12 bytes."""
    made = nn.Module()
    for name, count, dtype in (("a", 10, torch.float32), ("b", 10, torch.bfloat16), ("c", 15, torch.float32)):
        made.register_parameter(name, nn.Parameter(torch.zeros(count, dtype=dtype)))
    made.register_parameter("d", nn.Parameter(torch.zeros(50)))
    made.register_parameter("e", nn.Parameter(torch.zeros(3)))
    return made


def names(model: nn.Module, tensors: list[Needed], most_bytes: int) -> list[str]:
    return ["".join(one.name for one in bucket) for bucket in buckets(tensors, model, most_bytes)]


def plain(letters: str) -> list[Needed]:
    return [Needed(letter, (letter,)) for letter in letters]


def test_buckets_hold_at_most_so_many_bytes(model):
    # 40 + 20 = 60; with c 120; d is larger than any of these limits and travels alone; e begins a new one
    assert names(model, plain("abcde"), 60) == ["ab", "c", "d", "e"]
    assert names(model, plain("abcde"), 59) == ["a", "b", "c", "d", "e"]
    assert names(model, plain("abcde"), 120) == ["abc", "d", "e"]
    assert names(model, plain("abcde"), 332) == ["abcde"]
    assert names(model, plain("abcde"), 331) == ["abcd", "e"]


def test_a_large_tensor_does_not_take_a_later_one_with_it(model):
    assert names(model, plain("dea"), 60) == ["d", "ea"]


def test_a_tensor_weighs_what_it_is_made_from(model):
    """Merged of a base (200) and two adapters (20 + 12): 232."""
    merged = Needed("m", ("d", "b", "e"))
    assert names(model, [*plain("a"), merged, *plain("c")], 272) == ["am", "c"]
    assert names(model, [*plain("a"), merged, *plain("c")], 271) == ["a", "m", "c"]


def test_partitioned_parameters_weigh_what_they_are_whole(model):
    """ZeRO 3 leaves nothing of a parameter here, and its number of elements in `ds_numel`."""
    whole = {name: parameter.numel() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.data = torch.zeros(0, dtype=parameter.dtype)
        parameter.ds_numel = whole[name]
    assert names(model, plain("abcde"), 60) == ["ab", "c", "d", "e"]
    assert names(model, plain("abcde"), 331) == ["abcd", "e"]
