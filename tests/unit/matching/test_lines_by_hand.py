"""The compact form by hand: tables of a target's tokens, their weights and bins; states and reasons of short answers.

The tokens of a text can be read off it (`tests/spelled.py`); `~` stands between tokens.
"""

import pytest

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.matching.append import appended_target
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.parse import parse_rollout
from ds_stage2ab.matching.targets import rewritten_target
from tests.parts import as_tuples
from tests.spelled import COSTS, WEIGHTS, WORDS, build_vocabulary, check_rows

COMPACT = get_codec("compact")
OWL, CAT = (600, 600, 700, 700), (200, 200, 300, 300)
OWL_SEEN, CAT_SEEN = (600, 600, 700, 720), (200, 200, 300, 310)  # IoU 100/120 and 100/110
FOX, DOG = (0, 0, 100, 100), (400, 400, 500, 500)
ZEBRA, OTHER, FLAT = (800, 0, 900, 50), (900, 0, 950, 50), (900, 10, 900, 50)  # none touches anything
TRUTHS = {
    "fox": Truth(desc="red fox", box=FOX),
    "cat": Truth(desc="cat", box=CAT),
    "dog": Truth(desc="dog", box=DOG),
    "owl": Truth(desc="owl", box=OWL),
}


def box(corners, bins=(None,) * 4):
    return [(f"C{k}", 0, taught) for k, taught in zip(corners, bins, strict=True)]


