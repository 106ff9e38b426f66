"""Forms with a score behind each box: text, parse, targets with objects that are not true, noise objects."""

import random
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from ds_stage2ab import ops
from ds_stage2ab.carriers import Match, Truth
from ds_stage2ab.channels.noise import entries_with_noise
from ds_stage2ab.codec.names import SCORED
from ds_stage2ab.codec.text import CODECS, encode_answer
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.iou import pairwise_iou
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.matching.scan import scan_arguments
from ds_stage2ab.matching.targets import Entry, answer_target, rewritten_target
from ds_stage2ab.ops import reference
from tests.line_cases import make_case as make_lines
from tests.parts import as_tuples
from tests.rollout_cases import make_case
from tests.spelled import COSTS, WEIGHTS, WORDS, build_vocabulary, shown
from tests.unit.matching.test_any_rollout import TOKENIZERS, vocabulary_of

ARRAY, COMPACT = (CODECS[name] for name in ("array_scored", "compact_scored"))
CAT, OWL = Truth(desc="cat", box=(200, 200, 300, 300)), Truth(desc="owl", box=(600, 600, 700, 700))
CAT_SEEN = Truth(desc="cat", box=(200, 200, 300, 310), score=640)  # IoU 100/110: bin 908
GHOST = Truth(desc="zebra", box=(800, 0, 900, 50), score=300)
ONE_CALL = {"desc_ce_weight": 0.5, "where": "sample"}
both_forms = pytest.mark.parametrize("codec", [ARRAY, COMPACT], ids=lambda codec: codec.name)


@pytest.fixture(scope="module")
def words():
    return build_vocabulary((*WORDS, "score", "],"))


def text_of(vocabulary, ids) -> str:
    return vocabulary.written_all(ids).decode()


def said(vocabulary, codec, *objects):
    """Parsed ids of an answer that lists these."""
    return parse_rollout(encode_answer(objects, vocabulary, codec).ids[:-1].tolist(), vocabulary, codec)


def rewritten(vocabulary, codec, objects, truth, *, keep_spurious=True, said_order=True):
    parsed = said(vocabulary, codec, *objects)
    match = match_boxes(parsed.objects, truth, **COSTS)
    order = {"said_order": said_order, "keep_spurious": keep_spurious}
    return as_tuples(rewritten_target(parsed, match, truth, vocabulary, codec, **order, **ONE_CALL))


# --- text and parse -----------------------------------------------------------------------------------------------


def test_the_text_of_both_forms(words):
    array, compact = (encode_answer([CAT, CAT_SEEN, OWL], words, codec) for codec in (ARRAY, COMPACT))
    coordinates = "<|coord_200|><|coord_200|><|coord_300|><|coord_300|><|coord_999|>"
    seen = "<|coord_200|><|coord_200|><|coord_300|><|coord_310|><|coord_640|>"
    owl = "<|coord_600|><|coord_600|><|coord_700|><|coord_700|><|coord_999|>"
    assert text_of(words, compact.ids[:-1]) == f"cat{coordinates}{seen}\nowl{owl}"
    first = '{"desc": "cat", "bbox_2d": [<|coord_200|>, <|coord_200|>, <|coord_300|>, <|coord_300|>], "score": '
    assert text_of(words, array.ids[:-1]).startswith('{"objects": [' + first + "<|coord_999|>}, ")
    for answer in (array, compact):
        assert [words.coordinate_bins[token] for token in answer.ids[answer.score_slots]] == [999, 640, 999]
        assert answer.bins.tolist() == [*CAT.box, *CAT_SEEN.box, *OWL.box]
        assert answer.is_coord.sum() == 15 and answer.is_coord[answer.score_slots].all()


@pytest.mark.parametrize("name", [name for name in CODECS if name not in SCORED])
def test_a_form_without_scores_has_none(words, name):
    answer = encode_answer([CAT_SEEN], words, CODECS[name])
    assert len(answer.score_slots) == 0 and "score" not in text_of(words, answer.ids)
    (found,) = said(words, CODECS[name], CAT_SEEN).objects
    assert (found.score, found.score_slot) == (-1, -1)


@both_forms
def test_scores_are_read(words, codec):
    ids = encode_answer([CAT_SEEN, GHOST], words, codec).ids[:-1].tolist()
    first, second = parse_rollout(ids, words, codec).objects
    assert (first.score, second.score) == (640, 300)
    assert [words.coordinate_bins[ids[found.score_slot]] for found in (first, second)] == [640, 300]
    assert first.score_slot not in first.slots


