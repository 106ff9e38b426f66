"""For all unit tests: a small byte-level BPE of Qwen's kind with the 1,000 coordinate tokens; a one-rank world."""

import os
from collections.abc import Iterator
from unittest import mock

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.engine.build import start_process_group
from ds_stage2ab.runtime.ranks import World, fill_launcher_variables

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = [
    '{"objects": [{"desc": "black cat", "bbox_2d": []}, {"desc": "red \u4e2d\u6587", "bbox_2d": []}]}',
    '{"objects": []}',
    "black cat white dog red car three caf\u00e9",
]
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")


def build_tokenizer(coordinates: list[str], *, vocab_size: int = 400) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(CORPUS * 3, trainer)
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in ("<think>", *coordinates)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer([f"<|coord_{k}|>" for k in range(1000)])


@pytest.fixture(scope="session")
def vocabulary(tokenizer) -> Vocabulary:
    return Vocabulary.from_tokenizer(tokenizer)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """The process group of this one process; the launcher's variables are gone afterwards."""
    with mock.patch.dict(os.environ):
        fill_launcher_variables()
        yield World(start_process_group(1800))
