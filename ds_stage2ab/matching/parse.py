"""A rollout's ids -> the objects to learn from, and the prefix to keep.

Nothing is repaired and nothing is guessed: `scan` finds the complete values of the answer, each is kept or
dropped for one reason, and the prefix ends after the last one.

Invariants:
- Every complete value is in `objects` or in `dropped`, once; both are in generated order.
- The bytes of `prefix_ids` are the first bytes of the response, up to the end of the last complete value; without one
  they are the codec's own opening.
- `prefix_ids` are generated ids but for the token in which the cut falls.
- The first `num_anchored` of them are generated ids; there is no coordinate token after them.
- No ids raise an error, and ids after the end of the scan change only the state.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ds_stage2ab.carriers import ParsedObject, ParsedRollout
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.matching.scan import Node, Scan, scan
from ds_stage2ab.ops.scan import MAX_KEY_DIGITS

STATES = (
    "no_json",  # the opening was not read
    "empty_answer",  # closed, without any value
    "ok",  # closed, nothing after it
    "trailing_garbage",  # closed, with something (white space counts) after it
    "malformed",  # ended by a byte or token that cannot continue
    "truncated_first_object",  # the ids ended before the first value was complete
    "truncated",  # the ids ended before the close
)
"""One per rollout: the first that applies.

In lines there is no opening and no close: `no_json` and `trailing_garbage` cannot be, an answer without a token is
empty, and one that ends behind a complete box is closed.
"""

REASONS = (
    "key_invalid",  # not an object, a key twice (its own included), or a key that the form does not know
    "missing_desc",  # no `desc`, or it is blank or not a string
    "missing_geom",  # no geometry at all
    "unknown_geom",  # a geometry of another kind, beside `bbox_2d` or instead of it
    "poly_unsupported",  # a polygon, beside `bbox_2d` or instead of it
    "wrong_arity",  # `bbox_2d` is not a list of four
    "non_coord_token",  # one of the four is not a coordinate token
    "bbox_invalid",  # x2 <= x1 or y2 <= y1
    "missing_score",  # in a scored form: no `score`, or it is not a coordinate token
)
"""Why a complete value was dropped: the first that applies.

In lines a value has all its coordinates and no keys: `missing_desc` (blank, or none) and `bbox_invalid` alone can be.
"""

MAX_NUMBER = 10**MAX_KEY_DIGITS - 1
ROOM = 10_000
"""Numbers that must be free above the first appended one: more than any answer has objects."""
DESC_KEY = "desc"
BOX_KEY = "bbox_2d"
SCORE_KEY = "score"
POLYGON_KEYS = frozenset({"poly", "poly_2d", "polygon", "polygon_2d", "segmentation"})
OTHER_GEOMETRY_KEYS = frozenset(
    {"bbox", "bbox_3d", "box", "box_2d", "box_3d", "boxes", "circle", "line", "line_2d", "mask"}
    | {"obb", "point", "point_2d", "points", "points_2d", "quad", "rbox"}
)


def parse_rollout(token_ids: Sequence[int], vocabulary: Vocabulary, codec: Codec) -> ParsedRollout:
    """Read a rollout.

    Args:
        token_ids: [T] response ids, the stop token removed. Any ids are legal.
        vocabulary: of the tokenizer that the ids belong to.
        codec: the form that the answer should have.

    Returns: kept objects, one of `REASONS` for each dropped value, one of `STATES`, the prefix.
    """
    found = scan(token_ids, vocabulary, codec)
    numbers = [value.number for value in found.values] if codec.key[0] else []
    judge = _judge_line if codec.in_lines else _judge
    judged = [
        "key_invalid" if value.number in numbers[:place] else judge(value, found, codec.scored)
        for place, value in enumerate(found.values)
    ]
    prefix_ids, num_whole = _prefix(token_ids, found, vocabulary, codec)
    return ParsedRollout(
        objects=tuple(verdict for verdict in judged if isinstance(verdict, ParsedObject)),
        dropped=tuple(verdict for verdict in judged if isinstance(verdict, str)),
        state=_state(found),
        prefix_ids=prefix_ids,
        num_whole=num_whole,
        num_anchored=_num_anchored(token_ids, found, vocabulary),
        value_ends=tuple(value.last for value in found.values),
        next_number=_next_number(numbers),
        open_desc=_last_desc(found) if codec.in_lines else "",
    )


def _next_number(numbers: Sequence[int]) -> int:
    """One more than the highest number with room above it: the grammar reads no more than MAX_NUMBER."""
    above = MAX_NUMBER + 1
    for number in sorted({0, *numbers}, reverse=True):
        if above - number > ROOM:
            return number + 1
        above = number
    raise AssertionError(f"{len(numbers)} numbers leave no room")


def _state(found: Scan) -> str:
    if found.opening_end < 0:
        return "no_json"
    if found.ended == "closed":
        if not found.values:
            return "empty_answer"
        return "trailing_garbage" if found.behind else "ok"
    if found.ended == "refused":
        return "malformed"
    return "truncated" if found.values else "truncated_first_object"


def _judge(value: Node, found: Scan, scored: bool) -> ParsedObject | str:
    """The object, or the first of `REASONS` that applies."""
    if value.kind != "object":
        return "key_invalid"
    names = [_string(key, found.text) for key in value.inside[::2]]
    members = dict(zip(names, value.inside[1::2], strict=True))
    others = members.keys() - {DESC_KEY, BOX_KEY, *[SCORE_KEY] * scored}
    if len(members) < len(names) or not others <= POLYGON_KEYS | OTHER_GEOMETRY_KEYS:
        return "key_invalid"
    if DESC_KEY not in members or members[DESC_KEY].kind != "string":
        return "missing_desc"
    desc = _string(members[DESC_KEY], found.text)
    if not desc.strip():
        return "missing_desc"
    if not others and BOX_KEY not in members:
        return "missing_geom"
    if others & OTHER_GEOMETRY_KEYS:
        return "unknown_geom"
    if others:
        return "poly_unsupported"
    judged = _judge_box(value, members[DESC_KEY], desc, members[BOX_KEY], found.starts)
    return _with_score(judged, members.get(SCORE_KEY)) if scored else judged


def _judge_box(value: Node, desc_node: Node, desc: str, box: Node, starts: list[int]) -> ParsedObject | str:
    if box.kind != "array" or len(box.inside) != 4:
        return "wrong_arity"
    if any(corner.slot < 0 for corner in box.inside):
        return "non_coord_token"
    return _object(value, desc, (desc_node.first + 1, desc_node.last - 1), box.inside, starts)


def _with_score(judged: ParsedObject | str, score: Node | None) -> ParsedObject | str:
    if isinstance(judged, str):
        return judged
    if score is None or score.slot < 0:
        return "missing_score"
    return replace(judged, score=score.number, score_slot=score.slot)


def _judge_line(value: Node, found: Scan, scored: bool) -> ParsedObject | str:
    """Of a value in lines the object, or the first of `REASONS` that applies."""
    desc_node, *corners = value.inside
    desc = found.text[desc_node.first : desc_node.last].decode()
    if not desc.strip():
        return "missing_desc"
    judged = _object(value, desc, (desc_node.first, desc_node.last), corners[:4], found.starts)
    return _with_score(judged, corners[4]) if scored else judged


def _object(
    value: Node, desc: str, desc_span: tuple[int, int], corners: Sequence[Node], starts: list[int]
) -> ParsedObject | str:
    x1, y1, x2, y2 = (corner.number for corner in corners)
    if x2 <= x1 or y2 <= y1:
        return "bbox_invalid"
    first, second, third, fourth = (corner.slot for corner in corners)
    return ParsedObject(
        desc=desc,
        box=(x1, y1, x2, y2),
        span=(value.first, value.last),
        desc_span=desc_span,
        tokens=_tokens(starts, value.first, value.last),
        slots=(first, second, third, fourth),
        score=-1,
        score_slot=-1,
    )


def _last_desc(found: Scan) -> str:
    """The description of the last value's line: a further box may stand behind it."""
    if not found.values:
        return ""
    desc = found.values[-1].inside[0]
    return found.text[desc.first : desc.last].decode()


