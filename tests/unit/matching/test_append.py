import json
from dataclasses import replace
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.carriers import ParsedRollout, Target, Truth
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.parse import STATES, parse_rollout
from tests.parts import as_tuples
from tests.unit.matching.test_parse import RAW, TRUTHS, spell

ARRAY = get_codec("array")
OPENING = '{"objects": ['
# Weights that no two regions share.
WEIGHTS = {"desc_ce_weight": 0.5, "drop_invalid_struct_ce_multiplier": 3.0, "where": "sample"}
COSTS = {"candidate_top_k": 10, "iou_gate": 0.3, "fp_cost": 1.0, "fn_cost": 1.0}


def box_text(*box: int) -> str:
    return "[" + ", ".join(f"<|coord_{k}|>" for k in box) + "]"


def value(desc: str, *box: int) -> str:
    return f'{{"desc": "{desc}", "bbox_2d": {box_text(*box)}}}'


CAT = Truth(desc="cat", box=(10, 10, 110, 110))
DOG = Truth(desc="dog", box=(500, 500, 600, 700))
CAT_TEXT, DOG_TEXT = value("cat", 10, 10, 110, 110), value("dog", 500, 500, 600, 700)
NEAR_CAT = value("kitten", 10, 10, 110, 120)  # IoU 100 * 100 / (100 * 110) with the cat
GHOST = value("ghost", 800, 0, 900, 50)  # touches nothing
DROPPED = '{"desc": "cat"}'


def by_bytes(vocabulary):
    """The vocabulary with a tokenizer that writes single bytes and coordinates: weights can be read off a text."""
    return replace(vocabulary, encode=lambda text: spell(vocabulary, text))


def with_tokens(vocabulary, *pieces: bytes):
    """The vocabulary with further tokens, which stand for these bytes, and the ids of them."""
    first = len(vocabulary.token_bytes)
    longer = replace(vocabulary, token_bytes=(*vocabulary.token_bytes, *pieces))
    return longer, list(range(first, first + len(pieces)))


def target_of(vocabulary, ids: list[int], truth: list[Truth], **changed) -> Target:
    parsed = parse_rollout(ids, vocabulary, ARRAY)
    match = match_boxes(parsed.objects, truth, **COSTS)
    return as_tuples(appended_target(parsed, match, truth, vocabulary, ARRAY, **WEIGHTS | changed))


def runs(vocabulary, target: Target) -> list[tuple[str, float]]:
    """The target's text, cut where the weight changes; the end of turn is `<stop>`."""
    written = [b"<stop>" if token == vocabulary.stop_id else vocabulary.written(token) for token in target.ids]
    weighted = groupby(zip(written, target.weights, strict=True), lambda pair: pair[1])
    return [(b"".join(piece for piece, _ in run).decode(), weight) for weight, run in weighted]


def runs_of_box(box: tuple[int, ...], weight: float) -> list[tuple[str, float]]:
    """What stands between the first and the last coordinate: each has weight 0, the commas have `weight`."""
    coordinates = [(f"<|coord_{k}|>", 0.0) for k in box]
    return [run for coordinate in coordinates for run in (coordinate, (", ", weight))][:-1]


# --- the weight table -------------------------------------------------------------------------------------------


def test_weights_of_a_matched_object(vocabulary):
    plain = by_bytes(vocabulary)
    target = target_of(plain, spell(plain, f"{OPENING}{NEAR_CAT}]}}"), [CAT])
    assert runs(plain, target) == [
        (OPENING, 0.0),
        ('{"desc": "', 1.0),
        ("kitten", 0.0),
        ('", "bbox_2d": [', 1.0),
        *runs_of_box((10, 10, 110, 120), 1.0),
        ("]}]}<stop>", 1.0),  # the object's end, then the close and the end of turn
    ]
    # The opening has 13 bytes, `{"desc": "kitten", "bbox_2d": [` 10 + 6 + 15: the first coordinate is token 44.
    assert target.slots == (44, 47, 50, 53)
    assert target.bins == CAT.box  # what the cat is, not what was generated
    assert [target.ids[slot] for slot in target.slots] == [plain.coordinate_ids[k] for k in (10, 10, 110, 120)]
    assert not any(target.is_desc)


