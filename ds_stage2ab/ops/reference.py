"""The meaning of each op in plain PyTorch: what the compiled ones are compared with, and the fallback.

Shapes as in `ds_stage2ab/ops/__init__.py`. The scans are the plain Python of `ds_stage2ab/ops/scan.py` and
`ds_stage2ab/ops/lines.py`; `ds_stage2ab/ops/sampling.py` has `sample_tokens`, and `ds_stage2ab/ops/attention.py`
has `attend_slots`, without a loop over rows.

Invariants:
- a scanned response gives every complete value with all that is in it, a key right before its value
- a table and offsets that do not fit together are refused before anything is scanned
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ds_stage2ab.ops import lines
from ds_stage2ab.ops.attention import attend_slots
from ds_stage2ab.ops.json_value import Node
from ds_stage2ab.ops.sampling import sample_tokens
from ds_stage2ab.ops.scan import SPECIAL, Grammar, Scan, scan

__all__ = ["attend_slots", "sample_tokens", "scan_lines", "scan_rollout"]

KINDS = ("object", "array", "string", "number", "literal", "coordinate")
ENDED = ("closed", "refused", "end")
NODE_FIELDS = 6  # kind, first, last, parent, slot, number


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
    token_ids: Tensor, table: Tensor, offsets: Tensor, kinds: Tensor, num_coordinates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(nodes, text, starts, summary) of one response in lines."""
    written, kind = _tokens_of(token_ids, table, offsets, kinds)
    _require(num_coordinates > 0, "num_coordinates must be positive")
    return _tensors_of(lines.scan(written, kind, num_coordinates), written, table)


def _tokens_of(token_ids: Tensor, table: Tensor, offsets: Tensor, kinds: Tensor) -> tuple[list[bytes], list[int]]:
    """The bytes and the kind of each token."""
    for name, tensor in {"token_ids": token_ids, "offsets": offsets, "kinds": kinds}.items():
        _check_tensor(name, tensor)
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


def _check_tensor(name: str, tensor: Tensor) -> None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    _require(
        dtype == "int64" and tensor.dim() == 1,
        f"{name} must be int64 with 1 axis, not {dtype} with {tensor.dim()}",
    )


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise ValueError(sentence)
