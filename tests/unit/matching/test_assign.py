import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.carriers import Match, Truth
from ds_stage2ab.matching.assign import match_boxes

USUAL = {"candidate_top_k": 10, "iou_gate": 0.3, "fp_cost": 1.0, "fn_cost": 1.0}


def thing(*box: int, desc: str = "a") -> Truth:
    return Truth(desc=desc, box=box)


def bar(x: int, desc: str = "a") -> Truth:
    """A box of 100 x 10 from x on: two of them that are d apart have an IoU of (100 - d) / (100 + d)."""
    return thing(x, 0, x + 100, 10, desc=desc)


# --- by hand ----------------------------------------------------------------------------------------------------


def test_the_sum_counts_and_not_the_best_pair():
    # Predicted 110 and 50, true 100 and 160. IoU: 110 with 100: 90 / 110, with 160: 50 / 150; 50 with 100: 50 / 150,
    # with 160: 0. The best pair first costs 2/11 + 1 + 1 = 2.18; 110 with 160 and 50 with 100 cost 2/3 + 2/3 = 1.33.
    assert match_boxes([bar(110), bar(50)], [bar(100), bar(160)], **USUAL) == Match(
        pairs=((0, 1), (1, 0)), missed=(), spurious=()
    )


def test_places_are_those_of_the_given_lists():
    predicted = [bar(700), bar(0), bar(400)]
    true = [bar(410), bar(205), bar(15), bar(600, "far")]
    # 0 with 15: 85 / 115; 400 with 410: 90 / 110; 700 with 600: 0 / 200.
    assert match_boxes(predicted, true, **USUAL) == Match(pairs=((1, 2), (2, 0)), missed=(1, 3), spurious=(0,))


def test_no_objects():
    assert match_boxes([], [], **USUAL) == Match(pairs=(), missed=(), spurious=())
    assert match_boxes([], [bar(0), bar(5)], **USUAL) == Match(pairs=(), missed=(0, 1), spurious=())
    assert match_boxes([bar(0), bar(5)], [], **USUAL) == Match(pairs=(), missed=(), spurious=(0, 1))


def test_an_iou_of_exactly_the_gate_is_enough():
    predicted, true = [thing(0, 0, 10, 3)], [thing(0, 0, 10, 10)]  # 30 / 100
    assert match_boxes(predicted, true, **USUAL).pairs == ((0, 0),)
    assert match_boxes(predicted, true, **USUAL | {"iou_gate": math.nextafter(0.3, 1)}).pairs == ()


def test_a_pair_that_costs_more_than_both_ends_alone_is_none():
    predicted, true = [thing(0, 0, 10, 4)], [thing(0, 0, 10, 10)]  # 1 - 40 / 100 = 0.6
    assert match_boxes(predicted, true, **USUAL | {"fp_cost": 0.25, "fn_cost": 0.25}).pairs == ()
    assert match_boxes(predicted, true, **USUAL | {"fp_cost": 0.25, "fn_cost": 0.5}).pairs == ((0, 0),)
    assert match_boxes(predicted, true, **USUAL | {"fp_cost": 0.75, "fn_cost": 0.0}).pairs == ((0, 0),)


def test_an_infeasible_pair_is_none_even_if_being_alone_is_dear():
    dear = USUAL | {"fp_cost": 1000.0, "fn_cost": 1000.0}
    assert match_boxes([bar(0)], [bar(60)], **dear).pairs == ()  # 40 / 160 = 0.25, below the gate
    assert match_boxes([bar(0), bar(300)], [bar(0), bar(600)], **dear) == Match(
        pairs=((0, 0),), missed=(1,), spurious=(1,)
    )


def test_only_the_best_candidates_may_be_matched():
    predicted, true = [bar(0), bar(5)], [bar(0), bar(40)]
    # Predicted 0: 1 with true 0, 60 / 140 with 40. Predicted 5: 95 / 105 with 0, 65 / 135 = 0.48 with 40. With one
    # candidate both want true 0: 0 - 0 costs 0, 5 - 0 costs 0.1. With two: 0 + 0.52 is the cheapest.
    assert match_boxes(predicted, true, **USUAL | {"candidate_top_k": 1}) == Match(
        pairs=((0, 0),), missed=(1,), spurious=(1,)
    )
    assert match_boxes(predicted, true, **USUAL | {"candidate_top_k": 2}).pairs == ((0, 0), (1, 1))


# Predicted: 10 x 10. Each true box is half of it, so every IoU is 50 / 100; twice the centre of the first two is 5
# away along one axis, that of the third 1 away.
LEFT, UPPER, MIDDLE, LOWER = thing(0, 0, 5, 10), thing(0, 0, 10, 5), thing(0, 2, 10, 7), thing(0, 5, 10, 10)


@pytest.mark.parametrize(
    ("true", "expected"),
    [
        ([LEFT, UPPER, MIDDLE], 2),  # the nearest centre
        ([MIDDLE, UPPER, LEFT], 0),
        ([LOWER, UPPER], 1),  # equally far: (0, 0, 10, 5) sorts before (0, 5, 10, 10)
        ([UPPER, LOWER], 0),
        ([UPPER, LEFT], 1),  # (0, 0, 5, 10) sorts before (0, 0, 10, 5)
        ([thing(0, 0, 10, 5, desc="b"), UPPER], 1),  # equal boxes: by description
        ([UPPER, UPPER], 0),  # equal in both: as they came
    ],
)
def test_candidates_of_equal_iou(true, expected):
    assert match_boxes([thing(0, 0, 10, 10)], true, **USUAL | {"candidate_top_k": 1}).pairs == ((0, expected),)


