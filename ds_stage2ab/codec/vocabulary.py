"""What the rest of the system knows of a tokenizer: the bytes of every token, and a few ids.

Made once from a Hugging Face tokenizer. A byte-level BPE token can hold half a character, so text is
only ever compared and cut as bytes. Added tokens (control, vision, coordinate) are ids, never text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from ds_stage2ab.codec.bins import NUM_BINS, coordinate_token
from ds_stage2ab.errors import EnvironmentFault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STOP_TOKEN = "<|im_end|>"
IMAGE_TOKEN = "<|image_pad|>"
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE_TOKEN, "<|video_pad|>")
"""Tokens that stand for pixels: an answer never holds one."""

# Text that would be changed by a prefix space, by stripping around added tokens or by a lossy
# normaliser: it must come back byte for byte.
_PROBE = f'{{"objects": [{{"desc": "\u00e9 \u4e2d", "bbox_2d": [{coordinate_token(0)}, {coordinate_token(999)}]}}]}}'


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A tokenizer as plain data.

    Example: with a GPT-2 style vocabulary `token_bytes[id_of("\u0120cat")] == b" cat"`, and for the id of
    `<|coord_7|>` it is None while `coordinate_bins` maps that id to 7.
    """

    token_bytes: tuple[bytes | None, ...] = field(repr=False)
    # by token id: the bytes that the token writes; None for added tokens and for ids without a token
    byte_ids: tuple[int, ...] = field(repr=False)
    # [256] the token of each single byte: any bytes at all can be spelled
    coordinate_ids: tuple[int, ...] = field(repr=False)
    # [1000] token id of each bin
    coordinate_bins: dict[int, int] = field(repr=False)
    # token id -> bin
    stop_id: int
    # ends the assistant's turn
    image_id: int
    # placeholder of one merged image patch
    vision_ids: tuple[int, ...]
    # every vision token there is, image_id among them
    added_texts: tuple[str, ...] = field(repr=False)
    # texts that the tokenizer turns into added tokens wherever they occur
    encode: Callable[[str], list[int]] = field(compare=False, repr=False)
    # text -> ids; added tokens in the text become their ids, nothing is put before or behind
    normalise: Callable[[str], str] = field(compare=False, repr=False)
    # the tokenizer's own normal form (NFC for Qwen): the text that `encode` really encodes

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
        """Read a byte-level BPE tokenizer that has the 1,000 coordinate tokens.

        Raises:
            EnvironmentFault: coordinate tokens missing or not distinct single ids, no stop or image
                token, or a tokenizer that is not a lossless byte-level BPE.
        """
        place = str(tokenizer.name_or_path)
        encode = partial(_encode, tokenizer)
        added = tokenizer.get_added_vocab()
        coordinate_ids = _coordinate_ids(added, encode, place)
        token_bytes = _token_bytes(tokenizer.get_vocab(), set(added.values()), place)
        vocabulary = cls(
            token_bytes=token_bytes,
            byte_ids=_byte_ids(token_bytes, place),
            coordinate_ids=coordinate_ids,
            coordinate_bins={token: k for k, token in enumerate(coordinate_ids)},
            stop_id=_required_id(added, STOP_TOKEN, place),
            image_id=_required_id(added, IMAGE_TOKEN, place),
            vision_ids=tuple(added[text] for text in VISION_TOKENS if text in added),
            added_texts=tuple(sorted(added)),
            encode=encode,
            normalise=partial(_normalise, tokenizer),
        )
        _check_lossless(vocabulary, place)
        return vocabulary

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes that a token writes as text; None for an added token and for an id beyond the tokenizer."""
        assert token >= 0, f"token id {token}"
        return self.token_bytes[token] if token < len(self.token_bytes) else None

    def written(self, token: int) -> bytes:
        """The bytes by which a token is counted: its text, for a coordinate token `<|coord_k|>`, else nothing."""
        if token in self.coordinate_bins:
            return coordinate_token(self.coordinate_bins[token]).encode()
        return self.bytes_of(token) or b""

    def written_all(self, tokens: Iterable[int]) -> bytes:
        """`written` of several tokens, joined; their text for a reader, other added tokens left out."""
        return b"".join(self.written(token) for token in tokens)


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _normalise(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    normaliser = tokenizer.backend_tokenizer.normalizer
    return text if normaliser is None else normaliser.normalize_str(text)


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: byte-level BPE writes each byte as one printable character.

    Source: `bytes_to_unicode` of OpenAI's gpt-2 `encoder.py`: printable Latin-1 stands for itself, the
    others are numbered from U+0100 on in byte order.
    """
    itself = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in set(itself)]
    table = {chr(byte): byte for byte in itself}
    table.update({chr(0x100 + place): byte for place, byte in enumerate(others)})
    return table


def _token_bytes(vocab: dict[str, int], added_ids: set[int], place: str) -> tuple[bytes | None, ...]:
    byte_of = _byte_of_character()
    table: list[bytes | None] = [None] * (max(vocab.values()) + 1)
    for text, token in vocab.items():
        if token in added_ids:
            continue
        if not all(character in byte_of for character in text):
            raise EnvironmentFault(
                f"the tokenizer is not a byte-level BPE (token {token} is {text!r})",
                where=place,
                fix="use a checkpoint of the Qwen family (GPT-2 style byte-level BPE)",
            )
        table[token] = bytes(byte_of[character] for character in text)
    return tuple(table)


def _byte_ids(token_bytes: tuple[bytes | None, ...], place: str) -> tuple[int, ...]:
    single = {piece: token for token, piece in enumerate(token_bytes) if piece is not None and len(piece) == 1}
    missing = [byte for byte in range(256) if bytes([byte]) not in single]
    if missing:
        raise EnvironmentFault(
            f"the tokenizer has no token for {len(missing)} of the 256 bytes (first: 0x{missing[0]:02x})",
            where=place,
            fix="use a byte-level BPE trained with the full byte alphabet",
        )
    return tuple(single[bytes([byte])] for byte in range(256))


def _coordinate_ids(added: dict[str, int], encode: Callable[[str], list[int]], place: str) -> tuple[int, ...]:
    texts = [coordinate_token(k) for k in range(NUM_BINS)]
    remedy = f"run `ds-stage2ab add-coord-tokens {place or 'SRC'} DST` and set model.path to DST"
    missing = [text for text in texts if text not in added]
    if missing:
        raise EnvironmentFault(
            f"the tokenizer lacks {len(missing)} of the {NUM_BINS} coordinate tokens (first: {missing[0]})",
            where=place,
            fix=remedy,
        )
    ids = tuple(added[text] for text in texts)
    if len(set(ids)) != NUM_BINS or encode("".join(texts)) != list(ids):
        raise EnvironmentFault(
            f"the {NUM_BINS} coordinate tokens are not distinct single ids of the tokenizer",
            where=place,
            fix=f"{remedy}, starting from a checkpoint without coordinate tokens",
        )
    return ids


def _required_id(added: dict[str, int], text: str, place: str) -> int:
    if text not in added:
        raise EnvironmentFault(
            f"the tokenizer has no token {text}", where=place, fix="use a checkpoint of the Qwen3-VL kind"
        )
    return added[text]


def _check_lossless(vocabulary: Vocabulary, place: str) -> None:
    seen = vocabulary.written_all(vocabulary.encode(_PROBE))
    if seen != _PROBE.encode():
        raise EnvironmentFault(
            f"the tokenizer changes text: {_PROBE!r} came back as {seen!r}",
            where=place,
            fix="coordinate tokens must neither strip nor normalise, and no prefix space may be added",
        )
