"""Attention over a pack, segment by segment.

Scaled dot-product attention over a whole pack needs a mask of its length squared, and as much work.
Each segment attends to itself alone, so one causal attention per segment gives the same numbers; the mask is not built.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

BY_SEGMENT = "sdpa_by_segment"
"""Its name among the attention implementations of transformers."""
NO_MASK = torch.empty(1, 1, 0, 0)
"""What transformers takes for a mask that is there already (it has four axes), and builds none; nothing reads it."""


def attend_by_segment(
    module: nn.Module,
    query_BHTD: Tensor,
    key_BHTD: Tensor,
    value_BHTD: Tensor,
    attention_mask: Tensor | None,
    segment_lengths: list[int] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """An attention function of transformers.

    Args:
        query_BHTD: [1, heads, T, head width] with segments; keys and values may have fewer heads.
        attention_mask: ignored with segments.
        segment_lengths: tokens of each segment, together T; None: plain attention with the mask, as for `generate`.

    Returns: ([1, T, heads, head width], None).
    """
    if segment_lengths is None:
        return sdpa_attention_forward(module, query_BHTD, key_BHTD, value_BHTD, attention_mask, **options)
    parts = zip(*(tensor.split(segment_lengths, dim=2) for tensor in (query_BHTD, key_BHTD, value_BHTD)), strict=True)
    causal = {**options, "is_causal": True}
    return torch.cat([sdpa_attention_forward(module, *part, None, **causal)[0] for part in parts], dim=1), None


def use_segments(model: nn.Module) -> None:
    """Make the language model of a Qwen3-VL whose attention is `sdpa` attend by segment where segments are given."""
    AttentionInterface.register(BY_SEGMENT, attend_by_segment)
    AttentionMaskInterface.register(BY_SEGMENT, sdpa_mask)
    model.set_attn_implementation({"text_config": BY_SEGMENT})


def segment_arguments(model: nn.Module, boundaries: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of `forward` for the attention of a pack; an implementation that reads the position ids has no mask.

    Args:
        boundaries: S+1 offsets of the segments in the pack.
    """
    if model.config.text_config._attn_implementation != BY_SEGMENT:
        return {"attention_mask": None}
    return {"attention_mask": NO_MASK, "segment_lengths": [end - begin for begin, end in pairwise(boundaries)]}
