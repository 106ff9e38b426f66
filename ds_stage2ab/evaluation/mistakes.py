"""How answers of a held-out set go wrong: objects made up, missed or misnamed, and answers that end at the wrong place.

Predicted = right + wrong names + spurious, and true = right + wrong names + missed, where right are the pairs of
`eval/f1` and wrong names what `eval/f1_boxes` pairs beyond them.
"""

from __future__ import annotations

from collections.abc import Sequence

from ds_stage2ab.carriers import Finish
from ds_stage2ab.evaluation.f1 import ImageScore
from ds_stage2ab.matching.health import stopped_early


def mistakes(answers: Sequence[tuple[ImageScore, Finish]]) -> dict[str, float]:
    """`eval/...` name -> mean over the answers, of which there is at least one."""
    count, scores = len(answers), [score for score, _ in answers]
    early = sum(stopped_early(finish, score.predicted, score.true) for score, finish in answers)
    return {
        "eval/spurious_per_answer": sum(one.predicted - one.matched_boxes for one in scores) / count,
        "eval/missed_per_answer": sum(one.true - one.matched_boxes for one in scores) / count,
        "eval/wrong_names_per_answer": sum(one.matched_boxes - len(one.pairs) for one in scores) / count,
        "eval/early_stop_rate": early / count,
        "eval/late_stop_rate": sum(one.predicted > one.true for one in scores) / count,
    }