def test_weights_of_members_in_another_order_and_with_escapes(vocabulary):
    plain = by_bytes(vocabulary)
    text = f'{{ "bbox_2d" :{box_text(10, 10, 110, 120)},"d\\u0065sc"\n:\t"a\\"\\u00e9: \u00e9" }}'
    target = target_of(plain, spell(plain, f"{OPENING}{text}]}}"), [CAT])
    assert runs(plain, target) == [
        (OPENING, 0.0),
        ('{ "bbox_2d" :[', 1.0),
        *runs_of_box((10, 10, 110, 120), 1.0),
        ('],"d\\u0065sc"\n:\t"', 1.0),
        ('a\\"\\u00e9: \u00e9', 0.0),
        ('" }]}<stop>', 1.0),
    ]


def test_weights_of_everything_else_in_the_prefix(vocabulary):
    plain = by_bytes(vocabulary)
    text = f"{OPENING}{GHOST}, 12, {NEAR_CAT} ,\n{DROPPED}]}}"
    target = target_of(plain, spell(plain, text), [CAT])
    assert runs(plain, target) == [
        # a comma counts where a true object is still to come; this text has a token for each byte
        (f"{OPENING}{GHOST}"[:-1], 0.0),
        ("},", 1.0),  # the ghost's last byte and the one behind it
        (" 1", 0.0),
        ("2,", 1.0),
        (" ", 0.0),
        ('{"desc": "', 1.0),
        ("kitten", 0.0),
        ('", "bbox_2d": [', 1.0),
        *runs_of_box((10, 10, 110, 120), 1.0),
        ("]}", 1.0),
        (f" ,\n{DROPPED}"[:-1], 0.0),  # none is
        ("}]}<stop>", 1.0),  # drops change the weight of appended objects alone
    ]
    assert target.bins == CAT.box  # nothing for the ghost
    assert len(target.slots) == 4


def runs_of_appended(truth: Truth, structure: float, before: str = "", behind: str = "") -> list[tuple[str, float]]:
    return [
        (before + '{"desc": "', structure),
        (truth.desc, 0.5),
        ('", "bbox_2d": [', structure),
        *runs_of_box(truth.box, structure),
        ("]}" + behind, structure),
    ]


def test_weights_of_appended_objects_and_the_close(vocabulary):
    plain = by_bytes(vocabulary)
    target = target_of(plain, spell(plain, f"{OPENING}{GHOST}"), [DOG, CAT])
    dog, cat = runs_of_appended(DOG, 1.0, before=", "), runs_of_appended(CAT, 1.0, before=", ", behind="]}<stop>")
    dog[-1:], cat[:1] = [], [("]}" + cat[0][0], 1.0)]
    assert runs(plain, target) == [(f"{OPENING}{GHOST}"[:-1], 0.0), ("}" + dog[0][0], 1.0), *dog[1:], *cat]
    assert target.bins == (*DOG.box, *CAT.box)
    assert [target.ids[slot] for slot in target.slots] == [plain.coordinate_ids[k] for k in target.bins]
    # Before the dog's description stand the opening and the ghost (13 + 10 + 5 + 15 + 4 + 6 + 2 = 55 tokens, the
    # coordinates one each) and `, {"desc": "` (12); the cat's follows 3 + 15 + 4 + 6 + 2 + 12 = 42 later.
    assert [t for t, inside in enumerate(target.is_desc) if inside] == [67, 68, 69, 109, 110, 111]


def test_weights_of_appended_objects_after_drops(vocabulary):
    plain = by_bytes(vocabulary)
    target = target_of(plain, spell(plain, f"{OPENING}{DROPPED}]}}"), [CAT])
    assert runs(plain, target) == [
        (f"{OPENING}{DROPPED}"[:-1], 0.0),
        ("}", 1.0),
        *runs_of_appended(CAT, 3.0, before=", "),
        ("]}<stop>", 1.0),
    ]


def test_without_values_there_is_no_first_separator(vocabulary):
    plain = by_bytes(vocabulary)
    target = target_of(plain, spell(plain, f"{OPENING}]}}"), [CAT])
    assert runs(plain, target) == [(OPENING, 0.0), *runs_of_appended(CAT, 1.0)[:-1], ("]}]}<stop>", 1.0)]


def test_nothing_generated_and_nothing_true(vocabulary):
    target = target_of(vocabulary, [], [])
    # ` []` is one token: the token behind the opening says that there is nothing
    assert runs(vocabulary, target) == [('{"objects":', 0.0), (" []}<stop>", 1.0)]
    assert target.slots == ()


def test_matched_objects_are_in_generated_order(vocabulary):
    target = target_of(vocabulary, spell(vocabulary, f"{OPENING}{DOG_TEXT}, {GHOST}, {NEAR_CAT}]}}"), [CAT, DOG])
    assert target.bins == (*DOG.box, *CAT.box)
    generated = [vocabulary.coordinate_bins[target.ids[slot]] for slot in target.slots]
    assert generated == [*DOG.box, 10, 10, 110, 120]


