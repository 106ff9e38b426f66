"""What scores are worth: one test for each invariant, on numbers computed by hand."""

import pytest

from ds_stage2ab.carriers import Truth
from ds_stage2ab.evaluation.average_precision import Detections
from ds_stage2ab.evaluation.calibration import calibration

HERE, NEAR, FAR = (0, 0, 100, 100), (0, 0, 100, 120), (500, 500, 600, 600)
"""IoU of the first two: 100 / 120."""


def cat(box) -> Truth:
    return Truth(desc="cat", box=box)


def image(truth, *found) -> Detections:
    predicted, scores = zip(*found, strict=True) if found else ((), ())
    return Detections(width=999, height=999, truth=truth, predicted=predicted, scores=scores)


def test_objects_are_taken_by_falling_score():
    """NEAR has the higher score and takes the only cat, though HERE fits better: so 0.9 alone has F1 2 / (1 + 1)."""
    found = calibration([image([cat(HERE)], (cat(HERE), 0.2), (cat(NEAR), 0.9), (Truth(desc="dog", box=HERE), 0.95))])
    # ranked: dog 0.95 wrong, cat 0.9 right, cat 0.2 wrong; F1 0, 2 / 3, 2 / 4
    assert (found.best_f1, found.best_threshold) == (pytest.approx(2 / 3), 0.9)


def test_objects_of_equal_score_count_together():
    """Right, wrong and wrong at 0.5, so no threshold keeps the right one alone: 2 / (3 + 1), over both images."""
    images = [image([cat(HERE)], (cat(HERE), 0.5)), image([], (cat(FAR), 0.5), (cat(HERE), 0.5))]
    found = calibration(images)
    assert (found.best_f1, found.best_threshold) == (pytest.approx(2 / 4), 0.5)


def test_the_error_is_the_distance_of_score_and_share():
    """Scores 0.91 and 0.95, one right: |1.86 - 1|; 0.25 and 0.25, one right: |0.5 - 1|; 1.0 right: in the first bin.

    (|2.86 - 2| + |0.5 - 1|) / 5 = 0.272.
    """
    right, wrong = ([cat(HERE)], (cat(HERE),)), ([cat(HERE)], (cat(FAR),))
    cases = ((right, 0.91), (wrong, 0.95), (right, 0.25), (wrong, 0.25), (right, 1.0))
    found = calibration([image(truth, (one, score)) for (truth, (one,)), score in cases])
    assert found.error == pytest.approx(0.272)
    assert found.shares == (1.0, 3 / 5, 3 / 5, 3 / 5, 3 / 5)


def test_scores_that_mean_what_they_say_have_no_error():
    truth = [image([cat(HERE)], (cat(HERE), 0.75))] * 3 + [image([cat(HERE)], (cat(FAR), 0.75))]
    assert calibration(truth).error == pytest.approx(0)


def test_nothing_predicted_or_nothing_true_has_no_figures():
    assert calibration([]) is None
    assert calibration([image([cat(HERE)])]) is None
    assert calibration([image([], (cat(HERE), 0.5))]) is None
