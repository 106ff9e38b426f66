"""Figures and rows of a set: arithmetic on hand-made outcomes."""

from dataclasses import replace
from pathlib import Path

import pytest

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.evaluation.evaluator import Outcome, evaluated
from ds_stage2ab.evaluation.f1 import ImageScore
from ds_stage2ab.evaluation.mistakes import mistakes
from ds_stage2ab.matching.parse import REASONS


def outcome(index, *, finish="stop", well_formed=True, num_tokens, dropped=(), mass=(0.0, 0), **counts):
    return Outcome(
        index=index,
        score=ImageScore(**counts),
        predicted=(Truth(desc="cat", box=(0, 0, 1, 1)),) * counts["predicted"],
        scores=None,
        token_scores=None,
        ranked="unranked",
        dropped=dropped,
        well_formed=well_formed,
        text="",
        state="ok",
        finish=finish,
        num_tokens=num_tokens,
        coordinate_mass=mass,
    )


def record(*objects):
    return Record(id="r", image=Path("x.png"), width=100, height=50, objects=objects, where="x:1")


FOUND = {"predicted": 1, "true": 1, "pairs": ((0, 0),), "iou_sum": 1.0, "matched_boxes": 1}
NONE_MATCHED = {"pairs": (), "iou_sum": 0.0, "matched_boxes": 0}


def test_figures_by_hand():
    outcomes = [
        outcome(0, num_tokens=10, mass=(1.5, 2), dropped=("missing_geom", "wrong_arity"),
                predicted=3, true=2, pairs=((0, 1),), iou_sum=0.75, matched_boxes=2),
        outcome(1, well_formed=False, finish="length", num_tokens=30, mass=(0.5, 2), dropped=("missing_geom",),
                predicted=1, true=3, pairs=((0, 1),), iou_sum=0.5, matched_boxes=1),
        outcome(2, well_formed=False, finish="repeat", num_tokens=0, predicted=0, true=1, **NONE_MATCHED),
        outcome(3, num_tokens=8, predicted=1, true=0, **NONE_MATCHED),
    ]  # fmt: skip
    truth = Truth(desc="dog", box=(0, 0, 9, 9))
    found = evaluated(outcomes, [record(truth, truth)] * 4, seconds=8.0).figures
    assert found == pytest.approx(
        {
            "eval/f1": 4 / 11,  # 2 (1 + 1) / ((3 + 1 + 0 + 1) + (2 + 3 + 1 + 0))
            "eval/precision": 2 / 5,
            "eval/recall": 2 / 6,
            "eval/f1_boxes": 6 / 11,  # 2 (2 + 1) / 11
            "eval/precision_boxes": 3 / 5,
            "eval/recall_boxes": 3 / 6,
            "eval/matched_iou": 0.625,  # (0.75 + 0.5) / 2
            "eval/parse_ok_rate": 0.5,
            "eval/predicted_per_true": 5 / 6,
            "eval/truncation_rate": 0.25,
            "eval/repeat_rate": 0.25,
            "eval/values_dropped_rate": 3 / 8,  # of 5 kept and 3 dropped
            **{f"eval/drop_{reason}": 0 for reason in REASONS},
            "eval/drop_missing_geom": 2 / 8,
            "eval/drop_wrong_arity": 1 / 8,
            "eval/coord_mass": 0.5,  # (1.5 + 0.5) / 4
            "eval/ap_unranked": 0.0,
            "eval/ap50_unranked": 0.0,
            "eval/ap75_unranked": 0.0,
            **mistakes([(one.score, one.finish) for one in outcomes]),
            "eval/duplicates_per_answer": 0.5,  # of the three cats of the first answer, which are one box, two
            "eval/f1_without_duplicates": 0.0,  # cats are no dogs
            "eval/ap_without_duplicates": 0.0,
            "eval/samples": 4,
            "eval/seconds": 8.0,
            "eval/generated_tokens_per_second": 6.0,  # (10 + 30 + 0 + 8) / 8
        }
    )


def test_lvis_ap_is_given_where_a_record_says_what_is_absent():
    cat, dog = (Truth(desc=name, box=(0, 0, 1, 1)) for name in ("cat", "dog"))
    outcomes = [outcome(0, num_tokens=9, **FOUND), outcome(1, num_tokens=9, **FOUND)]
    records = [record(cat), record(dog)]  # both answers say cat
    assert "eval/lvis_ap_unranked" not in evaluated(outcomes, records, seconds=1.0).figures
    said = evaluated(outcomes, [records[0], replace(records[1], absent=())], seconds=1.0).figures
    assert said["eval/lvis_ap_unranked"] == pytest.approx(0.5)  # the cat is found, the dog is not


def test_a_mean_over_nothing_is_left_out():
    nothing = outcome(0, num_tokens=0, predicted=0, true=0, **NONE_MATCHED)
    found = evaluated([nothing], [record()], seconds=1.0)
    assert not {name for name in found.figures if name.startswith(("eval/drop_", "eval/ap", "eval/coord", "eval/val"))}
    assert found.rows == ()


def test_rows_by_description():
    cat, other = Truth(desc=" Cat", box=(0, 0, 100, 100)), Truth(desc="cat", box=(500, 500, 600, 600))
    dog, bird = Truth(desc="dog", box=(0, 0, 100, 90)), Truth(desc="bird", box=(0, 0, 100, 90))
    one = outcome(0, num_tokens=1, predicted=0, true=3, **NONE_MATCHED | {"pairs": ((0, 0),)})
    seen = replace(one, predicted=(replace(cat, box=(0, 0, 100, 80)), bird), scores=(0.5, 0.25))
    rows = {row.description: row for row in evaluated([seen], [record(cat, other, dog)], seconds=1.0).rows}
    assert list(rows) == ["bird", "cat", "dog"]
    assert (rows["cat"].true, rows["cat"].predicted, rows["cat"].matched) == (2, 1, 1)
    assert (rows["cat"].precision, rows["cat"].recall, rows["cat"].f1) == (1, 1 / 2, 2 / 3)
    assert rows["cat"].matched_iou == 0.8
    # found at IoU 0.50 to 0.80, 7 of 10 thresholds, with recall 1/2: 51 of the 101 recall points
    assert rows["cat"].ap == pytest.approx(0.7 * 51 / 101)
    assert (rows["bird"].precision, rows["bird"].recall, rows["bird"].ap) == (0, None, None)
    assert (rows["dog"].precision, rows["dog"].recall, rows["dog"].ap) == (None, 0, 0)
