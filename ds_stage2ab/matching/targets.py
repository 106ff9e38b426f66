"""A rollout and its match -> what is learned from it: the target's ids, weights, slots and bins.

The target is the rollout's prefix, then every true object that it missed, then the close and the end of turn.
Weights belong to bytes. In the prefix only the structure of matched objects counts: it has weight 1, all else 0
(descriptions that the model chose itself, spurious and dropped values, keys, separators, the opening, coordinates,
which the box and coordinate terms see), and a token counts only if every byte of it does. Behind the prefix a token
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

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_stage2ab.carriers import Match, ParsedRollout, Target, Truth
from ds_stage2ab.codec.text import AnswerTokens, Codec, appended_pieces, encode_pieces
from ds_stage2ab.codec.vocabulary import Vocabulary


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
    prefix = np.array(parsed.prefix_ids, dtype=np.int64)
    missed = [truth[place] for place in match.missed]
    after_a_value = bool(parsed.objects or parsed.dropped)
    pieces = appended_pieces(missed, parsed.next_number, vocabulary, codec, after_a_value=after_a_value)
    tail = encode_pieces(pieces, vocabulary, where=where)
    structure = float(drop_invalid_struct_ce_multiplier if parsed.dropped else 1)
    prefix_weights = _prefix_weights(prefix, parsed, match, vocabulary)
    tail_weights = _tail_weights(tail, vocabulary, codec, structure=structure, desc=float(desc_ce_weight))
    matched_bins = np.array([truth[place].box for _, place in match.pairs], dtype=np.int64).reshape(-1)
    return Target(
        ids=np.concatenate([prefix, tail.ids, [vocabulary.stop_id]]),
        weights=np.concatenate([prefix_weights, tail_weights, [1.0]]).astype(np.float32),
        is_desc=np.concatenate([np.zeros(len(prefix), dtype=bool), tail.is_desc, [False]]),
        slots=np.concatenate([_matched_slots(parsed, match), len(prefix) + tail.slots]),
        bins=np.concatenate([matched_bins, tail.bins]),
    )


def _matched_slots(parsed: ParsedRollout, match: Match) -> NDArray[np.int64]:
    """[4 pairs] positions of the coordinates of the matched objects.

    Slots count among the response's ids. The prefix has the same ids up to the token in which it was cut, and that
    token is none of them: a coordinate token holds nothing behind its value.
    """
    return np.array([parsed.objects[place].slots for place, _ in match.pairs], dtype=np.int64).reshape(-1)


def _prefix_weights(
    prefix: NDArray[np.int64], parsed: ParsedRollout, match: Match, vocabulary: Vocabulary
) -> NDArray[np.float64]:
    """[tokens of the prefix] 1 for a token whose every byte is structure of a matched object, else 0."""
    starts = vocabulary.starts_of(prefix)
    counts = np.zeros(starts[-1], dtype=np.int64)  # of each byte: whether it has weight 1
    for place, _ in match.pairs:
        found = parsed.objects[place]
        counts[slice(*found.span)] = 1
        counts[slice(*found.desc_span)] = 0
        for slot in found.slots:
            counts[starts[slot] : starts[slot + 1]] = 0
    before = np.concatenate([[0], np.cumsum(counts)])  # counted bytes before each byte
    lengths = np.diff(starts)
    return ((lengths > 0) & (np.diff(before[starts]) == lengths)).astype(np.float64)


def _tail_weights(
    tail: AnswerTokens, vocabulary: Vocabulary, codec: Codec, *, structure: float, desc: float
) -> NDArray[np.float64]:
    """[tokens of the tail] by the region of the first byte; coordinates have 0, the close has 1."""
    starts = vocabulary.starts_of(tail.ids)
    is_close = starts[:-1] >= starts[-1] - len(codec.closing.encode())
    return np.select([tail.is_coord, tail.is_desc, is_close], [0.0, desc, 1.0], default=structure)
