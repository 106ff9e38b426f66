"""A tokenizer as data: the bytes of every token, and a few ids.

Built once from a Hugging Face tokenizer: a byte-level BPE (Qwen, GPT-2), or a SentencePiece model with a token for
each byte (Gemma, Llama). Tokens of either can hold a part of a character, so text is only ever compared and cut as
bytes. Added tokens (control, vision, coordinate) are ids, never text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ds_stage2ab.codec.bins import NUM_BINS, coordinate_token
from ds_stage2ab.errors import EnvironmentFault

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STOP_TOKEN = "<|im_end|>"
IMAGE_TOKEN = "<|image_pad|>"
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", IMAGE_TOKEN, "<|video_pad|>")
"""Tokens for pixels: never in an answer."""

# Text that would be changed by a prefix space, by stripping around added tokens or by a lossy
# normaliser: it must come back byte for byte.
_PROBE = f'{{"objects": [{{"desc": "\u00e9 \u4e2d", "bbox_2d": [{coordinate_token(0)}, {coordinate_token(999)}]}}]}}'


TEXT, SPECIAL = -1, -2
"""Kinds of ids that are no coordinates: ids that write bytes, and ids that do not (or that have no token)."""
BLANK = "\u2581"
"""SentencePiece's character for a blank."""
BYTE_TOKENS = {f"<0x{byte:02X}>": byte for byte in range(256)}
"""SentencePiece's tokens for single bytes."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tables:
    """The bytes and kinds of all V ids, as arrays."""

    content: NDArray[np.uint8]
    # the bytes of each id, concatenated; `<|coord_k|>` for a coordinate token
    offsets: NDArray[np.int64]
    # [V + 1] of each id's first byte in `content`
    kinds: NDArray[np.int64]
    # [V] the bin of a coordinate token, TEXT or SPECIAL


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A tokenizer as plain data.

    Example: with a GPT-2 style vocabulary `token_bytes[id_of("\u0120cat")] == b" cat"`, and for the id of
    `<|coord_7|>` it is None while `coordinate_bins` maps that id to 7.
    """

    token_bytes: tuple[bytes | None, ...] = field(repr=False)
    # by token id: the bytes that the token writes; None for added tokens and for ids without a token
    byte_ids: tuple[int, ...] = field(repr=False)
    # [256] the token of each single byte, so that any bytes can be encoded
    coordinate_ids: tuple[int, ...] = field(repr=False)
    # [1000] token id of each bin
    coordinate_bins: dict[int, int] = field(repr=False)
    # token id -> bin
    stop_id: int
    # ends the assistant's turn
    image_id: int
    # placeholder of one merged image patch
    vision_ids: tuple[int, ...]
    # all vision tokens, image_id among them
    added_texts: tuple[str, ...] = field(repr=False)
    # texts that the tokenizer turns into added tokens wherever they occur
    encode: Callable[[str], list[int]] = field(compare=False, repr=False)
    # text -> ids; added tokens in the text become their ids, no special tokens are added
    normalise: Callable[[str], str] = field(compare=False, repr=False)
    # the tokenizer's normaliser (NFC for Qwen): text -> the text that `encode` encodes

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerFast) -> Vocabulary:
        """Read a tokenizer that has the 1,000 coordinate tokens.

        Raises:
            EnvironmentFault: coordinate tokens missing or not distinct single ids, no stop or image
                token, or a tokenizer that does not write text byte for byte.
        """
        place = str(tokenizer.name_or_path)
        encode = partial(_encode, tokenizer)
        added = tokenizer.get_added_vocab()
        coordinate_ids = _coordinate_ids(added, encode, place)
        vocab = tokenizer.get_vocab()
        no_text = {*added.values(), *tokenizer.all_special_ids}
        is_sentencepiece = BYTE_TOKENS.keys() <= vocab.keys()
        bytes_of = _sentencepiece_bytes if is_sentencepiece else _byte_level_bytes
        token_bytes = _token_bytes(vocab, no_text, bytes_of, place)
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
            normalise=partial(_normalise, tokenizer, is_sentencepiece),
        )
        _check_lossless(vocabulary, place)
        return vocabulary

    def bytes_of(self, token: int) -> bytes | None:
        """The bytes that a token writes as text; None for an added token and for an id beyond the tokenizer."""
        assert token >= 0, f"token id {token}"
        return self.token_bytes[token] if token < len(self.token_bytes) else None

    @cached_property
    def _written(self) -> list[bytes]:
        """`written` by token id."""
        written = [piece or b"" for piece in self.token_bytes]
        written += [b""] * (max(self.coordinate_ids) + 1 - len(written))
        for token, k in self.coordinate_bins.items():
            written[token] = coordinate_token(k).encode()
        return written

    @cached_property
    def tables(self) -> Tables:
        """The same as arrays; built once."""
        kinds = np.full(len(self._written), SPECIAL, dtype=np.int64)
        kinds[[token for token, piece in enumerate(self.token_bytes) if piece is not None]] = TEXT
        kinds[list(self.coordinate_ids)] = np.arange(NUM_BINS)
        return Tables(
            content=np.frombuffer(bytearray(b"".join(self._written)), dtype=np.uint8),
            offsets=np.cumsum([0, *map(len, self._written)], dtype=np.int64),
            kinds=kinds,
        )

    def written(self, token: int) -> bytes:
        """The bytes of a token in a response: its text, `<|coord_k|>` for a coordinate token, else none."""
        return self._written[token] if token < len(self._written) else b""

    def written_all(self, tokens: Iterable[int]) -> bytes:
        """`written` of several tokens, joined."""
        ids = np.fromiter(tokens, dtype=np.int64)
        first, lengths, starts = self._places(ids)
        return self.tables.content[np.repeat(first - starts[:-1], lengths) + np.arange(starts[-1])].tobytes()

    def text_of(self, tokens: Iterable[int]) -> str:
        """`written_all` for people: bytes that are no UTF-8 are replaced."""
        return self.written_all(tokens).decode(errors="replace")

    def kinds_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """[T] of ids [T]: the bin of a coordinate token, TEXT or SPECIAL."""
        known = ids < len(self.tables.kinds)
        return np.where(known, self.tables.kinds[np.where(known, ids, 0)], SPECIAL)

    def starts_of(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """[T + 1] of ids [T]: offset of each token's first byte in `written_all`; the last entry is its length."""
        return self._places(ids)[2]

    def _places(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of ids [T]: offset of each one's bytes in `tables.content`, their number, and `starts_of` [T + 1]."""
        known = ids < len(self.tables.kinds)
        inside = np.where(known, ids, 0)
        first = self.tables.offsets[inside]
        lengths = np.where(known, self.tables.offsets[inside + 1] - first, 0)
        return first, lengths, np.concatenate([[0], np.cumsum(lengths)])


def _encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False)


def _normalise(tokenizer: PreTrainedTokenizerFast, is_sentencepiece: bool, text: str) -> str:
    normaliser = tokenizer.backend_tokenizer.normalizer
    normal = text if normaliser is None else normaliser.normalize_str(text)
    return normal.replace(BLANK, " ") if is_sentencepiece else normal


@cache
def _byte_of() -> dict[str, int]:
    """GPT-2's table: byte-level BPE writes each byte as one printable character."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}


def _byte_level_bytes(text: str) -> bytes | None:
    """The bytes of a byte-level BPE's token; None if it is no such token."""
    table = _byte_of()
    return bytes(map(table.__getitem__, text)) if table.keys() >= set(text) else None


def _sentencepiece_bytes(text: str) -> bytes:
    return bytes([BYTE_TOKENS[text]]) if text in BYTE_TOKENS else text.replace(BLANK, " ").encode()


def _token_bytes(
    vocab: dict[str, int], no_text: set[int], bytes_of: Callable[[str], bytes | None], place: str
) -> tuple[bytes | None, ...]:
    table: list[bytes | None] = [None] * (max(vocab.values()) + 1)
    for text, token in vocab.items():
        if token in no_text:
            continue
        table[token] = bytes_of(text)
        if table[token] is None:
            raise EnvironmentFault(
                "the tokenizer is neither a byte-level BPE nor of SentencePiece's kind with a token for each byte"
                f" (token {token} is {text!r})",
                where=place,
                fix="use a checkpoint whose tokenizer writes any bytes, as those of the Qwen family do",
            )
    return tuple(table)


def _byte_ids(token_bytes: tuple[bytes | None, ...], place: str) -> tuple[int, ...]:
    # The first of several tokens for one byte (SentencePiece has `a` and `<0x61>`).
    single = {
        piece: token for token, piece in reversed([*enumerate(token_bytes)]) if piece is not None and len(piece) == 1
    }
    missing = [byte for byte in range(256) if bytes([byte]) not in single]
    if missing:
        raise EnvironmentFault(
            f"the tokenizer has no token for {len(missing)} of the 256 bytes (first: 0x{missing[0]:02x})",
            where=place,
            fix="use a tokenizer that was trained with the full byte alphabet",
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
