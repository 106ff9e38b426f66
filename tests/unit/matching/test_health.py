"""The figures of rollouts, by hand: three of them, their sums, and what the registry makes of the sums."""

import numpy as np
import pytest

from ds_stage2ab.carriers import Match, ParsedObject, ParsedRollout, Rollout, Target, Truth
from ds_stage2ab.channels.rollout_matching import DECODING_TERMS, SERVER_TERMS
from ds_stage2ab.matching.best_of import BEST_OF_TERMS
from ds_stage2ab.matching.health import TERM_NAMES, rollout_terms, target_terms
from ds_stage2ab.matching.parse import REASONS, STATES
from ds_stage2ab.metrics.registry import METRICS, reduce_terms
from ds_stage2ab.metrics.servers import BACK, LOST, SERVING


def rollout(num_tokens, finish="stop", attempt=1):
    return Rollout(
        sample_id="s",
        draw=0,
        prompt_ids=(1, 2, 3),
        response_ids=tuple(range(num_tokens)),
        finish=finish,
        weight_version="start/0",
        seed=0,
        source="hf",
        seconds=1.0,
        attempt=attempt,
        probabilities=None,
    )


def found(desc, *box):
    """A parsed object; where it stands in the answer plays no part here."""
    nowhere = {"span": (0, 1), "desc_span": (0, 1), "tokens": (0, 1), "slots": (0, 1, 2, 3), "score_slot": -1}
    return ParsedObject(desc=desc, box=box, score=-1, **nowhere)


def parsed(*objects, dropped=(), state="ok"):
    nowhere = {"prefix_ids": (), "num_anchored": 0, "num_whole": 0, "value_ends": (), "next_number": 1, "open_desc": ""}
    return ParsedRollout(objects=objects, dropped=dropped, state=state, **nowhere)


def target(num_go_on, seam_fallback=False):
    """What was made of a rollout; its ids play no part here."""
    nothing = np.array([])
    arrays = dict.fromkeys(("ids", "weights", "is_desc", "slots", "bins", "score_slots", "score_bins"), nothing)
    return Target(**arrays, num_go_on=num_go_on, num_stop=1, seam_fallback=seam_fallback)


def terms_of(drawn, made, *read):
    return {**rollout_terms(drawn, *read), **target_terms(made, *read, iou_gate=0.3)}


MIXED = terms_of(
    rollout(70, attempt=3),
    target(4, seam_fallback=True),
    parsed(
        found("ghost", 900, 900, 999, 999),
        found(" Cat", 0, 0, 100, 100),
        found("dog", 500, 500, 600, 600),
        dropped=("missing_desc", "bbox_invalid", "missing_desc"),
    ),
    Match(pairs=((1, 2), (2, 0)), missed=(1, 3), spurious=(0,)),
    [
        Truth(desc="bird", box=(500, 500, 600, 650)),
        Truth(desc="tree", box=(0, 900, 10, 910)),
        Truth(desc="cat ", box=(0, 0, 100, 110)),
        Truth(desc="ghost", box=(0, 0, 1, 1)),
    ],
)
"""3 predicted, 4 true, 2 matched, 3 dropped; by the third server that was asked."""
MIXED_IOU = 10000 / 11000 + 10000 / 15000  # the cat: 100 * 100 / (100 * 110); the dog: 100 * 100 / (100 * 150)

EMPTY = terms_of(rollout(0), target(0), parsed(state="empty_answer"), Match(pairs=(), missed=(), spurious=()), [])
"""Nothing there, nothing said."""

CUT = terms_of(
    rollout(64, finish="length"),
    target(1),
    parsed(found("cat", 0, 0, 10, 10), state="truncated"),
    Match(pairs=(), missed=(0,), spurious=(0,)),
    [Truth(desc="cat", box=(500, 500, 510, 510))],
)
"""One predicted in the wrong place, one true, and the limit reached."""


def without_zeros(terms, prefixes):
    return {name: term for name, term in terms.items() if name.startswith(prefixes) and term[0] != 0}


