"""The meaning of each op in plain PyTorch: what the compiled ones are compared with, and the fallback.

Shapes as in `ds_stage2ab/ops/__init__.py`. No loop over tokens or rows but in the scans, which are the plain Python
of `ds_stage2ab/ops/scan.py` and `ds_stage2ab/ops/lines.py`; `ds_stage2ab/ops/sampling.py` has `philox` and
`sample_tokens`.

Invariants:
- a row of a packed rectangle is padding, then its prompt: nothing is lost, and the mask says which is which
- positions are packed exactly as ids are, axis by axis
- a trimmed response is everything before the first stop token, and says whether there was one
- a scanned response gives every complete value with all that is in it, a key right before its value
- offsets, indices and widths that do not fit together are refused before anything is read
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import pad

from ds_stage2ab.ops import lines
from ds_stage2ab.ops.json_value import Node
from ds_stage2ab.ops.sampling import philox, sample_tokens
from ds_stage2ab.ops.scan import SPECIAL, Grammar, Scan, scan

__all__ = [
    "pack_left",
    "pack_left_positions",
    "philox",
    "sample_tokens",
    "scan_lines",
    "scan_rollout",
    "trim_responses",
]

KINDS = ("object", "array", "string", "number", "literal", "coordinate")
ENDED = ("closed", "refused", "end")
NODE_FIELDS = 6  # kind, first, last, parent, slot, number


def pack_left(tokens: Tensor, offsets: Tensor, order: Tensor, pad_id: int, width: int) -> tuple[Tensor, Tensor]:
    """(ids, mask) of the prompts `order`, right-aligned."""
    _check_tensor("tokens", tokens, 1)
    source_BW, is_token_BW = _sources(tokens.shape[-1], offsets, order, width)
    return pad(tokens, (0, 1), value=pad_id)[source_BW], is_token_BW.long()


def pack_left_positions(positions: Tensor, offsets: Tensor, order: Tensor, width: int) -> Tensor:
    """Position ids of the prompts `order`, right-aligned."""
    _check_tensor("positions", positions, 2)
    source_BW, _ = _sources(positions.shape[-1], offsets, order, width)
    return pad(positions, (0, 1))[:, source_BW]


def trim_responses(generated: Tensor, stop_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """(tokens, lengths, stopped) of what stands before each row's first stop token."""
    _check_tensor("generated", generated, 2)
    kept_BL = (generated == stop_id).cumsum(1) == 0
    lengths = kept_BL.sum(1)
    return generated[kept_BL], lengths, lengths < generated.shape[1]


