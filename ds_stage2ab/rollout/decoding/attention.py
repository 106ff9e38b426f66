"""Attention of a pass of decoding, and the keys and values that it reads: one slot of memory for each row.

A pass is one row of tokens. First come those of answers, one of each, or more where a draft is verified: they attend
to their slot. Then come whole prompts, back to back, each of which attends to itself alone.

Legend: T tokens of a pass, B rows, Q queries of a row at most, W columns of a slot, H key heads, G query heads for each
of them, D width of a head, F = H * D.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ds_stage2ab.ops import attend_slots

BY_SLOT = "sdpa_by_slot"
"""Its name among the attention implementations of transformers."""


class SlotMemory:
    """Keys and values of all rows, in memory that is taken once: column c of slot s is line s * width + c.

    One line more, behind all slots, takes what nobody reads.

    Args:
        num_slots: rows that may be alive at any moment.
        width: tokens of the longest prompt and its answer.
    """

    def __init__(self, num_slots: int, width: int) -> None:
        self.num_slots, self.width = num_slots, width
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}
        # keys and values [B * W + 1, F] of each layer

    @property
    def spare(self) -> int:
        """The line that nobody reads."""
        return self.num_slots * self.width

    def write(self, layer: int, lines_T: Tensor, key_1HTD: Tensor, value_1HTD: Tensor) -> None:
        """Put keys and values of a pass into these lines."""
        rows_TF = [tensor.transpose(1, 2).flatten(0, 1).flatten(1) for tensor in (key_1HTD, value_1HTD)]
        if layer not in self.layers:
            # zeros: what stands behind a row's end is multiplied by 0, which would leave a NaN one
            self.layers[layer] = tuple(row_TF.new_zeros(self.spare + 1, row_TF.shape[1]) for row_TF in rows_TF)
        for memory, row_TF in zip(self.layers[layer], rows_TF, strict=True):
            memory.index_copy_(0, lines_T, row_TF)

    def read(self, layer: int, num_rows: int, columns: int, head_width: int) -> Iterator[Tensor]:
        """Keys and values of the first rows, [B, H, columns, D] each, where they lie."""
        for memory in self.layers[layer]:
            whole_BWHD = memory[: self.spare].view(self.num_slots, self.width, -1, head_width)
            yield whole_BWHD[:num_rows, :columns].transpose(1, 2)

    def widen(self, width: int) -> None:
        """Make each slot longer, and keep what is in it."""
        for layer, pair in self.layers.items():
            self.layers[layer] = tuple(widened(one, self.num_slots, width) for one in pair)
        self.width = width

    def move(self, source: int, destination: int, length: int) -> None:
        """Copy the first tokens of one slot over another."""
        first, to = source * self.width, destination * self.width
        for memory in (memory for pair in self.layers.values() for memory in pair):
            memory[to : to + length] = memory[first : first + length]


def widened(lines: Tensor, num_slots: int, width: int) -> Tensor:
    """Lines [B * W + 1, ...] of slots that have become longer; new ones are 0."""
    slots_BW = lines[:-1].unflatten(0, (num_slots, -1))
    wider = lines.new_zeros(num_slots * width + 1, *lines.shape[1:])
    wider[:-1].unflatten(0, (num_slots, width))[:, : slots_BW.shape[1]] = slots_BW
    return wider


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlotPass:
    """What the attention of a pass must know, the same in every layer."""

    memory: SlotMemory = field(repr=False)
    lines_T: Tensor
    # where each token's key and value go
    num_answering: int
    # tokens that attend to a slot; they come first
    prompts: list[int]
    # tokens of each prompt after them
    num_rows: int
    # slots that are read
    columns: int
    # of each; the longest of the rows
    first_T: Tensor
    seen_T: Tensor
    # of tokens of answers: the first line of their slot, and how many of it they see
    mask: Tensor | None
    # [B, 1, Q or G * Q, columns] what is added to the scores: 0, or minus infinity behind a query's own column;
    # None: each token reads what it sees and nothing else, in fp32 on a CPU
    gather: Tensor | None
    # [B * Q] the token of each query, any where a row has fewer; None: a token for each row in their order
    scatter: Tensor | None
    # [num_answering] the query of each token


def attend_by_slot(
    module: nn.Module,
    query_1ATD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    attention_mask: Tensor | None,
    *,
    slots: SlotPass,
    scaling: float,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers, for a pass of decoding alone.

    Args:
        query_1ATD: [1, G * H, T, D].
        attention_mask: ignored.

    Returns: ([1, T, G * H, D], None).
    """
    slots.memory.write(module.layer_idx, slots.lines_T, key_1HTD, value_1HTD)
    parts, first = [], slots.num_answering
    if first:
        attend = _ragged if slots.mask is None else _padded
        parts.append(attend(module.layer_idx, query_1ATD[0, :, :first], slots, scaling))
    for length in slots.prompts:
        inside = slice(first, first + length)
        own = (query_1ATD[:, :, inside], key_1HTD[:, :, inside], value_1HTD[:, :, inside])
        parts.append(sdpa_attention_forward(module, *own, None, scaling=scaling, is_causal=True)[0])
        first += length
    return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)), None


def _ragged(layer: int, query_ATD: Tensor, slots: SlotPass, scaling: float) -> Tensor:
    """[1, T, A, D]."""
    keys_LHD, values_LHD = (memory.unflatten(1, (-1, query_ATD.shape[2])) for memory in slots.memory.layers[layer])
    return attend_slots(query_ATD.transpose(0, 1), keys_LHD, values_LHD, slots.first_T, slots.seen_T, scaling)[None]


def _padded(layer: int, query_ATD: Tensor, slots: SlotPass, scaling: float) -> Tensor:
    """The same of all rows at once, each up to the longest.

    The query heads that share a key head stand as so many queries, so that no key is repeated.
    """
    num_heads, width = query_ATD.shape[0], query_ATD.shape[2]
    query_TAD = query_ATD.transpose(0, 1)
    if slots.gather is not None:
        query_TAD = query_TAD[slots.gather]
    key_BHWD, value_BHWD = slots.memory.read(layer, slots.num_rows, slots.columns, width)
    num_keys, num_queries = key_BHWD.shape[1], len(query_TAD) // slots.num_rows
    # [B, Q, H, G, D] -> [B, H, G, Q, D]
    query_BQHGD = query_TAD.reshape(slots.num_rows, num_queries, num_keys, -1, width)
    query_BHLD = query_BQHGD.permute(0, 2, 3, 1, 4).reshape(slots.num_rows, num_keys, -1, width)
    out_BHLD = scaled_dot_product_attention(query_BHLD, key_BHWD, value_BHWD, attn_mask=slots.mask, scale=scaling)
    out_BHGQD = out_BHLD.reshape(slots.num_rows, num_keys, -1, num_queries, width)
    out_TAD = out_BHGQD.permute(0, 3, 1, 2, 4).reshape(-1, num_heads, width)
    return (out_TAD if slots.scatter is None else out_TAD[slots.scatter])[None]


@contextmanager
def attention_by_slot(model: nn.Module) -> Iterator[None]:
    """Inside, the language model of a Qwen3-VL attends by slot; its own attention is restored."""
    AttentionInterface.register(BY_SLOT, attend_by_slot)
    AttentionMaskInterface.register(BY_SLOT, sdpa_mask)
    own = model.config.text_config._attn_implementation
    model.set_attn_implementation({"text_config": BY_SLOT})
    try:
        yield
    finally:
        model.set_attn_implementation({"text_config": own})
