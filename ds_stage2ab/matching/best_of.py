"""Of several rollouts of one sample the one that is taught: that which found most, as Best-of-N sampling takes it
(Stiennon et al. 2020).

Invariants:
- The best has the highest F1, among those the highest mean IoU, and among those it is the first.
- The F1 of an answer is 1 exactly where every object is matched and none is spurious, so for none where none are true.
- A rollout alone reports nothing of a choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds_stage2ab.carriers import Match, ParsedRollout, Rollout, Truth
from ds_stage2ab.matching.health import Term, summed_iou

NOT_FIRST, F1_OF_ALL, F1_OF_BEST = "match/not_first_rate", "match/f1_of_all", "match/f1_of_best"
BEST_OF_TERMS = (NOT_FIRST, F1_OF_ALL, F1_OF_BEST)


@dataclass(frozen=True, slots=True, order=True)
class Quality:
    """How good an answer is; the larger, the better."""

    f1: float
    # 2 matched / (predicted + true); 1 if there are neither
    iou: float
    # mean of the matched pairs; 0 if there are none


def quality(parsed: ParsedRollout, match: Match, truth: Sequence[Truth]) -> Quality:
    """Of one answer, by training's own match: boxes alone."""
    matched, objects = len(match.pairs), len(parsed.objects) + len(truth)
    return Quality(
        f1=2 * matched / objects if objects else 1.0,
        iou=summed_iou(parsed, match, truth) / matched if matched else 0.0,
    )


def best_of(qualities: Sequence[Quality]) -> int:
    """The place of the best; of equals the first."""
    return max(range(len(qualities)), key=qualities.__getitem__)


def best_of_terms(rollouts: Sequence[Rollout], qualities: Sequence[Quality], best: int) -> dict[str, Term]:
    """Metric name -> (sum, count) of one sample: how much was drawn for it, and what the choice gave.

    The first three are those of all its rollouts, instead of those of the best alone.
    """
    drawn = {
        "rollout/count": (float(len(rollouts)), 1.0),
        "rollout/resent": (float(sum(one.attempt - 1 for one in rollouts)), 1.0),
        "rollout/tokens": (float(sum(len(one.response_ids) for one in rollouts)), 1.0),
    }
    if len(rollouts) == 1:
        return {**drawn, **dict.fromkeys(BEST_OF_TERMS, (0.0, 0.0))}
    return {
        **drawn,
        NOT_FIRST: (float(best > 0), 1.0),
        F1_OF_ALL: (sum(one.f1 for one in qualities), float(len(qualities))),
        F1_OF_BEST: (qualities[best].f1, 1.0),
    }
