"""The static form of a pass of answers alone: few shapes, and all integers in one tensor, which may stay where it is.

All slots take part, and tokens, queries and columns are rounded up. What is added changes no answer: a token more
writes to the line that nobody reads, a query more sees one column, and what is chosen for either is not read.

Legend: R slots, T tokens, Q queries of a slot, C columns of it, N integers of a pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ds_stage2ab.rollout.decoding.attention import SlotMemory
from ds_stage2ab.rollout.decoding.drafts import LONGEST
from ds_stage2ab.rollout.decoding.passes import NAMES, HostNumbers, Numbers, PassInputs, by_name, inputs_of
from ds_stage2ab.rollout.decoding.rows import Row

TOKENS = (1, 2, 4, 8)
"""Sizes of T, for each slot; more are so many scores that a graph would keep memory for."""
QUERIES = (1, 1 + LONGEST)
"""Sizes of Q."""
COLUMNS = 8
"""Sizes of C."""
ALIGNED = 64
"""Columns; C is a multiple of it, but for a whole slot: the kernels of masked attention ask for multiples of 8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What passes have in common that run the same work on the same memory."""

    tokens: int
    queries: int
    columns: int


def shape_of(rows: Sequence[Row], memory: SlotMemory) -> Shape | None:
    """Of the next pass; None: it has prompts, or more tokens than the largest shape."""
    if not all(row.num_cached for row in rows):
        return None
    fed = [1 + len(row.draft) for row in rows]
    tokens, queries = _rounded(-(-sum(fed) // memory.num_slots), TOKENS), _rounded(max(fed), QUERIES)
    if tokens is None or queries is None:
        return None
    step = _multiple(-(-memory.width // COLUMNS), ALIGNED)
    longest = max(row.num_cached + num for row, num in zip(rows, fed, strict=True))
    columns = min(memory.width, _multiple(longest, step))
    return Shape(tokens=tokens * memory.num_slots, queries=queries, columns=columns)


def numbers_of(rows: Sequence[Row], shape: Shape, memory: SlotMemory) -> Tensor:
    """[N] of a pass of these rows, or of none, on the host."""
    numbers = Numbers(width=memory.width)
    for slot, row in enumerate(rows):
        numbers.add(slot, row)
    numbers.add_queries(rows, shape.queries)
    numbers.picked += range(len(numbers.picked), shape.tokens)
    filling = dict.fromkeys(NAMES, 0) | {"lines": memory.spare, "seen": 1, "num_columns": 1, "visible": 1}
    for name, size in _sizes(shape, memory).items():
        part = getattr(numbers, name)
        part += [filling[name]] * (size - len(part))
    return numbers.whole()


def static_inputs(
    numbers_N: Tensor, shape: Shape, memory: SlotMemory, *, dtype: torch.dtype, heads_per_key: int
) -> PassInputs:
    """Of the numbers on the device, by work on tensors alone: the same for all passes of a shape.

    A token more stands behind all others, so the places of tokens are those of the ordinary form.
    """
    host = HostNumbers(
        num_rows=memory.num_slots,
        columns=shape.columns,
        most_columns=shape.columns,
        is_padded=True,
        is_gathered=shape.queries > 1,
    )
    return inputs_of(by_name(numbers_N, _sizes(shape, memory)), host, memory, [], dtype, heads_per_key)


def _sizes(shape: Shape, memory: SlotMemory) -> dict[str, int]:
    num_queries = memory.num_slots * shape.queries
    return dict.fromkeys(NAMES, shape.tokens) | {"visible": num_queries, "gather": num_queries}


def _rounded(number: int, sizes: Sequence[int]) -> int | None:
    """The next larger size, where there is one."""
    return next((size for size in sizes if size >= number), None)


def _multiple(number: int, unit: int) -> int:
    """The next larger multiple."""
    return -(-number // unit) * unit