def test_a_multiplier_and_a_weight_of_zero(vocabulary):
    plain = by_bytes(vocabulary)
    ids = spell(plain, f"{OPENING}{DROPPED}]}}")
    target = target_of(plain, ids, [CAT], desc_ce_weight=0.0, drop_invalid_struct_ce_multiplier=0.0)
    assert runs(plain, target) == [
        (f"{OPENING}{DROPPED}"[:-1], 0.0), ("}", 1.0), (f", {CAT_TEXT}", 0.0), ("]}<stop>", 1.0)
    ]  # fmt: skip
    assert sum(target.is_desc) == 3
    assert target.bins == CAT.box
    assert target.num_go_on == 0  # that the cat follows has the weight of its separator


# --- every state --------------------------------------------------------------------------------------------------

STATE_CASES = [
    # (response, state, text of the target for a cat and a dog)
    ("I see a cat", "no_json", f"{OPENING}{CAT_TEXT}, {DOG_TEXT}]}}"),
    ("", "no_json", f"{OPENING}{CAT_TEXT}, {DOG_TEXT}]}}"),
    ('{"objects":[ ]}', "empty_answer", f"{OPENING}{CAT_TEXT}, {DOG_TEXT}]}}"),
    (f"{OPENING}{DOG_TEXT}]}}", "ok", f"{OPENING}{DOG_TEXT}, {CAT_TEXT}]}}"),
    (f"{OPENING}{DOG_TEXT} ,{NEAR_CAT} ] }}", "ok", f"{OPENING}{DOG_TEXT} ,{NEAR_CAT}]}}"),
    (f"{OPENING}{NEAR_CAT}]}}{OPENING}{GHOST}]}}", "trailing_garbage", f"{OPENING}{NEAR_CAT}, {DOG_TEXT}]}}"),
    (f"{OPENING}{NEAR_CAT}, {DOG_TEXT[:-3]}x", "malformed", f"{OPENING}{NEAR_CAT}, {DOG_TEXT}]}}"),
    (f"{OPENING}{NEAR_CAT[:-1]}", "truncated_first_object", f"{OPENING}{CAT_TEXT}, {DOG_TEXT}]}}"),
    (f"{OPENING}{GHOST}, 1, {DOG_TEXT[:-1]}", "truncated", f"{OPENING}{GHOST}, 1, {CAT_TEXT}, {DOG_TEXT}]}}"),
]


@pytest.mark.parametrize(("response", "state", "text"), STATE_CASES, ids=range(len(STATE_CASES)))
def test_states(vocabulary, response, state, text):
    ids = spell(vocabulary, response)
    assert parse_rollout(ids, vocabulary, ARRAY).state == state
    target = target_of(vocabulary, ids, [CAT, DOG])
    assert vocabulary.written_all(target.ids).decode() == text
    check(vocabulary, parse_rollout(ids, vocabulary, ARRAY), [CAT, DOG], target)


def test_every_state_has_a_case():
    assert {state for _, state, _ in STATE_CASES} == set(STATES)


# --- the invariants -----------------------------------------------------------------------------------------------


def check(vocabulary, parsed: ParsedRollout, truth: list[Truth], target: Target) -> None:
    """Every invariant, for whatever was generated."""
    match = match_boxes(parsed.objects, truth, **COSTS)
    appended = [truth[place] for place in match.missed]
    _check_ids(vocabulary, parsed, target)
    _check_document(vocabulary, parsed, appended, target)
    _check_every_true_object_once(parsed, match, truth, target)
    _check_slots(vocabulary, target)
    _check_prefix_weights(vocabulary, parsed, match, target)


def _check_ids(vocabulary, parsed, target):
    assert target.ids[: parsed.num_anchored] == parsed.prefix_ids[: parsed.num_anchored]
    assert vocabulary.written_all(target.ids).startswith(vocabulary.written_all(parsed.prefix_ids))
    assert target.ids[-1] == vocabulary.stop_id
    assert target.ids.count(vocabulary.stop_id) == 1


def _check_document(vocabulary, parsed, appended, target):
    numbers = {token: str(k).encode() for token, k in vocabulary.coordinate_bins.items()}
    text = b"".join(numbers[token] if token in numbers else vocabulary.written(token) for token in target.ids)
    document = json.loads(text)
    assert list(document) == ["objects"]
    num_values = len(parsed.objects) + len(parsed.dropped)
    assert document["objects"][num_values:] == [
        {"desc": vocabulary.normalise(one.desc), "bbox_2d": list(one.box)} for one in appended
    ]
    assert len(document["objects"]) == num_values + len(appended)
    again = parse_rollout(target.ids[:-1], vocabulary, ARRAY)
    assert again.state == ("ok" if num_values + len(appended) else "empty_answer")
    assert [(found.desc, found.box) for found in again.objects] == [
        *((found.desc, found.box) for found in parsed.objects),
        *((vocabulary.normalise(one.desc), one.box) for one in appended),
    ]


