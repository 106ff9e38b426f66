"""The scan of a response as a tree: the nodes of its values, and the bytes that they point into.

A value in lines is an array of its description (a string) and its coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from ds_stage2ab import ops
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.ops.reference import ENDED, KINDS


class Node(NamedTuple):
    """A value of the answer, or the key of one; an answer of 60 objects has 550 of them."""

    kind: str
    # object, array, string, number, literal, coordinate
    first: int
    last: int
    # [first, last) bytes in the text of the response
    slot: int
    # of a coordinate, and of a string that holds exactly one: its index in the ids; else -1
    number: int
    # the bin of a coordinate; the number of a value with a numbered key; else -1
    inside: list[Node]
    # of an object: key, value, key, value, ...; of an array: its elements


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """Result of one pass over a response: `ds_stage2ab/ops/scan.py`, or in lines `ds_stage2ab/ops/lines.py`."""

    values: tuple[Node, ...]
    # the complete values, in generated order
    text: bytes
    # of the response
    starts: list[int]
    # [T+1] offset of each token's first byte; the last entry is the number of bytes
    opening_end: int
    # offset after the opening; -1 if it was not read
    ended: Literal["closed", "refused", "end"]
    # at the outermost close, at a byte or token that cannot continue, or with the ids
    behind: bool
    # whether something follows the close


def scan(token_ids: Sequence[int], vocabulary: Vocabulary, codec: Codec) -> Scan:
    """Read the ids of a response against the codec's grammar.

    Args:
        token_ids: [T] response ids, the stop token removed. Any ids are legal.
    """
    arguments = scan_arguments(token_ids, vocabulary)
    if codec.grammar is None:
        made = ops.scan_lines(*arguments, codec.num_coordinates)
    else:
        made = ops.scan_rollout(*arguments, **codec.grammar)
    nodes, text, starts, summary = made
    opening_end, ended, behind = summary.tolist()
    return Scan(
        values=_values(nodes.tolist()),
        text=text.numpy().tobytes(),
        starts=starts.tolist(),
        opening_end=opening_end,
        ended=ENDED[ended],
        behind=bool(behind),
    )


def scan_arguments(token_ids: Sequence[int], vocabulary: Vocabulary) -> tuple[torch.Tensor, ...]:
    """The tensors of both scans: ids [T], and the vocabulary's table, offsets and kinds."""
    tables = vocabulary.tables
    arrays = (tables.content, tables.offsets, tables.kinds)
    return (torch.tensor(token_ids, dtype=torch.int64), *map(torch.from_numpy, arrays))


def _values(rows: list[list[int]]) -> tuple[Node, ...]:
    nodes: list[Node] = []
    values: list[Node] = []
    for kind, first, last, parent, slot, number in rows:
        node = Node(KINDS[kind], first, last, slot, number, [])
        nodes.append(node)
        (values if parent < 0 else nodes[parent].inside).append(node)
    return tuple(values)
