"""The best of several rollouts, by hand."""

import pytest

from ds_stage2ab.carriers import Match, Truth
from ds_stage2ab.matching.best_of import BEST_OF_TERMS, Quality, best_of, best_of_terms, quality
from tests.unit.matching.test_health import found, parsed, rollout

CAT, DOG = Truth(desc="cat", box=(0, 0, 100, 100)), Truth(desc="dog", box=(500, 500, 600, 600))
SEEN = found("dog", 0, 0, 100, 80)  # IoU with the cat 0.8


def judged(*objects, pairs=(), truth=(CAT, DOG)):
    """Pairs and numbers of objects alone count: what was missed, and what is spurious, follows from them."""
    return quality(parsed(*objects), Match(pairs=pairs, missed=(), spurious=()), truth)


@pytest.mark.parametrize(
    ("seen", "f1", "iou"),
    [
        (judged(SEEN, pairs=((0, 0),)), 2 / 3, 0.8),  # 2 * 1 / (1 + 2)
        (judged(SEEN, found("dog", 500, 500, 600, 600), pairs=((0, 0), (1, 1))), 1.0, 0.9),
        (judged(SEEN, found("ghost", 800, 0, 900, 50), pairs=((0, 0),)), 0.5, 0.8),
        (judged(), 0.0, 0.0),
        (judged(truth=()), 1.0, 0.0),  # nothing is true and nothing was said
        (judged(SEEN, truth=()), 0.0, 0.0),
    ],
    ids=["one of two", "both", "and a ghost", "nothing", "rightly nothing", "wrongly something"],
)
def test_quality_is_f1_then_mean_iou(seen, f1, iou):
    assert (seen.f1, seen.iou) == (f1, pytest.approx(iou, rel=1e-12))


@pytest.mark.parametrize(
    ("qualities", "best"),
    [
        ([(0.5, 0.9)], 0),
        ([(0.5, 0.9), (0.75, 0.4), (0.6, 1.0)], 1),  # F1 decides
        ([(0.5, 0.8), (0.5, 0.7), (0.5, 0.9)], 2),  # of equals the boxes
        ([(0.2, 0.0), (0.5, 0.9), (0.5, 0.9), (0.5, 0.8)], 1),  # of equals in both the first
        ([(0.0, 0.0), (0.0, 0.0)], 0),
    ],
)
def test_the_best_has_the_highest_f1_then_iou_and_comes_first(qualities, best):
    assert best_of([Quality(*one) for one in qualities]) == best


def test_equal_shares_of_matched_objects_are_equal_f1s():
    """2 * 1 / (1 + 3) and 2 * 2 / (5 + 3): the boxes decide, and no rounding."""
    three = (CAT, DOG, Truth(desc="owl", box=(0, 900, 100, 999)))
    rest = [found("ghost", 800, 0, 900, 50)] * 3
    few = judged(SEEN, pairs=((0, 0),), truth=three)
    many = judged(SEEN, found("dog", 500, 500, 600, 600), *rest, pairs=((0, 0), (1, 1)), truth=three)
    assert few.f1 == many.f1 == 0.5 and best_of([few, many]) == 1


def test_the_terms_of_a_choice_and_of_none():
    drawn = [rollout(70), rollout(30, attempt=3), rollout(0)]
    terms = best_of_terms(drawn, [Quality(0.5, 0.9), Quality(0.75, 0.4), Quality(0.0, 0.0)], 1)
    assert terms == {
        "rollout/count": (3, 1),
        "rollout/resent": (2, 1),
        "rollout/tokens": (100, 1),
        "match/not_first_rate": (1, 1),
        "match/f1_of_all": (1.25, 3),
        "match/f1_of_best": (0.75, 1),
    }
    alone = best_of_terms(drawn[:1], [Quality(0.5, 0.9)], 0)
    assert [alone[name] for name in BEST_OF_TERMS] == [(0, 0)] * 3, "left out of every mean"
    assert (alone["rollout/count"], alone["rollout/tokens"]) == ((1, 1), (70, 1))
