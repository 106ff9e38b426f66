"""A rollout and its match -> what is learned from it: the target's ids, weights, slots and bins.

The target is the rollout's prefix, then every true object that it missed, then the close and the end of turn.
Weights belong to bytes. In the prefix only the structure of matched objects counts: it has weight 1, all else 0
(descriptions that the model chose itself, spurious and dropped values, separators, the opening, coordinates, which
the box and coordinate terms see), and a token counts only if every byte of it does. Behind the prefix a token
takes the region of its first byte. A target costs time in proportion to its length.

Invariants:
- `ids` begin with the prefix ids as they are and end with the end of turn, which stands nowhere else.
- The text of `ids` is one document of the codec's grammar: the prefix's values, then the missed objects in their
  given order.
- Every true object stands in exactly one of the matched and the appended, and has four slots.
- At every slot stands a coordinate token; its weight is 0.
- A token of the prefix has weight 1 if all its bytes are structure of matched objects, else 0.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise

from ds_stage2ab.carriers import Match, ParsedRollout, Target, Truth
from ds_stage2ab.codec.text import AnswerTokens, Codec, Piece, encode_pieces
from ds_stage2ab.codec.vocabulary import Vocabulary

# A JSON string; its second group is there if the string is the key of a member.
_STRING = re.compile(rb'"([^"\\]*(?:\\.[^"\\]*)*)"([ \t\n\r]*:)?')


def build_target(
    parsed: ParsedRollout,
    match: Match,
    truth: Sequence[Truth],
    vocabulary: Vocabulary,
    codec: Codec,
    *,
    desc_ce_weight: float,
    drop_invalid_struct_ce_multiplier: float,
    where: str,
) -> Target:
    """Make the target of one rollout.

    Args:
        parsed: the rollout, read with the same vocabulary and codec.
        match: of `parsed.objects` with `truth`.
        truth: the true objects, in the order in which missed ones are appended.
        desc_ce_weight: cross-entropy weight of the descriptions of appended objects.
        drop_invalid_struct_ce_multiplier: factor on the weight of the structure of appended objects, their
            separators included, if values of the rollout were dropped.
        where: the sample, for the message.

    Raises:
        DataError: a missed object's description cannot be written with this tokenizer.
    """
    assert len(match.pairs) + len(match.missed) == len(truth), "the match is of other true objects"
    assert len(match.pairs) + len(match.spurious) == len(parsed.objects), "the match is of other predictions"
    num_prefix = len(parsed.prefix_ids)
    tail = encode_pieces(_tail_pieces(parsed, match, truth, vocabulary, codec), vocabulary, where=where)
    structure = float(drop_invalid_struct_ce_multiplier if parsed.dropped else 1)
    prefix_weights = _prefix_weights(parsed, match, vocabulary)
    tail_weights = _tail_weights(tail, vocabulary, codec, structure=structure, desc=float(desc_ce_weight))
    return Target(
        ids=(*parsed.prefix_ids, *tail.ids, vocabulary.stop_id),
        weights=(*prefix_weights, *tail_weights, 1.0),
        is_desc=(*[False] * num_prefix, *tail.is_desc, False),
        slots=(*_matched_slots(parsed, match), *(num_prefix + slot for slot in tail.slots)),
        bins=(*(k for _, place in match.pairs for k in truth[place].box), *tail.bins),
    )


def _tail_pieces(
    parsed: ParsedRollout, match: Match, truth: Sequence[Truth], vocabulary: Vocabulary, codec: Codec
) -> list[Piece]:
    """What stands behind the prefix: the missed objects, with a separator before all but the first value; the close."""
    num_values = len(parsed.objects) + len(parsed.dropped)
    pieces: list[Piece] = []
    for number, place in enumerate(match.missed, start=num_values + 1):
        if number > 1:
            pieces.append(Piece(codec.separator, "structure"))
        pieces.extend(codec.object_pieces(truth[place], number, vocabulary))
    pieces.append(Piece(codec.closing, "structure"))
    return pieces


def _matched_slots(parsed: ParsedRollout, match: Match) -> list[int]:
    """Positions of the coordinates of the matched objects.

    Slots count among the response's ids. The prefix has the same ids up to the token in which it was cut, and that
    token is none of them: a coordinate token holds nothing behind its value.
    """
    return [slot for place, _ in match.pairs for slot in parsed.objects[place].slots]


def _prefix_weights(parsed: ParsedRollout, match: Match, vocabulary: Vocabulary) -> list[float]:
    """[tokens of the prefix] 1 for a token whose every byte is structure of a matched object, else 0."""
    ids = parsed.prefix_ids
    text = vocabulary.written_all(ids)
    starts = _starts(ids, vocabulary)
    counts = bytearray(len(text))  # of each byte: whether it has weight 1
    for place, _ in match.pairs:
        found = parsed.objects[place]
        _fill(counts, found.span, 1)
        _fill(counts, _desc_span(text, found.span), 0)
        for slot in found.slots:
            _fill(counts, (starts[slot], starts[slot + 1]), 0)
    return [float(first < last and counts.find(0, first, last) < 0) for first, last in pairwise(starts)]


def _fill(counts: bytearray, span: tuple[int, int], value: int) -> None:
    first, last = span
    counts[first:last] = bytes([value]) * (last - first)


def _desc_span(text: bytes, span: tuple[int, int]) -> tuple[int, int]:
    """[first, last) bytes of the description's value in a kept object, between its quotes.

    A kept object has two members and four coordinate tokens, so it holds one string that is no key.
    """
    values = [found.span(1) for found in _STRING.finditer(text, *span) if found.group(2) is None]
    assert len(values) == 1, f"{len(values)} strings in a kept object: {text[slice(*span)]!r}"
    return values[0]


def _tail_weights(
    tail: AnswerTokens, vocabulary: Vocabulary, codec: Codec, *, structure: float, desc: float
) -> list[float]:
    """[tokens of the tail] by the region of the first byte; coordinates have 0, the close has 1."""
    *starts, end = _starts(tail.ids, vocabulary)
    closing = end - len(codec.closing.encode())
    weights = []
    for start, is_desc, is_coord in zip(starts, tail.is_desc, tail.is_coord, strict=True):
        if is_coord:
            weights.append(0.0)
        elif is_desc:
            weights.append(desc)
        else:
            weights.append(1.0 if start >= closing else structure)
    return weights


def _starts(ids: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """[T+1] offset of each token's first byte; the last entry is the number of bytes."""
    return list(accumulate((len(vocabulary.written(token)) for token in ids), initial=0))
