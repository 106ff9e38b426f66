"""How tensors travel together: back to back in one row of bytes, each at a place that both ends compute alike.

Learner and server both import this, so it needs nothing but torch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes: a tensor of any type may be looked at in place if it begins at a multiple of its element size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One tensor of a bucket: `Parcel(name="lm_head.weight", dtype="bfloat16", shape=(8, 4))`."""

    name: str
    dtype: str
    # of torch, without "torch."
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * getattr(torch, self.dtype).itemsize


def places(parcels: Sequence[Parcel]) -> tuple[list[int], int]:
    """(where each tensor begins, length of the row), bytes."""
    starts, end = [], 0
    for parcel in parcels:
        starts.append(end)
        end += -(-parcel.num_bytes // ALIGNMENT) * ALIGNMENT
    return starts, end


def fill(row: Tensor, parcels: Sequence[Parcel], tensors: Iterable[Tensor]) -> None:
    """Write each tensor into its place of a row of bytes [num_bytes]."""
    for view, tensor in zip(open_row(row, parcels), tensors, strict=True):
        view.copy_(tensor)


def open_row(row: Tensor, parcels: Sequence[Parcel]) -> list[Tensor]:
    """The tensors of a row, in place."""
    starts, end = places(parcels)
    assert row.dtype == torch.uint8 and len(row) == end, f"a row of {len(row)} bytes, not of {end}"
    return [
        row[start : start + parcel.num_bytes].view(getattr(torch, parcel.dtype)).view(parcel.shape)
        for start, parcel in zip(starts, parcels, strict=True)
    ]
