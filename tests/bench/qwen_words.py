"""The shipped checkpoint with the vocabulary of a real Qwen: 21 million parameters, most of them rows of the embedding.

The quickstart's tokenizer cuts an answer as Qwen's does, so the row of a token goes to Qwen's token of the same text,
and the other 150,000 are small random ones: they are computed, weighed and never chosen. What the model writes is what
it wrote before, of as many tokens, out of 152,651.
"""

import shutil
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from tests.real_tokenizers import qwen

SPREAD = 0.005
"""Of the rows that no token of the checkpoint has; its own spread about 0.1."""


def write_checkpoint(source: Path, folder: Path) -> int:
    """Write into `folder` what `source` is with Qwen's vocabulary; returns the number of parameters."""
    model = Qwen3VLForConditionalGeneration.from_pretrained(source)
    small, large = AutoTokenizer.from_pretrained(source), qwen()
    large.chat_template, large.eos_token, large.pad_token = small.chat_template, small.eos_token, small.pad_token
    rows = _rows(model.get_input_embeddings().weight.data, small.get_vocab(), large.get_vocab())
    model.resize_token_embeddings(len(rows), mean_resizing=False)
    model.get_input_embeddings().weight.data.copy_(rows)
    ids = large.convert_tokens_to_ids
    for name, token in {"image": "image_pad", "video": "video_pad"}.items():
        setattr(model.config, f"{name}_token_id", ids(f"<|{token}|>"))
    for name in ("start", "end"):
        setattr(model.config, f"vision_{name}_token_id", ids(f"<|vision_{name}|>"))
    for config in (model.config.text_config, model.generation_config):
        config.bos_token_id = config.pad_token_id = ids(large.pad_token)
        config.eos_token_id = ids(large.eos_token)
    model.save_pretrained(folder)
    large.save_pretrained(folder)
    for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
        if (source / file).exists():
            shutil.copy(source / file, folder)
    return sum(parameter.numel() for parameter in model.parameters())


def _rows(own: torch.Tensor, small: dict[str, int], large: dict[str, int]) -> torch.Tensor:
    """[len(large), D]."""
    rows = SPREAD * torch.randn(len(large), own.shape[1], generator=torch.Generator().manual_seed(0))
    for text, place in small.items():
        if text in large:
            rows[large[text]] = own[place]
    return rows
