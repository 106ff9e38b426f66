"""The sizes of a Qwen3-VL, read from its `config.json`, and its numbers of parameters. No torch, no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ds_stage2ab.config.sections import TunerSection
from ds_stage2ab.errors import EnvironmentFault

PARTS = ("vision", "aligner", "language")


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """One shape of `nn.Linear`, and how often it occurs."""

    inputs: int
    outputs: int
    bias: bool
    count: int

    @property
    def parameters(self) -> int:
        return self.count * (self.inputs + self.bias) * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class TextShape:
    """`text_config` of a Qwen3-VL."""

    width: int
    layers: int
    query_width: int
    key_width: int
    head_dim: int
    heads: int
    inner_width: int
    vocabulary: int
    attention_bias: bool
    position_limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionShape:
    """`vision_config` of a Qwen3-VL."""

    width: int
    depth: int
    inner_width: int
    patch_values: int
    # numbers of one patch: channels x frames x patch x patch
    merge: int
    # m: m x m patches make one token of the language model
    output_width: int
    num_positions: int
    num_deepstack: int
    # layers whose features enter the language model by a merger of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """All sizes of a Qwen3-VL that its parameters and activations follow from."""

    text: TextShape
    vision: VisionShape
    tied: bool
    # the head is the embedding table


def read_shape(folder: Path) -> ModelShape:
    """The sizes in `config.json` of a checkpoint folder.

    Raises:
        EnvironmentFault: the file is missing, damaged, or not that of a Qwen3-VL.
    """
    file = folder / "config.json"
    fix = "set model.path to the whole folder of a stage-1 checkpoint"
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EnvironmentFault("is not on this machine", where=str(file), fix=fix) from None
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"cannot be read: {error}", where=str(file), fix=fix) from None
    try:
        if values["model_type"] != "qwen3_vl":
            raise EnvironmentFault(f"is that of a {values['model_type']}, not of a qwen3_vl", where=str(file), fix=fix)
        return ModelShape(
            text=_text_shape(values["text_config"]),
            vision=_vision_shape(values["vision_config"]),
            tied=bool((values if "tie_word_embeddings" in values else values["text_config"])["tie_word_embeddings"]),
        )
    except KeyError as error:
        raise EnvironmentFault(f"does not say {error.args[0]}", where=str(file), fix=fix) from None
    except TypeError:
        raise EnvironmentFault("does not have the form of a Qwen3-VL's", where=str(file), fix=fix) from None


def _text_shape(values: dict) -> TextShape:
    return TextShape(
        width=_whole(values, "hidden_size"),
        layers=_whole(values, "num_hidden_layers"),
        query_width=_whole(values, "num_attention_heads") * _whole(values, "head_dim"),
        key_width=_whole(values, "num_key_value_heads") * _whole(values, "head_dim"),
        head_dim=_whole(values, "head_dim"),
        heads=_whole(values, "num_attention_heads"),
        inner_width=_whole(values, "intermediate_size"),
        vocabulary=_whole(values, "vocab_size"),
        attention_bias=bool(values["attention_bias"]),
        position_limit=_whole(values, "max_position_embeddings"),
    )


def _vision_shape(values: dict) -> VisionShape:
    return VisionShape(
        width=_whole(values, "hidden_size"),
        depth=_whole(values, "depth"),
        inner_width=_whole(values, "intermediate_size"),
        patch_values=_whole(values, "in_channels")
        * _whole(values, "temporal_patch_size")
        * _whole(values, "patch_size") ** 2,
        merge=_whole(values, "spatial_merge_size"),
        output_width=_whole(values, "out_hidden_size"),
        num_positions=_whole(values, "num_position_embeddings"),
        num_deepstack=len(values["deepstack_visual_indexes"]),
    )


def _whole(values: dict, key: str) -> int:
    if type(values[key]) is not int:
        raise TypeError(f"{key} is no whole number")
    return values[key]


def linears(shape: ModelShape) -> dict[str, list[Linear]]:
    """Every `nn.Linear` of each part of `model.freeze`, the head of the language model left out."""
    text, vision = shape.text, shape.vision
    merged = vision.width * vision.merge**2
    return {
        "vision": _times(
            vision.depth,
            (vision.width, 3 * vision.width, True),
            (vision.width, vision.width, True),
            (vision.width, vision.inner_width, True),
            (vision.inner_width, vision.width, True),
        ),
        "aligner": _times(1 + vision.num_deepstack, (merged, merged, True), (merged, vision.output_width, True)),
        "language": _times(
            text.layers,
            (text.width, text.query_width, text.attention_bias),
            (text.width, text.key_width, text.attention_bias),
            (text.width, text.key_width, text.attention_bias),
            (text.query_width, text.width, text.attention_bias),
            (text.width, text.inner_width, False),
            (text.width, text.inner_width, False),
            (text.inner_width, text.width, False),
        ),
    }


def _times(count: int, *shapes: tuple[int, int, bool]) -> list[Linear]:
    return [Linear(inputs=a, outputs=b, bias=bias, count=count) for a, b, bias in shapes]


def parameters_of(shape: ModelShape) -> dict[str, int]:
    """Number of parameters of each part of `model.freeze`; together the whole model. Exact."""
    text, vision = shape.text, shape.vision
    merged = vision.width * vision.merge**2
    beside_linears = {
        # The patches' projection with its bias, learned positions, two norms with bias per block.
        "vision": (vision.patch_values + 1 + vision.num_positions + 4 * vision.depth) * vision.width,
        # The norm of the main merger is as wide as a patch, those of the others as wide as a merged token.
        "aligner": 2 * vision.width + 2 * merged * vision.num_deepstack,
        # Table and head, two norms and those of queries and keys per layer, the last norm.
        "language": (1 if shape.tied else 2) * text.vocabulary * text.width
        + text.layers * 2 * (text.width + text.head_dim)
        + text.width,
    }
    return {part: count + sum(x.parameters for x in linears(shape)[part]) for part, count in beside_linears.items()}


def adapter_parameters(shape: ModelShape, tuner: TunerSection, parts: list[str]) -> int:
    """Parameters of the adapters on every linear layer of the given parts.

    LoRA: A [r, in] and B [out, r], so r (in + out) per layer (Hu et al. 2021, section 4.1). DoRA: and one magnitude
    per output (Liu et al. 2024, equation 5).
    """
    magnitude = tuner.type == "dora"
    return sum(
        x.count * (tuner.lora_rank * (x.inputs + x.outputs) + magnitude * x.outputs)
        for part in parts
        for x in linears(shape)[part]
    )
