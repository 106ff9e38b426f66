"""Fully supervised targets: those of Channel A, and the rewritten ones of Channel B.

A rewritten target is the answer of Channel A for the same objects, with one difference: the ids of a matched object are
the model's own coordinates, and its `bins` the true ones. Spurious, duplicate and dropped objects are left out, missed
ones are added.

Invariants:
- Every true object is in the answer exactly once, with its true description and four slots.
- `ids` are `encode_answer`'s of the objects with the coordinates of the input.
- Coordinate tokens have weight 0, descriptions `desc_ce_weight`, all else 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ds_stage2ab.carriers import Match, ParsedRollout, Target, Truth
from ds_stage2ab.codec.text import Codec, encode_answer
from ds_stage2ab.codec.vocabulary import Vocabulary


def answer_target(
    objects: Sequence[Truth],
    boxes: Sequence[Truth],
    vocabulary: Vocabulary,
    codec: Codec,
    *,
    desc_ce_weight: float,
    where: str,
) -> Target:
    """The target of the answer that lists `objects`.

    Args:
        objects: N objects with the coordinates of the input.
        boxes: N objects whose boxes are the targets for those of `objects`.
        desc_ce_weight: cross-entropy weight of the tokens of a description's value.
        where: the sample, for the message.

    Raises:
        DataError: an object cannot be written with this tokenizer.
    """
    answer = encode_answer(objects, vocabulary, codec, where=where)
    weights = np.where(answer.is_desc, desc_ce_weight, 1.0) * ~answer.is_coord
    return Target(
        ids=answer.ids,
        weights=weights.astype(np.float32),
        is_desc=answer.is_desc,
        slots=answer.slots,
        bins=np.array([one.box for one in boxes], dtype=np.int64).reshape(-1),
        num_go_on=len(objects),
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
    desc_ce_weight: float,
    where: str,
) -> Target:
    """Make the target of one rollout: one canonical answer, with the coordinates that the model wrote.

    Args:
        parsed: the rollout.
        match: of `parsed.objects` with `truth`.
        truth: the true objects in the order of `data.object_order`.
        said_order: matched objects in generated order, then the missed ones; else all of them in the order of `truth`.
        desc_ce_weight: as in `answer_target`.
        where: as in `answer_target`.

    Raises:
        DataError: an object cannot be written with this tokenizer.
    """
    found = {place: parsed.objects[predicted].box for predicted, place in match.pairs}
    assert len(found) + len(match.missed) == len(truth), "the match is of other true objects"
    places = [*found, *match.missed] if said_order else range(len(truth))
    learned = [truth[place] for place in places]
    read = [Truth(desc=truth[place].desc, box=found.get(place, truth[place].box)) for place in places]
    return answer_target(read, learned, vocabulary, codec, desc_ce_weight=desc_ce_weight, where=where)
