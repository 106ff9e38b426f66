"""Tokenizers of real models, extended by the coordinate tokens as `ds-stage2ab add-coord-tokens` does."""

import base64
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from ds_stage2ab.codec.vocabulary import Vocabulary

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
MISSING = "the ranks of Qwen's byte-level BPE are missing; install them: pip install --no-deps dashscope"


@cache
def qwen(*, num_coordinates: int = 1000) -> PreTrainedTokenizerFast:
    """Qwen's byte-level BPE of 151,643 tokens, from the ranks that the package dashscope carries.

    It takes seconds, so all tests read one and the same, and change nothing in it.
    """
    found = find_spec("dashscope")
    assert found is not None and found.submodule_search_locations, MISSING
    ranks = Path(found.submodule_search_locations[0], "resources", "qwen.tiktoken")
    assert ranks.is_file(), MISSING
    tokens = [base64.b64decode(line.split()[0]) for line in ranks.read_bytes().splitlines() if line]
    backend = Tokenizer(models.BPE(vocab=_vocab(tokens), merges=_merges(tokens)))
    backend.normalizer = normalizers.NFC()
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"), letters])
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    backend.add_tokens([AddedToken(f"<|coord_{k}|>", special=False, normalized=False) for k in range(num_coordinates)])
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@cache
def qwen_vocabulary() -> Vocabulary:
    return Vocabulary.from_tokenizer(qwen())


def _letters(piece: bytes) -> str:
    return "".join(map(_LETTERS.__getitem__, piece))


def _vocab(tokens: list[bytes]) -> dict[str, int]:
    return {_letters(piece): rank for rank, piece in enumerate(tokens)}


def _merges(tokens: list[bytes]) -> list[tuple[str, str]]:
    """Every way to put a token together from two others, in the order of the ranks: what the ranks mean as merges."""
    rank_of = {piece: rank for rank, piece in enumerate(tokens)}
    merges = []
    for piece in tokens:
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [(left, right) for left, right in splits if left in rank_of and right in rank_of]
        merges += sorted(known, key=lambda pair: (rank_of[pair[0]], rank_of[pair[1]]))
    return [(_letters(left), _letters(right)) for left, right in merges]


def _byte_letters() -> dict[int, str]:
    """One printable character for each byte, as byte-level BPE writes it."""
    itself = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in itself]
    return {byte: chr(byte) for byte in itself} | {byte: chr(0x100 + place) for place, byte in enumerate(others)}


_LETTERS = _byte_letters()
