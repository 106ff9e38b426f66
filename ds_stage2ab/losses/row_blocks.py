"""A function of wide rows in fp32, computed block by block of rows: the same numbers, with fp32 copies of one block.

A row of logits is as wide as the vocabulary. One fp32 copy of 5,000 rows of 152,000 ids takes 3 GB, and autograd would
keep another; here it keeps the logits as they are, and the backward pass computes each block again.

Shapes: M rows, V vocabulary.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_VALUES = 2**24
"""Logits of a block: 64 MiB in fp32, some 110 rows of 152,000 ids."""

RowFunction = Callable[..., tuple[Tensor, ...]]
"""(logits [m, V] in fp32, others [m, ...]) -> tensors [m, ...]; each row of a result depends on that row alone."""


def by_row_blocks(function: RowFunction, logits_MV: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """`function` of the logits in fp32 (float64 if they are); the gradient is of their own precision.

    Args:
        function: of each block.
        logits_MV: any number of rows, also none.
        others: one row for each of the logits', without a gradient.
    """
    return _ByRowBlocks.apply(function, logits_MV, *others)


class _ByRowBlocks(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, function: RowFunction, logits_MV: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        context.function = function
        context.save_for_backward(logits_MV, *others)
        results = [function(_wide(block), *rest) for block, *rest in _blocks(logits_MV, *others)]
        return tuple(torch.cat(parts) for parts in zip(*results, strict=True))

    @staticmethod
    @once_differentiable
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        logits_MV, *others = context.saved_tensors
        gradient_MV = torch.empty_like(logits_MV)
        blocks = zip(_blocks(gradient_MV), _blocks(logits_MV, *others), _blocks(logits_MV, *gradients), strict=True)
        for (own,), (block, *rest), (_, *given) in blocks:
            with torch.enable_grad():
                block = block.detach().requires_grad_()
                results = context.function(_wide(block), *rest)
            own.copy_(torch.autograd.grad(results, block, given)[0])
        return None, gradient_MV, *(None for _ in others)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _blocks(logits_MV: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of each; one block of no rows if there are none."""
    rows = max(1, BLOCK_VALUES // logits_MV.shape[-1])
    return zip(*(tensor.split(rows) for tensor in (logits_MV, *others)), strict=True)
