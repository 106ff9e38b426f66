"""What the answers of an evaluation say beyond its metrics.

Invariants:
- Below the lowest score precision, recall and F1 are those that the evaluation reports.
- A box is named once at most: right or wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ds_stage2ab.codec.names import compared
from ds_stage2ab.evaluation.answers import Answer
from ds_stage2ab.evaluation.average_precision import Detections, average_precision
from ds_stage2ab.evaluation.f1 import DescriptionCounts, count_by_description, name_of, share, wrong_names

NUM_THRESHOLDS = 50
"""Evenly over the objects: products of many probabilities lie orders of magnitude apart."""
UNSCORED = 1.0
"""The score of an object that has none, as in evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Figures of the objects whose score is at least the threshold; None where none is left."""

    threshold: list[float]
    precision: list[float | None]
    recall: list[float | None]
    f1: list[float | None]
    kept: list[float]
    # share of the predicted objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Description(DescriptionCounts):
    """One description over the set."""

    name: str
    ap: float | None
    worst: tuple[tuple[int, int], ...]
    # (place of the image, its missed and spurious objects of this name), most first; images without are left out


def over_thresholds(answers: Sequence[Answer]) -> Thresholds | None:
    """None where scores are not known. Pairs are those of the evaluation: one counts while its object is kept."""
    if not answers or any(answer.scores is None for answer in answers):
        return None
    scores = np.array([score for answer in answers for score in answer.scores])
    paired = np.array([answer.scores[place] for answer in answers for place, _ in answer.pairs])
    true = sum(len(answer.truth) for answer in answers)
    cuts = np.quantile(scores, np.linspace(0, 1, NUM_THRESHOLDS + 1)) if len(scores) else np.zeros(1)
    kept = [int((scores >= cut).sum()) for cut in cuts]
    hits = [int((paired >= cut).sum()) for cut in cuts]
    return Thresholds(
        threshold=cuts.tolist(),
        precision=[share(hit, some) for hit, some in zip(hits, kept, strict=True)],
        recall=[share(hit, true) for hit in hits],
        f1=[share(2 * hit, some + true) for hit, some in zip(hits, kept, strict=True)],
        kept=[share(some, len(scores)) or 0.0 for some in kept],
    )


def confusion(answers: Sequence[Answer]) -> Counter[tuple[str, str]]:
    """Found boxes by (true name, predicted name)."""
    named: Counter[tuple[str, str]] = Counter()
    for answer in answers:
        pairs = (*answer.pairs, *wrong_names(answer.predicted, answer.truth, answer.pairs))
        named.update((name_of(answer.truth[g]), name_of(answer.predicted[p])) for p, g in pairs)
    return named


def descriptions(answers: Sequence[Answer], num_worst: int) -> list[Description]:
    """Those of true objects first, by their number; then those that were only predicted."""
    counts = count_by_description((one.predicted, one.truth, one.pairs) for one in answers)
    ap = average_precision([_detections(one) for one in answers]).by_description
    worst = _worst(answers)
    rows = [
        Description(
            name=name,
            ap=ap.get(name),
            worst=tuple(worst[name].most_common(num_worst)),
            **asdict(count),
        )
        for name, count in counts.items()
    ]
    return sorted(rows, key=lambda row: (-row.true, -row.predicted, row.name))


def _worst(answers: Sequence[Answer]) -> dict[str, Counter[int]]:
    """Name -> place of an image -> its missed and spurious objects of that name."""
    errors: dict[str, Counter[int]] = defaultdict(Counter)
    for place, answer in enumerate(answers):
        found, hit = ({pair[side] for pair in answer.pairs} for side in (0, 1))
        wrong = [one for p, one in enumerate(answer.predicted) if p not in found]
        wrong += [one for g, one in enumerate(answer.truth) if g not in hit]
        for one in wrong:
            errors[compared(one.desc)][place] += 1
    return errors


def _detections(answer: Answer) -> Detections:
    return Detections(
        width=answer.width,
        height=answer.height,
        truth=answer.truth,
        predicted=answer.predicted,
        scores=answer.scores or [UNSCORED] * len(answer.predicted),
    )
