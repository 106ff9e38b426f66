"""Rewritten targets on the small tokenizer: which objects stand where, and what is learned there."""

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.carriers import Match, Truth
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.matching.targets import Entry, answer_target, rewritten_target
from tests.parts import as_tuples
from tests.unit.matching.test_append import CAT, COSTS, DOG, GHOST, NEAR_CAT, OPENING, near_rollouts
from tests.unit.matching.test_parse import spell

ARRAY = get_codec("array")
SEEN_CAT = Truth(desc="cat", box=(10, 10, 110, 120))  # where NEAR_CAT has it
BIRD = Truth(desc="bird", box=(300, 300, 320, 320))


def rewrite(vocabulary, ids, truth, *, said_order=False, keep_spurious=False, desc_ce_weight=0.5):
    parsed = parse_rollout(ids, vocabulary, ARRAY)
    match = match_boxes(parsed.objects, truth, **COSTS)
    made_of = (parsed, match, truth, vocabulary, ARRAY)
    return as_tuples(
        rewritten_target(
            *made_of,
            said_order=said_order,
            keep_spurious=keep_spurious,
            desc_ce_weight=desc_ce_weight,
            where="sample",
        )
    )


@pytest.mark.parametrize(
    ("said_order", "read", "learned"),
    [(False, [BIRD, SEEN_CAT, DOG], [BIRD, CAT, DOG]), (True, [DOG, SEEN_CAT, BIRD], [DOG, CAT, BIRD])],
)
def test_what_was_said_is_read_and_what_is_true_is_learned(vocabulary, said_order, read, learned):
    dog = '{"desc": "wolf", "bbox_2d": [<|coord_500|>, <|coord_500|>, <|coord_600|>, <|coord_700|>]}'
    ids = spell(vocabulary, f'{OPENING}{dog}, {GHOST}, 7, {NEAR_CAT}, {NEAR_CAT}, {{"desc')
    target = rewrite(vocabulary, ids, [BIRD, CAT, DOG], said_order=said_order)
    answer = as_tuples(encode_answer(read, vocabulary, ARRAY))
    assert (target.ids, target.slots, target.is_desc) == (answer.ids, answer.slots, answer.is_desc)
    assert target.bins == tuple(k for one in learned for k in one.box)
    # Descriptions 0.5, coordinates nothing (their bins are learned), all else 1.
    regions = zip(answer.is_coord, answer.is_desc, strict=True)
    assert list(target.weights) == [0.0 if coordinate else 0.5 if desc else 1.0 for coordinate, desc in regions]
    assert (target.num_go_on, target.num_stop, target.seam_fallback) == (3, 1, False)


@pytest.mark.parametrize("text", ["", "no idea", f"{OPENING}{GHOST}, 12]}}", f"{OPENING}]}}"])
def test_where_nothing_was_found_it_is_teacher_forcing(vocabulary, text):
    truth = [CAT, DOG]
    entries = [Entry(read=one, learned=one) for one in truth]
    taught = answer_target(entries, vocabulary, ARRAY, desc_ce_weight=0.5, where="sample")
    assert astuple(rewrite(vocabulary, spell(vocabulary, text), truth)) == astuple(as_tuples(taught))


def test_nothing_true_is_an_empty_answer(vocabulary):
    target = rewrite(vocabulary, spell(vocabulary, f"{OPENING}{GHOST}]}}"), [])
    assert vocabulary.written_all(target.ids) == b'{"objects": []}'
    assert (target.slots, target.bins, set(target.weights), target.num_go_on) == ((), (), {1.0}, 0)


@given(near_rollouts(), st.booleans())
def test_every_true_object_stands_there_once(vocabulary, rollout, said_order):
    truth, predicted = rollout
    ids = as_tuples(encode_answer(predicted, vocabulary, ARRAY)).ids[:-1]
    target = rewrite(vocabulary, list(ids), truth, said_order=said_order)
    taught = [target.bins[place : place + 4] for place in range(0, len(target.bins), 4)]
    assert sorted(taught) == sorted(one.box for one in truth)
    if not said_order:
        assert taught == [one.box for one in truth]
    again = parse_rollout(target.ids[:-1], vocabulary, ARRAY)
    names = {one.box: vocabulary.normalise(one.desc) for one in truth}
    if len(names) == len(truth):
        assert [found.desc for found in again.objects] == [names[box] for box in taught]


def test_a_match_of_something_else_is_a_mistake(vocabulary):
    match = Match(pairs=(), missed=(), spurious=())
    with pytest.raises(AssertionError, match="the match is of other"):
        rewritten_target(
            parse_rollout([], vocabulary, ARRAY), match, [CAT], vocabulary, ARRAY,
            said_order=False, keep_spurious=False, desc_ce_weight=1.0, where="sample",
        )  # fmt: skip