def test_a_rollout_with_everything():
    assert {name: MIXED[name] for name in TERM_NAMES[:15]} == {
        "rollout/count": (1, 1),
        "rollout/resent": (2, 1),
        "rollout/tokens": (70, 1),
        "rollout/truncation_rate": (0, 1),
        "rollout/repeat_rate": (0, 1),
        "rollout/values_dropped_rate": (3, 6),  # 3 of 3 kept and 3 dropped values
        "match/precision": (2, 3),
        "match/recall": (2, 4),
        "match/f1": (4, 7),  # 2 * 2 / (3 + 4)
        "match/iou": (pytest.approx(MIXED_IOU, rel=1e-12), 2),
        "match/same_desc_rate": (1, 2),  # " Cat" is "cat ", the dog is no bird, and ghosts were not matched
        "match/predicted_per_true": (3, 4),
        "match/duplicates_per_answer": (0, 1),
        "match/early_stop_rate": (1, 1),  # 3 of 4, and it ended itself
        "match/late_stop_rate": (0, 1),
    }
    assert without_zeros(MIXED, ("parse/", "drop/")) == {
        "parse/ok": (1, 1),
        "drop/missing_desc": (2, 6),
        "drop/bbox_invalid": (1, 6),
    }


def test_a_quotient_with_nothing_below_has_count_0():
    assert {name: EMPTY[name] for name in TERM_NAMES[:15]} == {
        "rollout/count": (1, 1),
        "rollout/resent": (0, 1),
        "rollout/tokens": (0, 1),
        "rollout/truncation_rate": (0, 1),
        "rollout/repeat_rate": (0, 1),
        "rollout/values_dropped_rate": (0, 0),
        "match/precision": (0, 0),
        "match/recall": (0, 0),
        "match/f1": (0, 0),
        "match/iou": (0, 0),
        "match/same_desc_rate": (0, 0),
        "match/predicted_per_true": (0, 0),
        "match/duplicates_per_answer": (0, 1),
        "match/early_stop_rate": (0, 1),
        "match/late_stop_rate": (0, 1),
    }
    values = reduce_terms(EMPTY)
    per_answer = {"match/duplicates_per_answer", "match/early_stop_rate", "match/late_stop_rate"}
    assert {name for name in values if name.startswith("match/")} == per_answer
    assert "rollout/values_dropped_rate" not in values
    assert (values["rollout/count"], values["parse/empty_answer"], values["parse/ok"]) == (1, 1, 0)


def test_a_rollout_that_found_nothing_and_was_cut():
    assert without_zeros(CUT, ("rollout/", "match/", "parse/", "drop/")) == {
        "rollout/count": (1, 1),
        "rollout/tokens": (64, 1),
        "rollout/truncation_rate": (1, 1),
        "parse/truncated": (1, 1),
        "match/predicted_per_true": (1, 1),
    }
    assert (CUT["match/precision"], CUT["match/recall"], CUT["match/f1"]) == ((0, 1), (0, 1), (0, 2))
    assert (CUT["match/iou"], CUT["match/same_desc_rate"]) == ((0, 0), (0, 0))


def test_only_the_token_limit_is_a_truncation():
    nothing = (parsed(state="no_json"), Match(pairs=(), missed=(), spurious=()), [])
    terms = {finish: rollout_terms(rollout(3, finish), *nothing) for finish in ("stop", "length", "repeat")}
    cut = {finish: one["rollout/truncation_rate"] for finish, one in terms.items()}
    assert cut == {"stop": (0, 1), "length": (1, 1), "repeat": (0, 1)}
    repeated = {finish: one["rollout/repeat_rate"] for finish, one in terms.items()}
    assert repeated == {"stop": (0, 1), "length": (0, 1), "repeat": (1, 1)}


@pytest.mark.parametrize(
    ("finish", "true", "early", "late"),
    [("stop", 4, 1, 0), ("stop", 3, 0, 0), ("stop", 2, 0, 1), ("length", 4, 0, 0), ("length", 2, 0, 1)],
)
def test_an_early_stop_is_the_models_own_and_a_late_one_any_object_too_many(finish, true, early, late):
    cats = parsed(*(found("cat", left, 0, left + 100, 100) for left in (0, 3, 300)))
    truth = [Truth(desc="cat", box=(0, 0, 100, 100))] * true
    terms = rollout_terms(rollout(9, finish), cats, Match(pairs=(), missed=(), spurious=()), truth)
    assert (terms["match/early_stop_rate"], terms["match/late_stop_rate"]) == ((early, 1), (late, 1))
    assert terms["match/duplicates_per_answer"] == (1, 1)  # IoU 97 / 103, above 0.9


def test_what_became_of_the_objects():
    assert {name: total for name, (total, count) in MIXED.items() if name.startswith("target/") and count == 1} == {
        "target/matched": 2,
        "target/missed": 2,
        "target/spurious": 1,
        "target/duplicate": 0,
        "target/renamed": 1,  # a dog that is a bird; " Cat" is "cat "
        "target/go_on": 4,
        "target/stop": 1,
        "target/seam_fallback": 1,
    }