def scan_rollout(
    token_ids: Tensor, table: Tensor, offsets: Tensor, kinds: Tensor, opening: str, closing: str, key_head: str,
    quoted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(nodes, text, starts, summary) of one response in JSON."""
    written, kind = _tokens_of(token_ids, table, offsets, kinds)
    _require(bool(opening.split() and closing.split()), "opening and closing must hold a lexeme each")
    grammar = Grammar(
        opening=tuple(opening.encode().split()),
        closing=tuple(closing.encode().split()),
        key_head=key_head.encode(),
        quoted=quoted,
    )
    return _tensors_of(scan(written, kind, grammar), written, table)


def scan_lines(
    token_ids: Tensor, table: Tensor, offsets: Tensor, kinds: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(nodes, text, starts, summary) of one response in lines."""
    written, kind = _tokens_of(token_ids, table, offsets, kinds)
    return _tensors_of(lines.scan(written, kind), written, table)


def _tokens_of(token_ids: Tensor, table: Tensor, offsets: Tensor, kinds: Tensor) -> tuple[list[bytes], list[int]]:
    """The bytes and the kind of each token."""
    for name, tensor in {"token_ids": token_ids, "offsets": offsets, "kinds": kinds}.items():
        _check_tensor(name, tensor, 1)
    _require(
        table.dtype == torch.uint8 and table.dim() == 1 and len(offsets) == len(kinds) + 1,
        "table must be uint8 with 1 axis, and offsets one longer than kinds",
    )
    known_T = (token_ids >= 0) & (token_ids < len(kinds))
    ids_T = token_ids[known_T]
    first_T, last_T = (
        torch.zeros_like(token_ids).masked_scatter(known_T, bounds[ids_T]) for bounds in (offsets[:-1], offsets[1:])
    )
    kind_T = torch.full_like(token_ids, SPECIAL).masked_scatter(known_T, kinds[ids_T])
    _require(
        bool(((first_T >= 0) & (first_T <= last_T) & (last_T <= len(table))).all()),
        f"offsets must ascend from 0 to {len(table)}, the number of bytes",
    )
    content = table.numpy()
    bounds = zip(first_T.tolist(), last_T.tolist(), strict=True)
    return [content[first:last].tobytes() for first, last in bounds], kind_T.tolist()


def _tensors_of(found: Scan, written: list[bytes], table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows: list[tuple[int, ...]] = []
    for value in found.values:
        _append_rows(value, -1, rows)
    return (
        torch.tensor(rows, dtype=torch.int64).reshape(-1, NODE_FIELDS),
        torch.frombuffer(bytearray(b"".join(written)), dtype=torch.uint8) if any(written) else table[:0].clone(),
        torch.tensor(found.starts, dtype=torch.int64),
        torch.tensor([found.opening_end, ENDED.index(found.ended), int(found.behind)]),
    )


def _append_rows(node: Node, parent: int, rows: list[tuple[int, ...]]) -> None:
    """The node and all below it in the order in which they begin."""
    place = len(rows)
    rows.append((KINDS.index(node.kind), node.first, node.last, parent, node.slot, node.number))
    for below in _below(node):
        _append_rows(below, place, rows)


def _below(node: Node) -> Iterator[Node]:
    if not node.keys:
        yield from node.children
    for key, child in zip(node.keys, node.children, strict=False):
        yield key
        yield child


def _sources(num_tokens: int, offsets: Tensor, order: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Where each cell of the rectangle comes from, and whether it is a token.

    Returns:
        source [B, width]: index into the tokens, `num_tokens` (one past the last) on padding; is_token [B, width].
    """
    _check_ragged(num_tokens, offsets, order, width)
    starts, ends = offsets[order], offsets[order + 1]
    source_BW = ends[:, None] - width + torch.arange(width, device=offsets.device)
    is_token_BW = source_BW >= starts[:, None]
    return source_BW.where(is_token_BW, num_tokens), is_token_BW


def _check_tensor(name: str, tensor: Tensor, num_axes: int) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    _require(
        dtype == "int64" and tensor.dim() == num_axes,
        f"{name} must be int64 with {num_axes} axes, not {dtype} with {tensor.dim()}",
    )


def _check_ragged(num_tokens: int, offsets: Tensor, order: Tensor, width: int) -> None:
    """The sentences of `csrc/ragged.h`, in its order."""
    _check_tensor("offsets", offsets, 1)
    _check_tensor("order", order, 1)
    num_prompts = len(offsets) - 1
    ascending = num_prompts >= 0 and bool((offsets.diff() >= 0).all())
    _require(
        ascending and int(offsets[0]) == 0 and int(offsets[-1]) == num_tokens,
        f"offsets must ascend from 0 to {num_tokens}, the number of tokens",
    )
    _require(width >= 0, f"width must not be negative, not {width}")
    outside = order[(order < 0) | (order >= num_prompts)].tolist()
    if outside:
        raise ValueError(f"order names prompt {outside[0]}, but there are {num_prompts}")
    lengths = offsets[order + 1] - offsets[order]
    over = (lengths > width).nonzero()[:, 0].tolist()
    if over:
        raise ValueError(f"prompt {order[over[0]]} has {lengths[over[0]]} tokens, more than width {width}")


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)