TABLES = {
    # name: (lines generated, true objects, rows of the target, decisions to go on)
    "every region": ([("owl", OWL_SEEN), ("zebra", ZEBRA), ("dog", CAT_SEEN)], ("fox", "cat", "dog", "owl"), [
        ("owl", 0), *box(OWL_SEEN, OWL), ("\n", 1),  # goes on: the cat, and two that were missed
        ("zebra", 0), *box(ZEBRA), ("\n", 1), ("dog", 0), *box(CAT_SEEN, CAT),
        ("\n", 1), ("red~ fox", 0.5), *box(FOX, FOX), ("\n", 1), ("dog", 0.5), *box(DOG, DOG), ("<stop>", 1),
    ], 4),
    "a missed one of the last name": ([("owl", OWL_SEEN), ("dog", CAT_SEEN)], ("dog", "cat", "owl"), [
        ("owl", 0), *box(OWL_SEEN, OWL), ("\n", 1), ("dog", 0), *box(CAT_SEEN, CAT), *box(DOG, DOG), ("<stop>", 1),
    ], 2),
    "a missed one of another name": ([("dog", CAT_SEEN)], ("cat", "owl"), [
        ("dog", 0), *box(CAT_SEEN, CAT), ("\n", 1), ("owl", 0.5), *box(OWL, OWL), ("<stop>", 1),
    ], 1),
    "nothing to come": ([("owl", OWL_SEEN, ZEBRA)], ("owl",), [
        ("owl", 0), *box(OWL_SEEN, OWL), *box(ZEBRA), ("<stop>", 1),
    ], 0),
    # To go on with a further box is decided by its first coordinate, which is taught as a slot, or not at all.
    "a further box": ([("owl", ZEBRA, OWL_SEEN)], ("owl",), [
        ("owl", 0), *box(ZEBRA), *box(OWL_SEEN, OWL), ("<stop>", 1),
    ], 1),
    "further boxes that are not there": ([("owl", ZEBRA, OTHER), ("cat", CAT_SEEN)], ("cat",), [
        ("owl", 0), *box(ZEBRA), *box(OTHER), ("\n", 1), ("cat", 0), *box(CAT_SEEN, CAT), ("<stop>", 1),
    ], 1),
    "nothing said": ([], ("dog",), [("dog", 0.5), *box(DOG, DOG), ("<stop>", 1)], 1),
    "nothing at all": ([], (), [("<stop>", 1)], 0),
    "nothing true": ([("zebra", ZEBRA)], (), [("zebra", 0), *box(ZEBRA), ("<stop>", 1)], 0),
    "a dropped box": ([("owl", FLAT)], ("dog",), [
        ("owl", 0), *box(FLAT), ("\n", 3), ("dog", 0.5), *box(DOG, DOG), ("<stop>", 1),
    ], 1),
    "a dropped box of the same name": ([("dog", FLAT)], ("dog",), [
        ("dog", 0), *box(FLAT), *box(DOG, DOG), ("<stop>", 1),
    ], 1),
    "a box without a name": ([("", ZEBRA)], ("dog",), [
        *box(ZEBRA), ("\n", 3), ("dog", 0.5), *box(DOG, DOG), ("<stop>", 1),
    ], 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def words():
    return build_vocabulary(WORDS)


def answer(lines) -> str:
    return "\n".join(
        name + "".join(f"<|coord_{k}|>" for corners in boxes for k in corners) for name, *boxes in lines
    )


@pytest.mark.parametrize("name", TABLES)
def test_every_token_has_its_weight_and_every_slot_its_bin(words, name):
    lines, true, rows, num_go_on = TABLES[name]
    truth = [TRUTHS[one] for one in true]
    parsed = parse_rollout(words.encode(answer(lines)), words, COMPACT)
    match = match_boxes(parsed.objects, truth, **COSTS)
    target = as_tuples(appended_target(parsed, match, truth, words, COMPACT, **WEIGHTS))
    check_rows(words, target, rows)
    assert (target.num_go_on, target.num_stop, target.seam_fallback) == (num_go_on, 1, False)


def test_a_rewritten_answer_shares_names_as_channel_a_does(words):
    truth = [TRUTHS["cat"], Truth(desc="cat", box=FOX), TRUTHS["dog"], TRUTHS["owl"]]
    ids = words.encode(answer([("owl", OWL_SEEN), ("zebra", ZEBRA), ("dog", CAT_SEEN)]))
    parsed = parse_rollout(ids, words, COMPACT)
    match = match_boxes(parsed.objects, truth, **COSTS)
    for said_order, rows in (
        (False, [("cat", 0.5), *box(CAT_SEEN, CAT), *box(FOX, FOX), ("\n", 1), ("dog", 0.5), *box(DOG, DOG),
                 ("\n", 1), ("owl", 0.5), *box(OWL_SEEN, OWL), ("<stop>", 1)]),
        (True, [("owl", 0.5), *box(OWL_SEEN, OWL), ("\n", 1), ("cat", 0.5), *box(CAT_SEEN, CAT), *box(FOX, FOX),
                ("\n", 1), ("dog", 0.5), *box(DOG, DOG), ("<stop>", 1)]),
    ):  # fmt: skip
        made = rewritten_target(
            *(parsed, match, truth, words, COMPACT),
            said_order=said_order,
            keep_spurious=False,
            desc_ce_weight=0.5,
            where="sample",
        )
        check_rows(words, as_tuples(made), rows)


FOUR = "<|coord_1|><|coord_2|><|coord_3|><|coord_4|>"


@pytest.mark.parametrize(
    ("text", "state", "descs", "dropped"),
    [
        ("", "empty_answer", [], ()),
        (f"cat{FOUR}", "ok", ["cat"], ()),
        (f"cat{FOUR}{FOUR}\ndog{FOUR}", "ok", ["cat", "cat", "dog"], ()),
        (f" cat {FOUR}", "ok", [" cat "], ()),  # nothing is repaired; descriptions are compared without blanks
        ("cat", "truncated_first_object", [], ()),
        (f"cat{FOUR[:-11]}", "truncated_first_object", [], ()),
        (f"cat{FOUR}\n", "truncated", ["cat"], ()),
        (f"cat{FOUR}{FOUR[:-11]}", "truncated", ["cat"], ()),
        (f"cat{FOUR}\ndog", "truncated", ["cat"], ()),
        (f"cat{FOUR} ", "malformed", ["cat"], ()),
        (f"cat{FOUR}, dog{FOUR}", "malformed", ["cat"], ()),
        (f"cat{FOUR[:-11]}\ndog{FOUR}", "malformed", [], ()),
        (f"Two objects:\ncat{FOUR}", "malformed", [], ()),
        (f"\ncat{FOUR}", "malformed", [], ()),
        (f"cat{FOUR}<|im_start|>", "malformed", ["cat"], ()),
        ('{"desc": "cat", "bbox_2d": [<|coord_1|>, <|coord_2|>]}', "malformed", [], ()),  # a form in JSON
        (f"{FOUR}\ncat{FOUR}", "ok", ["cat"], ("missing_desc",)),
        (f" \u3000{FOUR}{FOUR}", "ok", [], ("missing_desc", "missing_desc")),
        ("cat<|coord_3|><|coord_2|><|coord_3|><|coord_4|>", "ok", [], ("bbox_invalid",)),
        ("<|coord_3|><|coord_2|><|coord_3|><|coord_4|>", "ok", [], ("missing_desc",)),  # the first that applies
    ],
)  # fmt: skip
def test_states_and_reasons(words, text, state, descs, dropped):
    parsed = parse_rollout(words.encode(text), words, COMPACT)
    assert (parsed.state, [one.desc for one in parsed.objects], parsed.dropped) == (state, descs, dropped)
    assert text.encode().startswith(words.written_all(parsed.prefix_ids))


def test_a_later_box_has_its_own_tokens_and_the_name_of_its_line(words):
    # `red fox`, two boxes: the tokens `red`, ` fox`, and eight coordinates; bytes 7, 7 + 4 * 11, 7 + 8 * 11
    first, second = parse_rollout(words.encode(f"red fox{FOUR}{FOUR}"), words, COMPACT).objects
    assert (first.span, first.desc_span, first.tokens, first.slots) == ((0, 51), (0, 7), (0, 6), (2, 3, 4, 5))
    assert (second.span, second.desc_span, second.tokens, second.slots) == ((51, 95), (0, 7), (6, 10), (6, 7, 8, 9))
    assert second.desc == "red fox"


def test_the_text_of_a_coordinate_token_is_no_coordinate(words):
    ids = [words.byte_ids[byte] for byte in f"cat{FOUR}".encode()]
    assert parse_rollout(ids, words, COMPACT).state == "truncated_first_object"
