"""An answer -> the objects in it with their scores: for the evaluation, and for `ds-stage2ab predict`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ds_stage2ab.carriers import ParsedRollout, Probabilities, Rollout, Truth
from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.matching.scores import confidence_of

WELL_FORMED = ("ok", "empty_answer")
"""Parse states of a complete answer."""

BY_SCORE, BY_PROBABILITY, UNRANKED = "by_score", "by_probability", "unranked"
"""How objects are ranked: the end of the names of `eval/ap...`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Detected:
    """What an answer says; small, as ranks exchange it."""

    predicted: tuple[Truth, ...]
    scores: tuple[float, ...] | None
    # of each predicted object, higher is more certain: in a scored form the confidence that it says times the
    # probability of its description, else `token_scores`
    token_scores: tuple[float, ...] | None
    # product of the probabilities of its tokens, its score left out; None where the backend gives none
    ranked: str
    # what `scores` are: BY_SCORE, BY_PROBABILITY, or UNRANKED where there are none
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
    token_scores = _token_scores(parsed, rollout.probabilities)
    scores = _confidences(rollout, parsed, vocabulary) if codec.scored else token_scores
    return Detected(
        predicted=tuple(Truth(desc=found.desc, box=found.box) for found in parsed.objects),
        scores=scores,
        token_scores=token_scores,
        ranked=BY_SCORE if codec.scored else UNRANKED if scores is None else BY_PROBABILITY,
        dropped=parsed.dropped,
        well_formed=parsed.state in WELL_FORMED and rollout.finish == "stop",
        text=vocabulary.text_of(rollout.response_ids),
        state=parsed.state,
        finish=rollout.finish,
        num_tokens=len(rollout.response_ids),
        coordinate_mass=_coordinate_mass(rollout, vocabulary),
    )


def _token_scores(parsed: ParsedRollout, probabilities: Probabilities | None) -> tuple[float, ...] | None:
    """For each object, the product of the probabilities of its tokens but its score."""
    if probabilities is None:
        return None
    log_probs = probabilities.log_probs.copy()
    log_probs[[found.score_slot for found in parsed.objects if found.score_slot >= 0]] = 0.0
    return tuple(math.exp(log_probs[slice(*found.tokens)].sum()) for found in parsed.objects)


def _confidences(rollout: Rollout, parsed: ParsedRollout, vocabulary: Vocabulary) -> tuple[float, ...]:
    """For each object, what its score says (how well the box fits) times the probability of its description.

    A score is taught by the box alone, so it does not know whether the name is right.
    """
    if rollout.probabilities is None:
        return tuple(confidence_of(found.score, None) for found in parsed.objects)
    log_probs, starts = rollout.probabilities.log_probs, vocabulary.starts_of(np.array(rollout.response_ids))
    confidences = []
    for found in parsed.objects:
        first, last = np.searchsorted(starts, (found.desc_span[0], found.desc_span[1] - 1), side="right") - 1
        named = math.exp(log_probs[first : last + 1].sum())
        confidences.append(named * confidence_of(found.score, math.exp(log_probs[found.score_slot])))
    return tuple(confidences)


def _coordinate_mass(rollout: Rollout, vocabulary: Vocabulary) -> tuple[float, int]:
    if rollout.probabilities is None:
        return 0.0, 0
    is_coordinate = vocabulary.kinds_of(np.array(rollout.response_ids, dtype=np.int64)) >= 0
    return float(rollout.probabilities.coordinate_mass[is_coordinate].sum()), int(is_coordinate.sum())
