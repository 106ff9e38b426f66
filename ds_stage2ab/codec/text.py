"""Objects -> the assistant's text -> token ids, with the region of every token.

A codec says how objects are written; `encode_answer` tokenises the whole text in one call, as the
tokenizer would, and gives each token the region of its first byte. A JSON text is one line with the
separators `", "` and `": "`, and non-ASCII characters stay as they are; a text of lines is descriptions and coordinate
tokens alone.

Invariants:
- The bytes of `ids` without the end of turn are exactly the codec's text of the objects, each description
  in the tokenizer's own normal form.
- `ids[-1]` is the end of turn, exactly once.
- Coordinate tokens are exactly at `slots`, where they encode `bins`, and at `score_slots`.
- A description that contains the text of an added token never becomes that token.
- In lines, objects that follow each other and have the same description share it, and it belongs to the first.
- `is_desc` and `is_coord` are never both true.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.bins import coordinate_token
from ds_stage2ab.codec.names import IN_LINES, SCORED
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.errors import ConfigError, DataError

Region = Literal["structure", "desc", "coordinate", "score"]
REGIONS: tuple[Region, ...] = ("structure", "desc", "coordinate", "score")


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one region; each coordinate and each score is a separate piece."""

    text: str
    region: Region
    bin: int = -1
    # of a coordinate or a score; -1 elsewhere


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnswerTokens:
    """A text as ids; T tokens, N objects.

    Example: `{"objects": []}` and the end of turn have T tokens, all structure, and N = 0.
    """

    ids: NDArray[np.int64]
    # [T]
    is_desc: NDArray[np.bool_]
    # [T] the token's first byte lies in a description's value (quotes are structure)
    is_coord: NDArray[np.bool_]
    # [T] the token is a coordinate token
    slots: NDArray[np.int64]
    # [4N] positions of the coordinate tokens, x1 y1 x2 y2 of each object in turn
    bins: NDArray[np.int64]
    # [4N] the bin at each slot
    score_slots: NDArray[np.int64]
    # [N] positions of the scores; empty where the form has none


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One text form as data: the text around objects, and the parser's grammar.

    Example: `array` writes `{"objects": [{"desc": "cat", "bbox_2d": [<|coord_110|>, ...]}, ...]}`, `keyed`
    `{"object_1": {"desc": "cat", "bbox_2d": ["<|coord_110|>", ...]}, ...}`, `compact` a line `cat<|coord_110|>...` for
    each description, with all boxes of a run of objects that have it. A scored form writes one more coordinate token
    for each object, k of 0..999 for the score k / 999: `"score": <|coord_999|>` behind `bbox_2d`, and in lines a fifth.
    """

    name: str
    # value of `data.codec`
    opening: str
    closing: str
    separator: str
    # between objects
    key: tuple[str, str]
    # text before and after the number of an object; both empty: objects have no key
    quote: str
    # around a coordinate token, which is then part of a string; empty: it is a value
    grammar: Mapping[str, Any] | None
    # arguments of `ops.scan_rollout`: lexemes with blanks between them; None: lines, which `ops.scan_lines` reads

    @property
    def in_lines(self) -> bool:
        """Whether objects of one description share it, on a line without any structure; else an object is JSON."""
        return self.name in IN_LINES

    @property
    def scored(self) -> bool:
        """Whether an object has a score behind its box."""
        return self.name in SCORED

    @property
    def num_coordinates(self) -> int:
        """Coordinate tokens of an object, its score included."""
        return 4 + self.scored

    def object_pieces(self, truth: Truth, number: int, vocabulary: Vocabulary) -> list[Piece]:
        """One object as pieces.

        Args:
            number: in its key, if objects have keys.
        """
        if self.in_lines:
            return [Piece(vocabulary.normalise(truth.desc), "desc"), *self.box_pieces(truth)]
        head, tail = self.key
        key = f"{head}{number}{tail}" if head else ""
        return [
            Piece(key + '{"desc": "', "structure"),
            Piece(_escaped(truth.desc, vocabulary), "desc"),
            Piece(f'", "bbox_2d": [{self.quote}', "structure"),
            *self.box_pieces(truth),
            Piece("}", "structure") if self.scored else Piece(f"{self.quote}]}}", "structure"),
        ]

    def box_pieces(self, truth: Truth) -> list[Piece]:
        """The four coordinates, the score if there is one, and what stands between them."""
        pieces = []
        for place, k in enumerate(truth.box):
            if place and not self.in_lines:
                pieces.append(Piece(f"{self.quote}, {self.quote}", "structure"))
            pieces.append(Piece(coordinate_token(k), "coordinate", k))
        if self.scored and not self.in_lines:
            pieces.append(Piece('], "score": ', "structure"))
        if self.scored:
            pieces.append(Piece(coordinate_token(truth.score), "score", truth.score))
        return pieces


ARRAY = Codec(
    name="array",
    opening='{"objects": [',
    closing="]}",
    separator=", ",
    key=("", ""),
    quote="",
    grammar={"opening": '{ "objects" : [', "closing": "] }", "key_head": "", "quoted": False},
)
COMPACT = Codec(name="compact", opening="", closing="", separator="\n", key=("", ""), quote="", grammar=None)

CODECS: Mapping[str, Codec] = MappingProxyType(
    {
        codec.name: codec
        for codec in (
            ARRAY,
            replace(ARRAY, name="array_scored"),
            Codec(
                name="keyed",
                opening="{",
                closing="}",
                separator=", ",
                key=('"object_', '": '),
                quote='"',
                grammar={"opening": "{", "closing": "}", "key_head": '"object_', "quoted": True},
            ),
            COMPACT,
            replace(COMPACT, name="compact_scored"),
        )
    }
)


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
    return [
        Piece(codec.opening, "structure"),
        *appended_pieces(objects, 1, vocabulary, codec, after_a_value=False, open_desc=""),
    ]


def appended_pieces(
    objects: Sequence[Truth], number: int, vocabulary: Vocabulary, codec: Codec, *, after_a_value: bool, open_desc: str
) -> list[Piece]:
    """The rest of an answer: further objects, and the closing.

    Args:
        number: of the first object, if objects are numbered.
        after_a_value: whether a value precedes them.
        open_desc: the description, as it was written, that a first object which has it too would share; empty: none.
    """
    pieces: list[Piece] = []
    for between, own in _written(objects, number, vocabulary, codec, after_a_value=after_a_value, open_desc=open_desc):
        pieces += [*between, *own]
    pieces.append(Piece(codec.closing, "structure"))
    return pieces


def object_spans(objects: Sequence[Truth], vocabulary: Vocabulary, codec: Codec) -> list[tuple[int, int]]:
    """[first, last) bytes of each object in the text of an answer; a shared description belongs to the first."""
    spans, at = [], len(codec.opening.encode())
    for between, own in _written(objects, 1, vocabulary, codec, after_a_value=False, open_desc=""):
        first = at + _num_bytes(between)
        at = first + _num_bytes(own)
        spans.append((first, at))
    return spans


def _num_bytes(pieces: Sequence[Piece]) -> int:
    return sum(len(piece.text.encode()) for piece in pieces)


def _written(
    objects: Sequence[Truth], number: int, vocabulary: Vocabulary, codec: Codec, *, after_a_value: bool, open_desc: str
) -> Iterator[tuple[list[Piece], list[Piece]]]:
    """Of each object what stands before it, and its own pieces."""
    for place, truth in enumerate(objects):
        desc = vocabulary.normalise(truth.desc)
        if codec.in_lines and desc == open_desc:
            yield [], codec.box_pieces(truth)
            continue
        between = [Piece(codec.separator, "structure")] if place or after_a_value else []
        yield between, codec.object_pieces(truth, number + place, vocabulary)
        open_desc = desc


def encode_answer(objects: Sequence[Truth], vocabulary: Vocabulary, codec: Codec, *, where: str = "") -> AnswerTokens:
    """The answer that teaches `objects`, as ids, with the end of turn (`vocabulary.stop_id`) as its last id.

    Args:
        where: the sample, for the message.

    Raises:
        DataError: a description cannot be written with this tokenizer (`encode_pieces`).
    """
    answer = encode_pieces(answer_pieces(objects, vocabulary, codec), vocabulary, where=where)
    return AnswerTokens(
        ids=np.append(answer.ids, vocabulary.stop_id),
        is_desc=np.append(answer.is_desc, False),
        is_coord=np.append(answer.is_coord, False),
        slots=answer.slots,
        bins=answer.bins,
        score_slots=answer.score_slots,
    )


def encode_pieces(pieces: Sequence[Piece], vocabulary: Vocabulary, *, where: str = "") -> AnswerTokens:
    """`exact_tokens`, raising where there are none.

    Raises:
        DataError: the tokenizer cannot write them (a description holds a text that it turns into a token).
    """
    tokens = exact_tokens(pieces, vocabulary)
    if tokens is None:
        text = "".join(piece.text for piece in pieces)
        written = vocabulary.written_all(vocabulary.encode(text))
        raise DataError(
            f"the tokenizer cannot write this answer exactly: {text!r} came back as {written!r}",
            where=where,
            fix="look for the text of a special token or an unusual character in the descriptions",
        )
    return tokens


def exact_tokens(pieces: Sequence[Piece], vocabulary: Vocabulary) -> AnswerTokens | None:
    """Tokenise the joined text in one call and give every token the region of its first byte.

    No end of turn is added.

    Returns: None where the ids do not spell the text, or coordinate tokens stand elsewhere than at the coordinate
        pieces.
    """
    text = "".join(piece.text for piece in pieces)
    ids = np.array(vocabulary.encode(text), dtype=np.int64)
    kinds = vocabulary.kinds_of(ids)
    written_slots = np.flatnonzero(kinds >= 0)
    wanted = [piece.bin for piece in pieces if piece.bin >= 0]
    written = vocabulary.written_all(ids.tolist())
    if written != text.encode() or kinds[written_slots].tolist() != wanted:
        return None
    # A last token without bytes has no first byte: it takes the region of the last byte.
    first = np.minimum(vocabulary.starts_of(ids)[:-1], len(written) - 1)
    region = region_of_bytes(pieces)[first]
    is_score = (kinds >= 0) & (region == REGIONS.index("score"))
    slots = np.flatnonzero((kinds >= 0) & ~is_score)
    return AnswerTokens(
        ids=ids,
        is_desc=region == REGIONS.index("desc"),
        is_coord=kinds >= 0,
        slots=slots,
        bins=kinds[slots],
        score_slots=np.flatnonzero(is_score),
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


def region_of_bytes(pieces: Sequence[Piece]) -> NDArray[np.int64]:
    """[bytes] index into `REGIONS` of each byte of the joined text."""
    codes = [REGIONS.index(piece.region) for piece in pieces]
    return np.repeat(codes, [len(piece.text.encode()) for piece in pieces])
