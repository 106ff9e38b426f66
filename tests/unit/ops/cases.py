"""Random inputs of the ops, as hypothesis strategies."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

IDS = st.integers(-3, 9)
# any id in the range of int64 is a token
WIDE_IDS = st.one_of(IDS, st.integers(-(2**63), 2**63 - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ragged:
    """Prompts, a choice of them, and a width that takes it."""

    prompts: list[list[int]]
    order: Tensor
    # [B]
    width: int

    @property
    def tokens(self) -> Tensor:
        """[N]."""
        return torch.tensor([token for prompt in self.prompts for token in prompt], dtype=torch.int64)

    @property
    def offsets(self) -> Tensor:
        """[S + 1]."""
        lengths = torch.tensor([0, *map(len, self.prompts)])
        return lengths.cumsum(0)

    def positions(self, num_axes: int) -> Tensor:
        """[A, N], every value another one."""
        return torch.arange(1, 1 + num_axes * len(self.tokens)).reshape(num_axes, -1)


@st.composite
def _ragged(draw: st.DrawFn) -> Ragged:
    prompts = draw(st.lists(st.lists(WIDE_IDS, max_size=6), max_size=6))
    order = draw(st.lists(st.integers(0, len(prompts) - 1), max_size=8)) if prompts else []
    longest = max((len(prompts[prompt]) for prompt in order), default=0)
    width = longest + draw(st.integers(0, 3))
    return Ragged(prompts=prompts, order=torch.tensor(order, dtype=torch.int64), width=width)


@st.composite
def _generated(draw: st.DrawFn) -> tuple[Tensor, int]:
    num_rows, num_columns = draw(st.integers(0, 5)), draw(st.integers(0, 6))
    ids = draw(st.lists(IDS, min_size=num_rows * num_columns, max_size=num_rows * num_columns))
    return torch.tensor(ids, dtype=torch.int64).reshape(num_rows, num_columns), draw(IDS)


def table_of(*pieces: bytes, kinds: Sequence[int] = ()) -> tuple[Tensor, Tensor, Tensor]:
    """Table, offsets and kinds of a vocabulary whose id v writes `pieces[v]`; all text unless `kinds` say otherwise."""
    offsets = torch.tensor([0, *map(len, pieces)]).cumsum(0)
    content = torch.tensor(list(b"".join(pieces)), dtype=torch.uint8)
    return content, offsets, torch.tensor(kinds or [-1] * len(pieces), dtype=torch.int64)


RAGGED = _ragged()
# (generated [B, L], stop id)
GENERATED = _generated()