@pytest.mark.parametrize(("right", "duplicates"), [(333, 1), (334, 0)])
def test_a_second_prediction_of_a_true_object_is_a_duplicate(right, duplicates):
    """From the gate on: IoU 100 / 333 is above 0.3, 100 / 334 below."""
    cat = Truth(desc="cat", box=(0, 0, 100, 100))
    said = parsed(found("cat", 0, 0, 100, 100), found("cat", 0, 0, right, 100), found("cat", 800, 800, 900, 900))
    terms = target_terms(target(1), said, Match(pairs=((0, 0),), missed=(), spurious=(1, 2)), [cat], iou_gate=0.3)
    assert (terms["target/duplicate"], terms["target/spurious"]) == ((duplicates, 1), (2 - duplicates, 1))


def test_sums_over_rollouts_give_the_quotients_of_the_step():
    sums = {name: tuple(map(sum, zip(MIXED[name], EMPTY[name], CUT[name], strict=True))) for name in TERM_NAMES}
    values = reduce_terms(sums)
    # predicted 3 + 0 + 1, true 4 + 0 + 1, matched 2; the mean of the rollouts' own quotients would be another number
    assert {name: value for name, value in values.items() if name.startswith(("rollout/", "match/"))} == {
        "rollout/count": 3,
        "rollout/resent": 2,
        "rollout/tokens": 134,  # 70 + 0 + 64
        "rollout/truncation_rate": 1 / 3,
        "rollout/repeat_rate": 0,
        "rollout/values_dropped_rate": 3 / 7,  # of 6 + 0 + 1 values
        "match/precision": 2 / 4,
        "match/recall": 2 / 5,
        "match/f1": 4 / 9,
        "match/iou": pytest.approx(MIXED_IOU / 2, rel=1e-12),
        "match/same_desc_rate": 1 / 2,
        "match/predicted_per_true": 4 / 5,
        "match/duplicates_per_answer": 0,
        "match/early_stop_rate": 1 / 3,  # the second is empty and right, the third was cut
        "match/late_stop_rate": 0,
    }
    shares = {name: value for name, value in values.items() if name.startswith("parse/") and value}
    assert shares == {"parse/ok": 1 / 3, "parse/empty_answer": 1 / 3, "parse/truncated": 1 / 3}
    dropped = {name: value for name, value in values.items() if name.startswith("drop/") and value}
    assert dropped == {"drop/missing_desc": 2 / 7, "drop/bbox_invalid": 1 / 7}  # which add up to the 3 / 7 above


@pytest.mark.parametrize("terms", [MIXED, EMPTY, CUT], ids=["mixed", "empty", "cut"])
def test_every_rollout_has_the_same_names_and_plain_numbers(terms):
    assert tuple(terms) == TERM_NAMES
    assert all(type(number) is float for term in terms.values() for number in term)


@pytest.mark.parametrize("state", STATES)
def test_a_rollout_is_in_exactly_one_state(state):
    terms = rollout_terms(rollout(1), parsed(state=state), Match(pairs=(), missed=(), spurious=()), [])
    assert {name: terms[f"parse/{name}"] for name in STATES} == {name: (name == state, 1) for name in STATES}


def test_matched_spurious_and_dropped_values_are_all_values():
    # MIXED: of 6 values 2 matched and 1 spurious (3 predicted) and 3 dropped
    (dropped, values), (matched, predicted) = MIXED["rollout/values_dropped_rate"], MIXED["match/precision"]
    assert matched + (predicted - matched) + dropped == values == 6


@pytest.mark.parametrize("reason", REASONS)
def test_every_dropped_value_is_counted_under_its_reason(reason):
    terms = rollout_terms(rollout(1), parsed(dropped=(reason, reason)), Match(pairs=(), missed=(), spurious=()), [])
    assert {name: terms[f"drop/{name}"][0] for name in REASONS} == {name: 2 * (name == reason) for name in REASONS}


def test_the_names_are_the_terms_that_the_registry_declares_for_channel_b():
    assert len(set(TERM_NAMES)) == len(TERM_NAMES)
    declared = {
        name for name, metric in METRICS.items() if metric.channel == "B" and metric.reduction in ("mean", "sum")
    }
    of_backends = {*SERVER_TERMS, SERVING, LOST, BACK, *DECODING_TERMS, *BEST_OF_TERMS}
    assert declared == {*TERM_NAMES, *of_backends}, "those are of a backend or a choice, not of an answer"
    # what is left of B's are rates and wall times, which no sample has
    others = {name for name, metric in METRICS.items() if metric.channel == "B"} - declared
    assert {METRICS[name].reduction for name in others} == {"last", "max"}