def _check_every_true_object_once(parsed, match, truth, target):
    in_order = [*(g for _, g in match.pairs), *match.missed]
    assert sorted(in_order) == list(range(len(truth)))
    assert target.bins == tuple(k for g in in_order for k in truth[g].box)
    predicted = tuple(slot for p, _ in match.pairs for slot in parsed.objects[p].slots)
    assert target.slots[: len(predicted)] == predicted
    assert all(slot >= parsed.num_anchored for slot in target.slots[len(predicted) :])


def _check_slots(vocabulary, target):
    assert len(target.slots) == len(target.bins)
    assert list(target.slots) == sorted(set(target.slots))
    assert all(target.ids[slot] in vocabulary.coordinate_bins for slot in target.slots)
    assert all(target.weights[slot] == 0 for slot in target.slots)
    assert len(target.weights) == len(target.is_desc) == len(target.ids)


def _check_prefix_weights(vocabulary, parsed, match, target):
    """Token by token: another way than the one under test."""
    matched = [parsed.objects[p] for p, _ in match.pairs]
    end = 0
    for t, token in enumerate(parsed.prefix_ids[: parsed.num_anchored]):
        first, end = end, end + len(vocabulary.written(token))
        assert not target.is_desc[t]
        goes_on = [place for place in parsed.value_ends if first <= place < end]
        around = [one for one in matched if one.span[0] <= first and end <= one.span[1]]
        in_desc = around and first < around[0].desc_span[1] and around[0].desc_span[0] < end
        ends = [place for place in parsed.value_ends if first < place <= end]
        to_come = bool(match.missed) or any(one.span[0] > first for one in matched)
        if goes_on:
            assert target.weights[t] == to_come
        elif ends and to_come:
            assert target.weights[t] == (token not in vocabulary.coordinate_bins)
        else:
            assert target.weights[t] == bool(around and not in_desc and t not in around[0].slots)


@given(RAW, st.booleans(), st.booleans(), TRUTHS)
def test_anything_generated_gives_a_target(vocabulary, raw, opened, tokenised, truth):
    text = OPENING.encode() + raw if opened else raw
    ids = vocabulary.encode(text.decode(errors="replace")) if tokenised else spell(vocabulary, text)
    check(vocabulary, parse_rollout(ids, vocabulary, ARRAY), truth, target_of(vocabulary, ids, truth))


@st.composite
def near_rollouts(draw):
    """True objects, and what a model wrote that found some of them nearly: (truth, predicted)."""
    truth = draw(TRUTHS)
    found = draw(st.permutations(truth).map(lambda some: some[: len(some) - 1]) | st.just(truth))
    moved = [
        Truth(desc=one.desc + "x", box=(*one.box[:3], min(999, one.box[3] + draw(st.integers(0, 3))))) for one in found
    ]
    return truth, [*moved, *draw(TRUTHS)]


@given(near_rollouts(), st.data())
def test_a_nearly_right_rollout_cut_anywhere_gives_a_target(vocabulary, rollout, data):
    truth, predicted = rollout
    ids = as_tuples(encode_answer(predicted, vocabulary, ARRAY)).ids[:-1]
    ids = ids[: data.draw(st.integers(0, len(ids)) | st.just(len(ids)))]
    check(vocabulary, parse_rollout(ids, vocabulary, ARRAY), truth, target_of(vocabulary, ids, truth))


@given(near_rollouts(), st.randoms())
def test_permuted_truth_changes_only_the_order_of_what_is_appended(vocabulary, rollout, random):
    truth, predicted = rollout
    if len({one.box for one in truth}) < len(truth):
        return
    ids = as_tuples(encode_answer(predicted, vocabulary, ARRAY)).ids[:-1]
    before = target_of(vocabulary, ids, truth)
    random.shuffle(truth)
    after = target_of(vocabulary, ids, truth)
    num_prefix = parse_rollout(ids, vocabulary, ARRAY).num_anchored
    num_matched = sum(slot < num_prefix for slot in before.slots)
    for name, count in (("ids", num_prefix), ("weights", num_prefix), ("slots", num_matched), ("bins", num_matched)):
        assert getattr(after, name)[:count] == getattr(before, name)[:count]
