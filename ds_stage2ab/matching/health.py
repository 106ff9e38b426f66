"""Metrics of each rollout of a B step, as (sum, count) pairs that add up over samples, packs and ranks.

Invariants:
- Every rollout has the same names, `TERM_NAMES`.
- The rates of the parse states add up to 1, those of the drop reasons to `rollout/values_dropped_rate`.
- A quotient with denominator 0 has count 0: it is left out of the mean, never counted as 0 or 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ds_stage2ab.carriers import Finish, Match, ParsedRollout, Rollout, Target, Truth
from ds_stage2ab.codec.names import compared
from ds_stage2ab.matching.duplicates import first_sayings
from ds_stage2ab.matching.iou import pairwise_iou
from ds_stage2ab.matching.parse import REASONS, STATES

Term = tuple[float, float]


def rollout_terms(rollout: Rollout, parsed: ParsedRollout, match: Match, truth: Sequence[Truth]) -> dict[str, Term]:
    """Metric name -> (sum, count) of one rollout; matches are those of training, by boxes alone."""
    matched, predicted, true = len(match.pairs), len(parsed.objects), len(truth)
    values = predicted + len(parsed.dropped)
    same = sum(compared(parsed.objects[p].desc) == compared(truth[g].desc) for p, g in match.pairs)
    terms: dict[str, Term] = {
        "rollout/count": (1, 1),
        "rollout/resent": (rollout.attempt - 1, 1),
        "rollout/tokens": (len(rollout.response_ids), 1),
        "rollout/truncation_rate": (rollout.finish == "length", 1),
        "rollout/repeat_rate": (rollout.finish == "repeat", 1),
        "rollout/values_dropped_rate": (len(parsed.dropped), values),
        "match/precision": (matched, predicted),
        "match/recall": (matched, true),
        "match/f1": (2 * matched, predicted + true),
        "match/iou": (summed_iou(parsed, match, truth), matched),
        "match/same_desc_rate": (same, matched),
        "match/predicted_per_true": (predicted, true),
        "match/duplicates_per_answer": (predicted - len(first_sayings(parsed.objects)), 1),
        "match/early_stop_rate": (stopped_early(rollout.finish, predicted, true), 1),
        "match/late_stop_rate": (predicted > true, 1),
    }
    terms |= {f"parse/{state}": (parsed.state == state, 1) for state in STATES}
    terms |= {f"drop/{reason}": (parsed.dropped.count(reason), values) for reason in REASONS}
    return {name: (float(total), float(count)) for name, (total, count) in terms.items()}


def stopped_early(finish: Finish, predicted: int, true: int) -> bool:
    """True if the model ended its answer itself with fewer objects than are true."""
    return finish == "stop" and predicted < true


def target_terms(
    target: Target, parsed: ParsedRollout, match: Match, truth: Sequence[Truth], *, iou_gate: float
) -> dict[str, Term]:
    """Metric name -> (sum, count) of the target of one rollout.

    Args:
        iou_gate: the least IoU of a pair: a spurious object that has it with a true one is a duplicate.
    """
    iou_PG = pairwise_iou([parsed.objects[place].box for place in match.spurious], [one.box for one in truth])
    duplicates = int((iou_PG.max(axis=1, initial=0.0) >= iou_gate).sum())
    renamed = sum(compared(parsed.objects[p].desc) != compared(truth[g].desc) for p, g in match.pairs)
    return {
        "target/matched": (float(len(match.pairs)), 1.0),
        "target/missed": (float(len(match.missed)), 1.0),
        "target/spurious": (float(len(match.spurious) - duplicates), 1.0),
        "target/duplicate": (float(duplicates), 1.0),
        "target/renamed": (float(renamed), 1.0),
        "target/go_on": (float(target.num_go_on), 1.0),
        "target/stop": (float(target.num_stop), 1.0),
        "target/seam_fallback": (float(target.seam_fallback), 1.0),
    }


def summed_iou(parsed: ParsedRollout, match: Match, truth: Sequence[Truth]) -> float:
    """Over the matched pairs."""
    iou_PG = pairwise_iou([found.box for found in parsed.objects], [one.box for one in truth])
    return math.fsum(float(iou_PG[pair]) for pair in match.pairs)


TERM_NAMES = (
    "rollout/count",
    "rollout/resent",
    "rollout/tokens",
    "rollout/truncation_rate",
    "rollout/repeat_rate",
    "rollout/values_dropped_rate",
    "match/precision",
    "match/recall",
    "match/f1",
    "match/iou",
    "match/same_desc_rate",
    "match/predicted_per_true",
    "match/duplicates_per_answer",
    "match/early_stop_rate",
    "match/late_stop_rate",
    *(f"parse/{state}" for state in STATES),
    *(f"drop/{reason}" for reason in REASONS),
    "target/matched",
    "target/missed",
    "target/spurious",
    "target/duplicate",
    "target/renamed",
    "target/go_on",
    "target/stop",
    "target/seam_fallback",
)
"""Every name in the terms of a rollout and of its target."""
