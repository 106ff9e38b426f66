"""An answer -> the objects in it with their scores: for the evaluation, and for `ds-stage2ab predict`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ds_stage2ab.carriers import ParsedRollout, Probabilities, Rollout, Truth
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.matching.parse import parse_rollout

WELL_FORMED = ("ok", "empty_answer")
"""Parse states of a complete answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """What an answer says; small, as ranks exchange it."""

    predicted: tuple[Truth, ...]
    scores: tuple[float, ...] | None
    # of each predicted object: product of the probabilities of its tokens; None where the backend gives none
    dropped: tuple[str, ...]
    # the reason for each dropped value
    well_formed: bool
    text: str
    # the answer, for people
    state: str
    # how far it could be parsed
    finish: str
    num_tokens: int
    coordinate_mass: tuple[float, int]
    # (sum, count) over the generated coordinate tokens


def detected(rollout: Rollout, vocabulary: Vocabulary, codec: Codec) -> Detected:
    """Parse an answer, strictly."""
    parsed = parse_rollout(rollout.response_ids, vocabulary, codec)
    return Detected(
        predicted=tuple(Truth(desc=found.desc, box=found.box) for found in parsed.objects),
        scores=_scores(parsed, rollout.probabilities),
        dropped=parsed.dropped,
        well_formed=parsed.state in WELL_FORMED and rollout.finish == "stop",
        text=vocabulary.written_all(rollout.response_ids).decode(errors="replace"),
        state=parsed.state,
        finish=rollout.finish,
        num_tokens=len(rollout.response_ids),
        coordinate_mass=_coordinate_mass(rollout, vocabulary),
    )


def _scores(parsed: ParsedRollout, probabilities: Probabilities | None) -> tuple[float, ...] | None:
    """For each object, the product of the probabilities of its tokens."""
    if probabilities is None:
        return None
    return tuple(math.exp(probabilities.log_probs[slice(*found.tokens)].sum()) for found in parsed.objects)


def _coordinate_mass(rollout: Rollout, vocabulary: Vocabulary) -> tuple[float, int]:
    if rollout.probabilities is None:
        return 0.0, 0
    is_coordinate = vocabulary.kinds_of(np.array(rollout.response_ids, dtype=np.int64)) >= 0
    return float(rollout.probabilities.coordinate_mass[is_coordinate].sum()), int(is_coordinate.sum())