def _string(node: Node, text: bytes) -> str:
    """The value of a string that the scan has accepted; half a surrogate pair becomes U+FFFD."""
    inside = text[node.first + 1 : node.last - 1]
    if b"\\" not in inside:
        return inside.decode()
    value = json.loads(text[node.first : node.last])
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _tokens(starts: list[int], first: int, last: int) -> tuple[int, int]:
    """[from, to) of the tokens whose first byte lies in the bytes [first, last)."""
    return bisect_left(starts, first), bisect_left(starts, last)


def _num_anchored(token_ids: Sequence[int], found: Scan, vocabulary: Vocabulary) -> int:
    """Number of ids up to and including the anchor: the last coordinate token of the last complete value.

    A tokenizer splits every text at added tokens, so nothing merges across a coordinate token. The anchor of a value
    without one is the last token that ends at or before the value's first byte; without a value there is no anchor.
    """
    if not found.values:
        return 0
    value = found.values[-1]
    first, last = _tokens(found.starts, value.first, value.last)
    coordinates = np.flatnonzero(vocabulary.kinds_of(np.array(token_ids[first:last], dtype=np.int64)) >= 0)
    if len(coordinates):
        return first + int(coordinates[-1]) + 1
    return bisect_right(found.starts, value.first) - 1


def _prefix(
    token_ids: Sequence[int], found: Scan, vocabulary: Vocabulary, codec: Codec
) -> tuple[tuple[int, ...], int]:
    """The ids up to the cut, and how many of them are generated ids."""
    if not found.values:
        return tuple(vocabulary.encode(codec.opening)), 0
    cut = found.values[-1].last
    place = bisect_left(found.starts, cut)  # the first token that starts at the cut or after it
    if found.starts[place] == cut:
        return tuple(token_ids[:place]), place
    kept = vocabulary.written(token_ids[place - 1])[: cut - found.starts[place - 1]]
    return (*token_ids[: place - 1], *_spell(kept, vocabulary)), place - 1


def _spell(piece: bytes, vocabulary: Vocabulary) -> list[int]:
    """Ids of exactly these bytes: as the tokenizer would write them, else byte by byte."""
    try:
        ids = vocabulary.encode(piece.decode())
    except UnicodeDecodeError:
        ids = []
    if b"".join(vocabulary.bytes_of(token) or b"" for token in ids) == piece:
        return ids
    return [vocabulary.byte_ids[byte] for byte in piece]