BOX = '"bbox_2d": [<|coord_1|>, <|coord_2|>, <|coord_3|>, <|coord_4|>]'
VALUES = {
    f'{{"desc": "a", {BOX}}}': "missing_score",
    f'{{"desc": "a", {BOX}, "score": 0.9}}': "missing_score",
    f'{{"desc": "a", {BOX}, "score": [<|coord_9|>]}}': "missing_score",
    f'{{"score": <|coord_9|>, {BOX}}}': "missing_desc",
    '{"score": <|coord_9|>, "desc": "a"}': "missing_geom",
    f'{{"desc": "a", {BOX}, "score": <|coord_9|>, "score": <|coord_9|>}}': "key_invalid",
    f'{{"desc": "a", {BOX}, "confidence": <|coord_9|>}}': "key_invalid",
    f'{{"score": <|coord_9|>, {BOX}, "desc": "a"}}': "",
}


@pytest.mark.parametrize(("value", "reason"), VALUES.items())
def test_values_with_and_without_a_score(words, value, reason):
    parsed = parse_rollout(words.encode('{"objects": [' + value + "]}"), words, ARRAY)
    assert (parsed.state, parsed.dropped) == ("ok", (reason,) if reason else ())
    assert [found.score for found in parsed.objects] == ([] if reason else [9])


def test_four_coordinates_are_no_value_in_scored_lines(words):
    parsed = parse_rollout(words.encode("cat<|coord_1|><|coord_2|><|coord_3|><|coord_4|>"), words, COMPACT)
    assert (parsed.state, parsed.objects) == ("truncated_first_object", ())


# --- targets ------------------------------------------------------------------------------------------------------


@both_forms
def test_every_score_is_taught_by_what_happened(words, codec):
    """Append: the spurious one 0, the matched one its IoU, the missed one 999; nothing else of the spurious one."""
    parsed = said(words, codec, GHOST, CAT_SEEN)
    match = match_boxes(parsed.objects, [CAT, OWL], **COSTS)
    assert match == Match(pairs=((1, 0),), missed=(1,), spurious=(0,))
    target = as_tuples(appended_target(parsed, match, [CAT, OWL], words, codec, **WEIGHTS))
    assert target.score_bins == (0, 908, 999)
    assert [words.coordinate_bins[target.ids[slot]] for slot in target.score_slots] == [300, 640, 999]
    assert target.bins == (*CAT.box, *OWL.box)
    assert not any(target.weights[slot] for slot in (*target.score_slots, *target.slots))


def test_a_spurious_object_stays_as_context_token_by_token(words):
    target = rewritten(words, ARRAY, [GHOST, CAT_SEEN], [CAT, OWL])
    rows = list(zip(shown(words, target.ids), target.weights, strict=True))
    ghost = rows.index(("zebra", 0.0))
    # of the opening all but the token that begins the ghost; of the ghost nothing, then that a true one comes
    assert [weight for _, weight in rows[: ghost - 4]] == [1.0] * (ghost - 4) and rows[ghost - 4][1] == 0.0
    end = rows.index(("C300", 0.0), ghost)
    assert {weight for _, weight in rows[ghost - 2 : end + 1]} == {0.0}
    assert rows[end + 1] == ('}', 1.0) and rows[end + 2][1] == 1.0
    assert [weight for token, weight in rows if token == "cat"] == [0.5]
    assert target.score_bins == (0, 908, 999) and target.bins == (*CAT.box, *OWL.box)
    assert (target.num_go_on, target.num_stop) == (2, 1)
    assert "zebra" in text_of(words, target.ids)


@both_forms
def test_to_go_on_to_a_last_spurious_object_is_not_taught_and_to_stop_behind_it_is(words, codec):
    target = rewritten(words, codec, [CAT_SEEN, GHOST], [CAT])
    spurious = target.score_slots[-1]
    score = target.score_slots[0]
    between = target.weights[score + 1 + (codec is ARRAY) : spurious]  # the brace is structure of the true one
    assert (target.num_go_on, target.num_stop, target.weights[-1]) == (1, 1, 1.0)
    if codec is COMPACT:
        assert not any(between)
    else:
        assert set(between) == {0.0} and set(target.weights[spurious + 1 :]) == {1.0}


@both_forms
def test_an_answer_of_spurious_objects_alone(words, codec):
    target = rewritten(words, codec, [GHOST], [])
    assert (target.num_go_on, target.bins, target.score_bins) == (0, (), (0,))
    spurious = target.score_slots[0]
    begins = shown(words, target.ids).index("zebra") - 4 if codec is ARRAY else 0
    assert not any(target.weights[begins : spurious + 1]) and target.weights[-1] == 1.0
    assert not any(target.is_desc)


@both_forms
@pytest.mark.parametrize("said_order", [True, False])
def test_left_out_they_leave_the_true_answer(words, codec, said_order):
    target = rewritten(words, codec, [GHOST, CAT_SEEN], [CAT, OWL], keep_spurious=False, said_order=said_order)
    entries = [Entry(read=CAT_SEEN, learned=replace(CAT, score=908)), Entry(read=OWL, learned=OWL)]
    assert asdict(target) == asdict(as_tuples(answer_target(entries, words, codec, **ONE_CALL)))


