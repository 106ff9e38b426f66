"""COCO's AP: by hand, and that nothing but the sure things counts."""

from dataclasses import replace

import pytest

from ds_stage2ab.carriers import Truth
from ds_stage2ab.evaluation.average_precision import Detections, average_precision, lvis_average_precision

CAT, DOG = Truth(desc="cat", box=(0, 0, 100, 100)), Truth(desc="dog", box=(500, 500, 600, 600))
# IoU with the cat: 100 x 90 / 100 x 100 = 0.9, found at the thresholds 0.50 to 0.90 alone
NEAR_CAT = Truth(desc=" Cat", box=(0, 0, 100, 90))
FAR = Truth(desc="cat", box=(800, 800, 900, 900))


def image(truth, predicted, scores=None, width=640, height=480):
    scores = [1.0] * len(predicted) if scores is None else scores
    return Detections(width=width, height=height, truth=truth, predicted=predicted, scores=scores)


def test_the_truth_is_perfect():
    found = average_precision([image([CAT, DOG], [DOG, CAT]), image([], [])])
    assert (found.ap, found.ap50, found.ap75) == pytest.approx((1, 1, 1))
    assert found.by_description == pytest.approx({"cat": 1.0, "dog": 1.0})


def test_thresholds_by_hand():
    # The cat is found at 9 of 10 thresholds (0.50 ... 0.90), the dog at none: mean of 0.9 and 0.
    found = average_precision([image([CAT, DOG], [NEAR_CAT])])
    assert found.by_description == pytest.approx({"cat": 0.9, "dog": 0.0})
    assert (found.ap, found.ap50, found.ap75) == pytest.approx((0.45, 0.5, 0.5))


def test_a_surer_wrong_object_costs_and_a_less_sure_one_does_not():
    # Behind the right one: precision 1 at recall 1. Before it: 1/2 at every recall.
    assert average_precision([image([CAT], [CAT, FAR], [0.9, 0.1])]).ap == pytest.approx(1.0)
    assert average_precision([image([CAT], [CAT, FAR], [0.1, 0.9])]).ap == pytest.approx(0.5)


def test_a_description_that_is_not_in_the_truth_counts_for_nothing():
    ghost = Truth(desc="ghost", box=CAT.box)
    assert average_precision([image([CAT], [ghost, CAT], [1.0, 0.5])]).ap == pytest.approx(1.0)


def test_the_shape_of_the_image_does_not_matter():
    flat = average_precision([image([CAT], [NEAR_CAT], width=2000, height=31)])
    assert flat.ap == pytest.approx(0.9)


def test_nothing_found_and_nothing_there(capsys):
    assert average_precision([image([CAT], [])]).ap == 0.0
    nothing = average_precision([image([], [CAT])])
    assert (nothing.ap, nothing.by_description) == (None, {})
    average_precision([image([CAT], [CAT])])
    assert capsys.readouterr().out == ""  # pycocotools prints; a run's own output stays its own


def test_lvis_leaves_out_what_nobody_looked_for():
    """A dog in an image that says nothing of dogs; one of them is annotated elsewhere, so it is a category."""
    unseen = image([CAT], [DOG, CAT], [0.9, 0.8])
    elsewhere = image([DOG], [DOG], [0.5])
    assert average_precision([unseen, elsewhere]).by_description["dog"] == pytest.approx(0.5)
    silent = replace(unseen, absent=())
    assert lvis_average_precision([silent, elsewhere]).by_description == pytest.approx({"cat": 1.0, "dog": 1.0})
    absent = replace(unseen, absent=["Dog "])
    assert lvis_average_precision([absent, elsewhere]).by_description["dog"] == pytest.approx(0.5)


def test_lvis_counts_a_further_object_of_a_class_that_is_not_exhaustive_for_nothing():
    further = image([CAT], [FAR, CAT], [0.9, 0.8])
    assert lvis_average_precision([replace(further, absent=())]).ap == pytest.approx(0.5)
    partly = replace(further, absent=(), not_exhaustive=["cat", "ghost"])
    assert lvis_average_precision([partly]).ap == pytest.approx(1.0)
    assert average_precision([partly]).ap == pytest.approx(0.5)
    # it takes no true object's place: one that is missed stays missed
    assert lvis_average_precision([replace(partly, predicted=[FAR], scores=[0.9])]).ap == 0.0


def test_lvis_takes_300_of_an_image_over_all_classes():
    many = image([CAT, DOG], [FAR] * 300 + [DOG], [0.5] * 300 + [0.4])
    assert lvis_average_precision([many]).by_description == {"cat": 0.0, "dog": 0.0}
    assert average_precision([many]).by_description == pytest.approx({"cat": 0.0, "dog": 1.0})
    surer = replace(many, scores=[0.5] * 300 + [0.6])
    assert lvis_average_precision([surer]).by_description == pytest.approx({"cat": 0.0, "dog": 1.0})
