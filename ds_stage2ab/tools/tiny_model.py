"""Makes a small, ordinary Qwen3-VL with random weights, for the quick start and the tests.

`python -m ds_stage2ab.tools.tiny_model --out DIR --seed N` writes a Hugging Face folder that `from_pretrained` and vLLM
load like any Qwen3-VL: 1.7 M parameters, no coordinate tokens yet (`ds-stage2ab add-coord-tokens` adds them).

Invariants:
- The folder is a function of the seed and of the size alone.
- Text is split as Qwen's tokenizer splits it, and the answers' punctuation is merged as it is there: ` [{"`, `]},` and
  `}}` are tokens, so a value's end, the separator after it and the next value's begin share tokens.
- Pictures whose sides are multiples of PATCH x MERGE and whose area lies in PIXELS are not resampled.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from ds_stage2ab.errors import DataError, Stage2Error, exit_code, unwritable

PATCH = 8  # pixels per patch side; Qwen3-VL's 16 would leave a digit only four patches
MERGE = 2  # patches per language token and side, as in every Qwen3-VL
PIXELS = (32 * 32, 256 * 256)  # least and greatest area that the image processor leaves alone
POSITION_GRID = 16  # side of the learned grid of vision positions, interpolated to each picture
POSITION_WAVES = 10  # cosines per axis that it starts from; the grid resolves up to 15
VOCABULARY = 480  # 256 bytes, the special tokens and the merges of a few sentences
MAX_POSITIONS = 4096
SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Qwen's rule: a word with one character before it, a single digit, a run of punctuation with one blank before it.
SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CORPUS = (
    # more often, so merged before `]}`: Qwen merges in this order
    *('"] []', "}} },") * 4,
    '{"objects": [{"desc": "zero", "bbox_2d": [',
    ", ",
    ']}, {"desc": "one", "bbox_2d": [',
    "]}",
    '{"objects": []',
    '{"object_1": {"desc": "two", "bbox_2d": ["',
    '", "',
    '"]',
    '}, "object_2": {"desc": "three", "bbox_2d": ["',
    "}}",
    "{}",
    "zero one two three four five six seven eight nine",
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "user\n",
    "assistant\n",
    "system\nYou are a helpful assistant.",
    "Detect every digit.",
    "Detect every object in the image and give its box.",
    "Detect all the objects. Find each digit in the picture, please.",
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}"
    "{%- else -%}{%- for item in message.content -%}"
    "{%- if item.type == 'image' or 'image' in item or 'image_url' in item -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif item.type == 'video' or 'video' in item -%}"
    "{{- '<|vision_start|><|video_pad|><|vision_end|>' -}}"
    "{%- elif 'text' in item -%}{{- item.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySize:
    """Widths and depths. Text heads are 32 wide, two of them share a key; vision heads are 24 wide."""

    text_width: int = 128
    text_layers: int = 4
    text_mlp: int = 384
    vision_width: int = 96
    vision_layers: int = 4
    vision_mlp: int = 288


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on CORPUS, with Qwen's special tokens and a ChatML template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(SPECIAL),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL if token not in ("<|im_end|>", "<|endoftext|>")],
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def build_config(tokenizer: PreTrainedTokenizerFast, size: TinySize) -> Qwen3VLConfig:
    """The architecture: every field that Qwen3-VL has, with small numbers."""
    token = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.text_width,
        "intermediate_size": size.text_mlp,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.text_width // 32,
        "num_key_value_heads": size.text_width // 64,
        "head_dim": 32,
        "max_position_embeddings": MAX_POSITIONS,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }
    vision = {
        "depth": size.vision_layers,
        "hidden_size": size.vision_width,
        "intermediate_size": size.vision_mlp,
        "num_heads": size.vision_width // 24,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "out_hidden_size": size.text_width,
        "num_position_embeddings": POSITION_GRID**2,
        "deepstack_visual_indexes": [size.vision_layers // 2],
        "initializer_range": 0.05,
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def smooth_positions(width: int, generator: torch.Generator) -> torch.Tensor:
    """[POSITION_GRID**2, width]: a random mixture of cosines of row and column, unit variance.

    Neighbouring patches start alike, so a place can be read off linearly from the first step; rows of independent
    noise would first have to be put in order.
    """
    place = (torch.arange(POSITION_GRID) + 0.5) / POSITION_GRID
    waves = torch.cos(math.pi * torch.arange(1, POSITION_WAVES + 1)[None, :] * place[:, None])
    rows = waves[:, None, :].expand(-1, POSITION_GRID, -1)
    columns = waves[None, :, :].expand(POSITION_GRID, -1, -1)
    features = torch.cat([rows, columns], dim=-1).reshape(POSITION_GRID**2, 2 * POSITION_WAVES)
    return features @ torch.randn(2 * POSITION_WAVES, width, generator=generator) / math.sqrt(POSITION_WAVES)


def build_model(config: Qwen3VLConfig, seed: int) -> Qwen3VLForConditionalGeneration:
    """The model with random weights (seeded; the caller's random state is left alone)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        table = model.model.visual.pos_embed.weight
        table.copy_(0.5 * smooth_positions(table.shape[1], generator))
    return model


def processor_configs() -> dict[str, dict[str, object]]:
    """File name to contents of the image and video processor configs, as real Qwen3-VL folders have them."""
    common = {
        "size": {"shortest_edge": PIXELS[0], "longest_edge": PIXELS[1]},
        "patch_size": PATCH,
        "temporal_patch_size": 2,
        "merge_size": MERGE,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "processor_class": "Qwen3VLProcessor",
    }
    return {
        "preprocessor_config.json": {**common, "image_processor_type": "Qwen2VLImageProcessor"},
        "video_preprocessor_config.json": {**common, "video_processor_type": "Qwen3VLVideoProcessor"},
    }


def write_folder(folder: Path, seed: int, size: TinySize) -> int:
    """Write model, tokenizer and processor configs into `folder`; returns the number of parameters."""
    tokenizer = build_tokenizer()
    model = build_model(build_config(tokenizer, size), seed)
    end, pad = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(bos_token_id=pad, pad_token_id=pad, eos_token_id=[end, pad])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, contents in processor_configs().items():
        (folder / name).write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    return sum(parameter.numel() for parameter in model.parameters())


def build_tiny(out: Path, *, seed: int, size: TinySize | None = None) -> int:
    """Make the folder `out`, whole or not at all; returns the number of parameters. Raises DataError if it exists."""
    if out.exists():
        raise DataError("exists already", where=str(out), fix="give --out a folder that does not exist yet")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        num_parameters = write_folder(building, seed, size or TinySize())
        building.chmod(0o755)
        building.replace(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return num_parameters


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m ds_stage2ab.tools.tiny_model", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        num_parameters = build_tiny(options.out, seed=options.seed)
    except (Stage2Error, OSError) as error:
        fault = unwritable(options.out, error) if isinstance(error, OSError) else error
        print(fault, file=sys.stderr)
        return exit_code(fault)
    print(f"{options.out}: Qwen3-VL with {num_parameters:,} parameters")
    return 0


if __name__ == "__main__":
    sys.exit(main())
