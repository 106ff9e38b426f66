from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.carriers import Truth
from ds_stage2ab.evaluation.f1 import ImageScore, score_image, set_score
from ds_stage2ab.matching.iou import pairwise_iou
from tests.spelled import truths


def truth(desc: str, *box: int) -> Truth:
    return Truth(desc=desc, box=box)


def test_iou_by_hand():
    first = [(0, 0, 10, 10), (0, 0, 4, 5)]
    second = [(0, 0, 10, 10), (5, 0, 15, 10), (10, 0, 20, 10), (2, 1, 6, 3)]
    # Row 0: identical; 50 / (100 + 100 - 50) = 1/3; touching edges share nothing; 8 / (100 + 8 - 8) = 0.08.
    # Row 1: 20 / 100; none (x from 5 on); none; x 2..4, y 1..3: 4 / (20 + 8 - 4) = 1/6.
    expected = [[1, 1 / 3, 0, 0.08], [0.2, 0, 0, 1 / 6]]
    assert np.array_equal(pairwise_iou(first, second), np.array(expected))


def test_iou_of_no_boxes():
    assert pairwise_iou([], [(0, 0, 1, 1)]).shape == (0, 1)
    assert pairwise_iou([(0, 0, 1, 1)], []).shape == (1, 0)


def test_counts_by_hand():
    true = [truth("cat", 0, 0, 10, 10), truth("dog", 20, 0, 30, 10), truth("cat", 50, 50, 60, 60)]
    predicted = [
        truth(" CAT ", 0, 0, 10, 8),  # 80 / 100 with the first cat: a pair
        truth("cat", 20, 0, 30, 10),  # the dog's box: a pair only without descriptions
        truth("cat", 50, 50, 60, 51),  # 10 / 100 with the second cat: too little
        truth("cat", 0, 0, 10, 9),  # 0.9 with the first cat: better than the 0.8
    ]
    assert score_image(predicted, true) == ImageScore(
        predicted=4, true=3, pairs=((3, 0),), iou_sum=0.9, matched_boxes=2
    )


def test_figures_of_a_set_by_hand():
    first = ImageScore(predicted=4, true=3, pairs=((3, 0),), iou_sum=0.9, matched_boxes=2)
    second = ImageScore(predicted=1, true=2, pairs=((0, 1),), iou_sum=0.5, matched_boxes=1)
    score = set_score([first, second])
    assert score.f1 == 2 * 2 / (5 + 5)
    assert score.precision == 2 / 5
    assert score.recall == 2 / 5
    assert score.matched_iou == pytest.approx(0.7)  # (0.9 + 0.5) / 2
    assert score.f1_boxes == 2 * 3 / (5 + 5)
    assert score.precision_boxes == score.recall_boxes == 3 / 5
    assert score.predicted_per_true == 1


def test_an_iou_of_exactly_one_half_counts():
    assert score_image([truth("a", 0, 0, 10, 5)], [truth("a", 0, 0, 10, 10)]).pairs == ((0, 0),)
    assert score_image([truth("a", 0, 0, 10, 499)], [truth("a", 0, 0, 10, 999)]).pairs == ()  # 499 / 999


def test_as_many_pairs_as_possible():
    # Each box is 12 wide, 4 high, and 3 to the right of the one before: IoU 9 / 15 = 0.6 with its neighbours and
    # 6 / 18 = 1/3 one further, which is no pair.
    boxes = [truth("a", 3 * i, 0, 3 * i + 12, 4) for i in range(4)]
    score = score_image([boxes[1], boxes[3]], [boxes[0], boxes[1], boxes[2]])
    assert len(score.pairs) == 2
    assert score.iou_sum == pytest.approx(1 + 0.6)  # 1 with 1 and 3 with 2, not 1 with 0: of two pairs the larger sum
    # Predicted 1, 2, 3 and true 0, 1, 2: two exact pairs have a summed IoU of 2, the three neighbours 1.8. Three
    # pairs come before a larger sum.
    score = score_image([boxes[1], boxes[2], boxes[3]], [boxes[0], boxes[1], boxes[2]])
    assert len(score.pairs) == 3
    assert score.iou_sum == pytest.approx(3 * 0.6)


def test_nothing_predicted_and_nothing_true():
    nothing = score_image([], [])
    assert len(nothing.pairs) == nothing.predicted == nothing.true == 0
    score = set_score([nothing])
    assert (score.f1, score.precision, score.recall, score.f1_boxes) == (1, 1, 1, 1)
    assert score.matched_iou == 0
    assert score.predicted_per_true == 1
    assert set_score([]) == score


def test_only_one_side_is_empty():
    cat = truth("cat", 0, 0, 10, 10)
    missed = set_score([score_image([], [cat])])
    assert (missed.f1, missed.precision, missed.recall, missed.predicted_per_true) == (0, 0, 0, 0)
    invented = set_score([score_image([cat, cat], [])])
    assert (invented.f1, invented.precision, invented.recall, invented.predicted_per_true) == (0, 0, 0, 2)
    # An empty image beside another changes nothing: figures come from sums.
    both = set_score([score_image([], []), score_image([cat], [cat])])
    assert both.f1 == both.precision == both.recall == 1


CORNERS = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(1, 8), st.integers(1, 8))
OBJECTS = st.lists(
    st.builds(
        lambda desc, corner: truth(desc, corner[0], corner[1], corner[0] + corner[2], corner[1] + corner[3]),
        st.sampled_from("ab"),
        CORNERS,
    ),
    max_size=4,
)


@given(OBJECTS, OBJECTS)
def test_counts_agree_with_trying_everything(predicted, true):
    score = score_image(predicted, true)
    best = max(_pairs(predicted, order) for order in permutations([*true, *[None] * len(predicted)], len(predicted)))
    assert len(score.pairs) == best[0]
    assert score.iou_sum == pytest.approx(best[1])


def _pairs(predicted, order):
    total = [0, 0.0]
    for one, other in zip(predicted, order, strict=True):
        iou = _iou(one.box, other.box) if other is not None and one.desc == other.desc else 0
        if iou >= 0.5:
            total[0] += 1
            total[1] += iou
    return tuple(total)


def _iou(one, other):
    cells = [{(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in (one, other)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])


@given(OBJECTS, OBJECTS, st.randoms())
def test_order_does_not_matter(predicted, true, random):
    before = score_image(predicted, true)
    random.shuffle(predicted)
    random.shuffle(true)
    after = score_image(predicted, true)
    assert (len(after.pairs), after.matched_boxes) == (len(before.pairs), before.matched_boxes)
    assert after.iou_sum == pytest.approx(before.iou_sum)


def test_the_score_of_what_was_parsed():
    predicted = truths([(0, 0, 100, 100), (0, 0, 100, 60)], " A ") + truths([(800, 0, 900, 50)], "b")
    figures = set_score([score_image(predicted, [*truths([(0, 0, 100, 100)]), *truths([(800, 0, 900, 50)], "c")])])
    assert (figures.f1, figures.f1_boxes, figures.precision, figures.recall) == (2 / 5, 4 / 5, 1 / 3, 1 / 2)
