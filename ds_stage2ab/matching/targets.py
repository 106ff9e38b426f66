"""Fully supervised targets: those of Channel A, and the rewritten ones of Channel B.

A rewritten target is the answer of Channel A for the same objects, with one difference: the ids of a matched object are
the model's own coordinates, and its `bins` the true ones. Missed objects are added; spurious, duplicate and dropped
ones are left out, or the spurious and duplicate ones stay as context, where answers have scores.

A score is taught by what happened: the IoU of its match for a matched object, 999 for one that the truth wrote, 0 for
one that is not true (noise objects: Chen et al. 2022, "Pix2seq").

Invariants:
- Every true object is in the answer exactly once, with its true description and four slots.
- `ids` are `encode_answer`'s of the objects with the coordinates of the input.
- Coordinate tokens have weight 0, descriptions `desc_ce_weight`, all else 1, if every object is true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ds_stage2ab.carriers import Box, Match, ParsedObject, ParsedRollout, Target, Truth
from ds_stage2ab.codec.bins import bin_of
from ds_stage2ab.codec.text import Codec, encode_answer
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.matching.context_only import weigh_context
from ds_stage2ab.matching.iou import pairwise_iou


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object of a target."""

    read: Truth
    # as it stands in the input
    learned: Truth | None
    # with the box to learn, and the score to learn; None: not true, it stands in the input and its score is to be 0


def answer_target(
    entries: Sequence[Entry], vocabulary: Vocabulary, codec: Codec, *, desc_ce_weight: float, where: str
) -> Target:
    """The target of the answer that lists what `entries` read.

    Args:
        entries: N true objects, and perhaps others.
        desc_ce_weight: cross-entropy weight of the tokens of a description's value.
        where: the sample, for the message.

    Raises:
        DataError: an object cannot be written with this tokenizer.
    """
    answer = encode_answer([entry.read for entry in entries], vocabulary, codec, where=where)
    weights = np.where(answer.is_desc, desc_ce_weight, 1.0) * ~answer.is_coord
    is_true = np.array([entry.learned is not None for entry in entries], dtype=bool)
    is_desc, num_go_on = answer.is_desc, len(entries)
    if not is_true.all():
        read = [entry.read for entry in entries]
        untrue, num_go_on = weigh_context(weights, read, is_true.tolist(), answer, vocabulary, codec)
        is_desc = is_desc & ~untrue
    learned = [entry.learned for entry in entries if entry.learned is not None]
    scores = [entry.learned.score if entry.learned is not None else 0 for entry in entries]
    return Target(
        ids=answer.ids,
        weights=weights.astype(np.float32),
        is_desc=is_desc,
        slots=answer.slots.reshape(-1, 4)[is_true].reshape(-1),
        bins=np.array([one.box for one in learned], dtype=np.int64).reshape(-1),
        score_slots=answer.score_slots,
        score_bins=np.array(scores[: len(answer.score_slots)], dtype=np.int64),
        num_go_on=num_go_on,
        num_stop=1,
        seam_fallback=False,
    )


def rewritten_target(
    parsed: ParsedRollout,
    match: Match,
    truth: Sequence[Truth],
    vocabulary: Vocabulary,
    codec: Codec,
    *,
    said_order: bool,
    keep_spurious: bool,
    desc_ce_weight: float,
    where: str,
) -> Target:
    """Make the target of one rollout: one canonical answer, with the coordinates that the model wrote.

    Args:
        parsed: the rollout.
        match: of `parsed.objects` with `truth`.
        truth: the true objects in the order of `data.object_order`.
        said_order: matched objects in generated order, then the missed ones; else all of them in the order of `truth`.
        keep_spurious: in generated order, leave spurious objects where they were said, to learn their score.
        desc_ce_weight: as in `answer_target`.
        where: as in `answer_target`.

    Raises:
        DataError: an object cannot be written with this tokenizer.
    """
    assert len(match.pairs) + len(match.missed) == len(truth), "the match is of other true objects"
    said = {place: parsed.objects[predicted] for predicted, place in match.pairs}
    entries = {
        place: matched_entry(said[place], one) if place in said else Entry(read=one, learned=one)
        for place, one in enumerate(truth)
    }
    if not said_order:
        chosen = list(entries.values())
    else:
        places = dict(match.pairs)
        spurious = match.spurious if keep_spurious else ()
        order = sorted([*places, *spurious])
        heard = [
            entries[places[predicted]] if predicted in places else spurious_entry(parsed.objects[predicted])
            for predicted in order
        ]
        chosen = [*heard, *(entries[place] for place in match.missed)]
    return answer_target(chosen, vocabulary, codec, desc_ce_weight=desc_ce_weight, where=where)


def matched_entry(found: ParsedObject, truth: Truth) -> Entry:
    """Read with the model's own box and score; the score to learn is the IoU of the two boxes."""
    return Entry(
        read=Truth(desc=truth.desc, box=found.box, score=max(found.score, 0)),
        learned=replace(truth, score=score_of(found.box, truth.box)),
    )


def spurious_entry(found: ParsedObject) -> Entry:
    return Entry(read=Truth(desc=found.desc, box=found.box, score=max(found.score, 0)), learned=None)


def score_of(found: Box, truth: Box) -> int:
    """The score of a box as it should be written: its IoU with the true one, as a bin."""
    return bin_of(float(pairwise_iou([found], [truth])[0, 0]))
