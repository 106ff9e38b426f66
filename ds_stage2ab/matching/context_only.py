"""Objects that stand in a target as context alone: not true, so nothing of them is taught but their score.

The decision to go on is taught where a true object follows right behind, so as often as in the true answer: taught
before the others too, it would teach longer answers (one noise object in each sample of the quickstart: 1.4 objects for
each true one). The decision that ends the answer has weight 1, and every other token that holds a byte of an object
that is not true has weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import AnswerTokens, Codec, object_spans
from ds_stage2ab.codec.vocabulary import Vocabulary


def weigh_context(
    weights: NDArray[np.float64],
    objects: Sequence[Truth],
    is_true: Sequence[bool],
    answer: AnswerTokens,
    vocabulary: Vocabulary,
    codec: Codec,
) -> tuple[NDArray[np.bool_], int]:
    """Set the weights [T] of an answer in which some objects are not true, in place.

    Args:
        objects: N objects of the answer.
        is_true: of each, whether it is taught.
        answer: `encode_answer` of the objects.

    Returns: whether each token lies in an object that is not true [T], and the number of supervised decisions to go on.
    """
    starts = vocabulary.starts_of(answer.ids[:-1])
    spans = object_spans(objects, vocabulary, codec)
    untrue = np.zeros(len(weights), dtype=bool)
    for (first, last), true in zip(spans, is_true, strict=True):
        if not true:
            untrue[_holding(starts, first) : _holding(starts, last - 1) + 1] = True
    weights[untrue] = 0.0
    decisions = [_holding(starts, spans[0][0])]
    for (_, end), counts in zip(spans, [*is_true[1:], True], strict=True):  # the last one ends the answer
        if counts:
            weights[_holding(starts, end - 1)] = 1.0
        weights[_holding(starts, end)] = float(counts)
        decisions.append(_holding(starts, end))
    weights[answer.is_coord] = 0.0
    taught = set(answer.slots.reshape(-1, 4)[np.array(is_true)].ravel().tolist())
    return untrue, sum(bool(weights[token] > 0) or token in taught for token in decisions[:-1])


def _holding(starts: NDArray[np.int64], offset: int) -> int:
    """The token that holds the byte at `offset`; past the last byte, the end of turn."""
    return int(np.searchsorted(starts, offset, side="right")) - 1
