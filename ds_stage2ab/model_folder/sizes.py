"""Sizes in `config.json` beside the shapes in the headers of the weights.

A model is built in the sizes of its config before a weight is read: a wrong one of a legal kind would first take all
the memory that it asks for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ds_stage2ab.model_folder.read import CONFIG, WHOLE, ModelFolder, Problem

TEXT, VISION = "text_config", "vision_config"
SHAPES = (
    # section, keys whose product is the size, end of a tensor's name, axis
    (TEXT, ("hidden_size",), "embed_tokens.weight", 1),
    (TEXT, ("intermediate_size",), ".layers.0.mlp.gate_proj.weight", 0),
    (TEXT, ("head_dim",), ".layers.0.self_attn.q_norm.weight", 0),
    (TEXT, ("num_attention_heads", "head_dim"), ".layers.0.self_attn.q_proj.weight", 0),
    (TEXT, ("num_key_value_heads", "head_dim"), ".layers.0.self_attn.k_proj.weight", 0),
    (VISION, ("hidden_size",), "visual.patch_embed.proj.weight", 0),
    (VISION, ("in_channels",), "visual.patch_embed.proj.weight", 1),
    (VISION, ("temporal_patch_size",), "visual.patch_embed.proj.weight", 2),
    (VISION, ("patch_size",), "visual.patch_embed.proj.weight", 3),
    (VISION, ("intermediate_size",), "visual.blocks.0.mlp.linear_fc1.weight", 0),
    (VISION, ("num_position_embeddings",), "visual.pos_embed.weight", 0),
    (VISION, ("out_hidden_size",), "visual.merger.linear_fc2.weight", 0),
)
COUNTS = (
    # section, key, what stands before the number of a layer
    (TEXT, "num_hidden_layers", r"(?<!visual)\.layers\."),
    (VISION, "depth", r"visual\.blocks\."),
)


def wrong_sizes(folder: ModelFolder) -> Iterator[Problem]:
    """The first key of each section that the weights contradict; what either side does not say is not judged."""
    seen: set[str] = set()
    for section, key, said, name, has in _compared(folder):
        if said != has and section not in seen:
            seen.add(section)
            yield Problem(CONFIG, f"says {section}.{key} {said}, and the weights have {has} ({name})", WHOLE)


def _compared(folder: ModelFolder) -> Iterator[tuple[str, str, int, str, int]]:
    """(section, keys, what they say, a tensor, what it has)."""
    for section, keys, end, axis in SHAPES:
        values = [folder.section(section).get(key) for key in keys]
        name = next((name for name in folder.shapes if name.endswith(end)), "")
        shape = folder.shapes.get(name, [])
        if all(type(value) is int for value in values) and axis < len(shape):
            yield section, " x ".join(keys), math.prod(values), name, shape[axis]
    for section, key, before in COUNTS:
        said, layer = folder.section(section).get(key), re.compile(rf"{before}(\d+)\.")
        numbers = {int(found[1]): name for name in folder.shapes if (found := layer.search(name))}
        if type(said) is int and numbers:
            yield section, key, said, numbers[max(numbers)], max(numbers) + 1
