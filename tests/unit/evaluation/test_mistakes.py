"""Counts of what is wrong in answers, by hand."""

from ds_stage2ab.evaluation.f1 import ImageScore
from ds_stage2ab.evaluation.mistakes import mistakes


def score(predicted: int, true: int, right: int, boxes: int) -> ImageScore:
    pairs = tuple((place, place) for place in range(right))
    return ImageScore(predicted=predicted, true=true, pairs=pairs, iou_sum=0.0, matched_boxes=boxes)


def test_every_object_is_right_misnamed_spurious_or_missed():
    # Of 5 + 2 predicted 2 + 1 are right, 1 + 1 misnamed, 2 + 0 made up; of 3 + 4 true 0 + 2 are missed.
    found = mistakes([(score(5, 3, 2, 3), "stop"), (score(2, 4, 1, 2), "stop")])
    assert found == {
        "eval/spurious_per_answer": 2 / 2,
        "eval/missed_per_answer": 2 / 2,
        "eval/wrong_names_per_answer": 2 / 2,
        "eval/early_stop_rate": 1 / 2,
        "eval/late_stop_rate": 1 / 2,
    }


def test_an_answer_that_was_cut_did_not_stop_early():
    found = mistakes([(score(1, 3, 1, 1), "length"), (score(1, 3, 1, 1), "repeat"), (score(3, 3, 3, 3), "stop")])
    assert (found["eval/early_stop_rate"], found["eval/late_stop_rate"]) == (0.0, 0.0)