def test_a_better_iou_comes_before_a_nearer_centre():
    true = [thing(4, 4, 6, 6), thing(2, 0, 12, 10)]  # 4 / 100 around the same centre; 80 / 120, two bins off
    assert match_boxes([thing(0, 0, 10, 10)], true, **USUAL | {"candidate_top_k": 1}).pairs == ((0, 1),)


def test_candidates_that_do_not_touch_are_ranked_by_distance():
    # Without a gate a pair of IoU 0 costs 1, less than 1 + 1. The second true box is nearer.
    true = [thing(30, 10, 40, 20), thing(22, 10, 32, 20)]
    match = match_boxes([thing(10, 10, 20, 20)], true, **USUAL | {"candidate_top_k": 1, "iou_gate": 0.0})
    assert match.pairs == ((0, 1),)


# --- the invariants ---------------------------------------------------------------------------------------------

CORNERS = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 5), st.integers(1, 5))
OBJECTS = st.lists(
    st.builds(lambda desc, c: thing(c[0], c[1], c[0] + c[2], c[1] + c[3], desc=desc), st.sampled_from("ab"), CORNERS),
    max_size=4,
)
SETTINGS = st.fixed_dictionaries(
    {
        "candidate_top_k": st.integers(1, 5),
        "iou_gate": st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0]),
        "fp_cost": st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]),
        "fn_cost": st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]),
    }
)


def exact_iou(one: Truth, other: Truth) -> Fraction:
    cells = [{(x, y) for x in range(b[0], b[2]) for y in range(b[1], b[3])} for b in (one.box, other.box)]
    return Fraction(len(cells[0] & cells[1]), len(cells[0] | cells[1]))


def feasible(predicted: list[Truth], true: list[Truth], settings: dict) -> dict[tuple[int, int], Fraction]:
    """The pairs that are allowed, and their IoU, by exact fractions."""
    allowed = {}
    for p, one in enumerate(predicted):
        ious = [exact_iou(one, other) for other in true]
        ranking = sorted(range(len(true)), key=lambda g: (-ious[g], _distance(one, true[g]), true[g].box, true[g].desc))
        for g in ranking[: settings["candidate_top_k"]]:
            if ious[g] >= settings["iou_gate"]:
                allowed[p, g] = ious[g]
    return allowed


def _distance(one: Truth, other: Truth) -> int:
    centres = [(b[0] + b[2], b[1] + b[3]) for b in (one.box, other.box)]
    return sum((u - v) ** 2 for u, v in zip(*centres, strict=True))


def least_cost(predicted: list[Truth], true: list[Truth], settings: dict) -> float:
    """The cheapest choice of allowed pairs, by trying every one."""
    allowed = feasible(predicted, true, settings)

    def best(p: int, free: frozenset[int]) -> float:
        if p == len(predicted):
            return len(free) * settings["fn_cost"]
        alone = settings["fp_cost"] + best(p + 1, free)
        return min([alone, *(1 - allowed[p, g] + best(p + 1, free - {g}) for g in free if (p, g) in allowed)])

    return float(best(0, frozenset(range(len(true)))))


@given(OBJECTS, OBJECTS, SETTINGS)
def test_everyone_has_one_place(predicted, true, settings):
    match = match_boxes(predicted, true, **settings)
    assert sorted([*(p for p, _ in match.pairs), *match.spurious]) == list(range(len(predicted)))
    assert sorted([*(g for _, g in match.pairs), *match.missed]) == list(range(len(true)))
    for places in (match.pairs, match.missed, match.spurious):
        assert list(places) == sorted(places)


@given(OBJECTS, OBJECTS, SETTINGS)
def test_a_pair_is_feasible(predicted, true, settings):
    allowed = feasible(predicted, true, settings)
    assert all(pair in allowed for pair in match_boxes(predicted, true, **settings).pairs)


@given(OBJECTS, OBJECTS, SETTINGS)
def test_nothing_costs_less(predicted, true, settings):
    match = match_boxes(predicted, true, **settings)
    cost = sum(1 - exact_iou(predicted[p], true[g]) for p, g in match.pairs)
    cost += len(match.spurious) * settings["fp_cost"] + len(match.missed) * settings["fn_cost"]
    assert float(cost) == pytest.approx(least_cost(predicted, true, settings), abs=1e-12)


@given(OBJECTS, OBJECTS, SETTINGS, st.randoms())
def test_a_permutation_permutes_the_result(predicted, true, settings, random):
    before = match_boxes(predicted, true, **settings)
    rows, columns = list(range(len(predicted))), list(range(len(true)))
    random.shuffle(rows)
    random.shuffle(columns)
    shuffled = [predicted[row] for row in rows], [true[column] for column in columns]
    after = match_boxes(*shuffled, **settings)
    assert _contents(after, *shuffled) == _contents(before, predicted, true)
    if len(set(predicted)) == len(predicted) and len(set(true)) == len(true):
        assert sorted((rows[p], columns[g]) for p, g in after.pairs) == list(before.pairs)


def _contents(match: Match, predicted: list[Truth], true: list[Truth]) -> list[tuple]:
    chosen = [(predicted[p], true[g]) for p, g in match.pairs]
    return sorted((one.box, one.desc, other.box, other.desc) for one, other in chosen)


@given(OBJECTS, OBJECTS, SETTINGS)
def test_descriptions_play_no_part(predicted, true, settings):
    predicted, true = ({one.box: one for one in objects} for objects in (predicted, true))
    other_names = [[Truth(desc=f"{place}", box=box) for place, box in enumerate(boxes)] for boxes in (predicted, true)]
    expected = match_boxes(list(predicted.values()), list(true.values()), **settings)
    assert match_boxes(*other_names, **settings) == expected