# --- any rollout --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
def test_scored_lines_are_read_as_they_were_made(name):
    vocabulary = vocabulary_of(name)
    for seed in range(150):
        case, truth = make_lines(seed, vocabulary, scored=True)
        arguments = (*scan_arguments(case.ids, vocabulary), COMPACT.num_coordinates)
        assert all(map(torch.equal, ops.scan_lines(*arguments), reference.scan_lines(*arguments))), seed
        parsed = parse_rollout(case.ids, vocabulary, COMPACT)
        kept = [value for value in case.complete if not value.reason]
        assert parsed.state == case.state, seed
        assert [(one.desc, one.box, one.score) for one in parsed.objects] == [
            (one.desc, one.corners, one.score) for one in kept
        ]
        match = match_boxes(parsed.objects, truth, **COSTS)
        target = appended_target(parsed, match, truth, vocabulary, COMPACT, **WEIGHTS)
        assert parse_rollout(target.ids[:-1].tolist(), vocabulary, COMPACT).state in ("ok", "empty_answer"), seed
        assert len(target.score_slots) == len(kept) + len(match.missed)


@both_forms
@pytest.mark.parametrize("name", TOKENIZERS)
def test_of_kept_spurious_objects_nothing_but_the_score_is_taught(name, codec):
    """By bytes: the weights of an answer with spurious objects, beside those of the true objects alone."""
    vocabulary = vocabulary_of(name)
    for seed in range(100):
        case, truth = (make_lines(seed, vocabulary, scored=True) if codec.in_lines
                       else make_case(seed, vocabulary, codec))  # fmt: skip
        parsed = parse_rollout(case.ids, vocabulary, codec)
        match = match_boxes(parsed.objects, truth, **COSTS)
        made_of = (parsed, match, truth, vocabulary, codec)
        kept, without = (
            as_tuples(rewritten_target(*made_of, said_order=True, keep_spurious=keep, **ONE_CALL))
            for keep in (True, False)
        )
        assert kept.bins == without.bins, seed
        assert len(kept.score_bins) == len(without.score_bins) + len(match.spurious)
        assert kept.score_bins.count(0) >= len(match.spurious)
        assert not any(kept.weights[slot] for slot in (*kept.slots, *kept.score_slots))
        assert kept.weights[-1] == 1.0
        if not codec.in_lines:  # there a spurious object can hold the description of the true one behind it
            assert sum(weight == 0.5 for weight in kept.weights) == sum(weight == 0.5 for weight in without.weights)
            assert kept.num_go_on == without.num_go_on == len(truth)
        if not match.spurious:
            assert asdict(kept) == asdict(without)


# --- noise objects of Channel A -----------------------------------------------------------------------------------


def sample(num_objects, draw=3):
    rng = random.Random(num_objects)
    objects = tuple(
        Truth(desc=f"thing {n}", box=(x := rng.randrange(800), y := rng.randrange(800), x + 150, y + 120))
        for n in range(num_objects)
    )
    return SimpleNamespace(id="a", draw=draw, objects=objects)


def test_noise_stands_between_the_true_objects_and_never_last():
    for draw in range(200):
        one = sample(4, draw)
        entries = entries_with_noise(one, 3, seed=7)
        assert tuple(entry.learned for entry in entries if entry.learned) == one.objects
        assert len(entries) == 7 and entries[-1].learned is not None
        for entry in entries:
            x1, y1, x2, y2 = entry.read.box
            assert 0 <= x1 < x2 <= 999 and 0 <= y1 < y2 <= 999
            assert (entry.read.score == 0) == (entry.learned is None)


def test_a_noise_box_that_repeats_one_comes_behind_it():
    repeated = 0
    for draw in range(300):
        entries = entries_with_noise(sample(4, draw), 3, seed=7)
        boxes = [(entry.read.box, entry.learned is not None) for entry in entries]
        for place, (box, true) in enumerate(boxes):
            overlaps = [pairwise_iou([box], [other])[0, 0] for other, is_true in boxes[:place] if is_true]
            if not true and max(overlaps, default=0) > 0.8:
                repeated += 1
            later = [pairwise_iou([box], [other])[0, 0] for other, is_true in boxes[place:] if is_true]
            assert true or max(later, default=0) < 0.8, "of an object that is still to come"
    assert repeated > 100


def test_noise_depends_on_the_draw_alone():
    first, again, other = (entries_with_noise(sample(5, draw), 2, seed=7) for draw in (3, 3, 4))
    assert first == again != other
    assert entries_with_noise(sample(5), 0, seed=7) == [Entry(read=one, learned=one) for one in sample(5).objects]
    assert entries_with_noise(sample(0), 5, seed=7) == []


@both_forms
def test_of_noise_the_score_is_taught(words, codec):
    entries = [Entry(read=replace(GHOST, score=0), learned=None), Entry(read=CAT, learned=CAT)]
    target = as_tuples(answer_target(entries, words, codec, **ONE_CALL))
    assert target.score_bins == (0, 999) and target.bins == CAT.box and target.num_go_on == 1
