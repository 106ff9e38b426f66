"""Objects -> the assistant's text -> token ids, with the region of every token.

A codec says how objects are written; `encode_answer` tokenises the whole text in one call, as the
tokenizer would, and gives each token the region of its first byte. The text is one line with the
separators `", "` and `": "`, and non-ASCII characters stay as they are.

Invariants:
- The bytes of `ids` without the end of turn are exactly the codec's text of the objects, each description
  in the tokenizer's own normal form.
- `ids[-1]` is the end of turn, exactly once.
- Coordinate tokens stand at `slots` and nowhere else, and carry `bins`.
- A description that contains the text of an added token never becomes that token.
- `is_desc` and `is_coord` are never both true.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.bins import coordinate_token
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.errors import ConfigError, DataError

Region = Literal["structure", "desc", "coordinate"]


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text that belongs to one region; a coordinate is a piece of its own."""

    text: str
    region: Region
    bin: int = -1
    # of a coordinate; -1 elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerTokens:
    """A text as ids; T tokens, N objects.

    Example: `{"objects": []}` and the end of turn have T tokens, all structure, and N = 0.
    """

    ids: tuple[int, ...]
    # [T]
    is_desc: tuple[bool, ...]
    # [T] the token's first byte lies in a description's value (quotes are structure)
    is_coord: tuple[bool, ...]
    # [T] the token is a coordinate token
    slots: tuple[int, ...]
    # [4N] positions of the coordinate tokens, x1 y1 x2 y2 of each object in turn
    bins: tuple[int, ...]
    # [4N] the bin at each slot


class Codec(Protocol):
    """One text form. The texts are what we write; the lexemes are what the parser reads, whitespace between them."""

    name: str
    opening: str
    separator: str
    closing: str
    opening_lexemes: tuple[bytes, ...]
    closing_lexemes: tuple[bytes, ...]

    def object_pieces(self, truth: Truth, number: int, vocabulary: Vocabulary) -> list[Piece]:
        """One object as pieces; `number` is its place in the answer, counted from 1."""


@dataclass(frozen=True, slots=True)
class ArrayCodec:
    """`{"objects": [{"desc": "cat", "bbox_2d": [<|coord_110|>, ...]}, ...]}`: coordinates are bare JSON values."""

    name: str = "array"
    opening: str = '{"objects": ['
    separator: str = ", "
    closing: str = "]}"
    opening_lexemes: tuple[bytes, ...] = (b"{", b'"objects"', b":", b"[")
    closing_lexemes: tuple[bytes, ...] = (b"]", b"}")

    def object_pieces(self, truth: Truth, number: int, vocabulary: Vocabulary) -> list[Piece]:
        """One object as pieces; the form does not number its objects."""
        pieces = [
            Piece('{"desc": "', "structure"),
            Piece(_escaped(truth.desc, vocabulary), "desc"),
            Piece('", "bbox_2d": [', "structure"),
        ]
        for place, k in enumerate(truth.box):
            if place:
                pieces.append(Piece(", ", "structure"))
            pieces.append(Piece(coordinate_token(k), "coordinate", k))
        pieces.append(Piece("]}", "structure"))
        return pieces


CODECS: dict[str, Codec] = {"array": ArrayCodec()}


def get_codec(name: str) -> Codec:
    """The codec called `name` in `data.codec`.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in CODECS:
        raise ConfigError(f"there is no codec {name!r}", where="data.codec", fix=f"use one of: {', '.join(CODECS)}")
    return CODECS[name]


def answer_pieces(objects: Sequence[Truth], vocabulary: Vocabulary, codec: Codec) -> list[Piece]:
    """The whole text of an answer, from the opening to the closing."""
    pieces = [Piece(codec.opening, "structure")]
    for place, truth in enumerate(objects):
        if place:
            pieces.append(Piece(codec.separator, "structure"))
        pieces.extend(codec.object_pieces(truth, place + 1, vocabulary))
    pieces.append(Piece(codec.closing, "structure"))
    return pieces


def encode_answer(objects: Sequence[Truth], vocabulary: Vocabulary, codec: Codec, *, where: str = "") -> AnswerTokens:
    """The answer that teaches `objects`, as ids, with the end of turn (`vocabulary.stop_id`) as its last id.

    Args:
        where: the sample, for the message.

    Raises:
        DataError: a description cannot be written with this tokenizer (`encode_pieces`).
    """
    answer = encode_pieces(answer_pieces(objects, vocabulary, codec), vocabulary, where=where)
    return AnswerTokens(
        ids=(*answer.ids, vocabulary.stop_id),
        is_desc=(*answer.is_desc, False),
        is_coord=(*answer.is_coord, False),
        slots=answer.slots,
        bins=answer.bins,
    )


def encode_pieces(pieces: Sequence[Piece], vocabulary: Vocabulary, *, where: str = "") -> AnswerTokens:
    """Tokenise the joined text in one call and give every token the region of its first byte.

    No end of turn is added.

    Raises:
        DataError: the ids do not spell the text, or coordinate tokens stand elsewhere than at the
            coordinate pieces (a description holds a text that this tokenizer turns into a token).
    """
    text = "".join(piece.text for piece in pieces)
    ids = vocabulary.encode(text)
    regions = _region_of_bytes(pieces)
    starts, total = _byte_starts(ids, vocabulary)
    slots = tuple(place for place, token in enumerate(ids) if token in vocabulary.coordinate_bins)
    bins = tuple(vocabulary.coordinate_bins[ids[place]] for place in slots)
    wanted = tuple(piece.bin for piece in pieces if piece.region == "coordinate")
    written = vocabulary.written_all(ids)
    if total != len(regions) or written != text.encode() or bins != wanted:
        raise DataError(
            f"the tokenizer cannot write this answer exactly: {text!r} came back as {written!r}",
            where=where,
            fix="look for the text of a special token or an unusual character in the descriptions",
        )
    return AnswerTokens(
        ids=tuple(ids),
        is_desc=tuple(regions[start] == "desc" for start in starts),
        is_coord=tuple(token in vocabulary.coordinate_bins for token in ids),
        slots=slots,
        bins=bins,
    )


def _escaped(desc: str, vocabulary: Vocabulary) -> str:
    """A description as the inside of a JSON string.

    A description may contain the text of an added token ("<|im_end|>"). Its "<" is then written as the
    JSON escape \\u003c: it reads back as the same description and cannot become the token.
    """
    inside = json.dumps(vocabulary.normalise(desc), ensure_ascii=False)[1:-1]
    if "<" in inside and any(text in inside for text in vocabulary.added_texts):
        return inside.replace("<", "\\u003c")
    return inside


def _region_of_bytes(pieces: Iterable[Piece]) -> list[Region]:
    regions: list[Region] = []
    for piece in pieces:
        regions.extend([piece.region] * len(piece.text.encode()))
    return regions


def _byte_starts(ids: Iterable[int], vocabulary: Vocabulary) -> tuple[list[int], int]:
    starts: list[int] = []
    total = 0
    for token in ids:
        starts.append(total)
        total += len(vocabulary.written(token))
    return starts, total
