"""Inputs of the ops."""

from collections.abc import Sequence

import torch
from torch import Tensor


def table_of(*pieces: bytes, kinds: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Table, offsets and kinds of a vocabulary whose id v writes `pieces[v]`; all text unless `kinds` say otherwise."""
    offsets = torch.tensor([0, *map(len, pieces)]).cumsum(0)
    content = torch.tensor(list(b"".join(pieces)), dtype=torch.uint8)
    return content, offsets, torch.tensor(kinds or [-1] * len(pieces), dtype=torch.int64)
