"""Shapes and dtypes of each op's results without its data: what tracing and meta tensors run."""

import torch
from torch import Tensor

from ds_stage2ab.ops.reference import NODE_FIELDS


def pack_left(tokens: Tensor, offsets: Tensor, order: Tensor, pad_id: int, width: int) -> tuple[Tensor, Tensor]:
    shape = (order.shape[0], width)
    return tokens.new_empty(shape), tokens.new_empty(shape)


def pack_left_positions(positions: Tensor, offsets: Tensor, order: Tensor, width: int) -> Tensor:
    return positions.new_empty((positions.shape[0], order.shape[0], width))


def trim_responses(generated: Tensor, stop_id: int) -> tuple[Tensor, Tensor, Tensor]:
    num_rows = generated.shape[0]
    num_kept = torch.library.get_ctx().new_dynamic_size()
    return (
        generated.new_empty(num_kept),
        generated.new_empty(num_rows),
        generated.new_empty(num_rows, dtype=torch.bool),
    )


def scan_rollout(
    token_ids: Tensor, table: Tensor, offsets: Tensor, kinds: Tensor, opening: str, closing: str, key_head: str,
    quoted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    num_nodes, num_bytes = (torch.library.get_ctx().new_dynamic_size() for _ in range(2))
    return (
        token_ids.new_empty((num_nodes, NODE_FIELDS)),
        table.new_empty(num_bytes),
        token_ids.new_empty(token_ids.shape[0] + 1),
        token_ids.new_empty(3),
    )
