r"""Channel B's text path from end to end: the ids of a rollout -> parse -> match -> target.

Every expected value is written out by hand. The tokenizer splits text as Qwen's does, and a piece is one token if it
is among the words below, single bytes otherwise: the tokens of a text can be read off it. Expected targets are tables
of rows (tokens, weight): `~` stands between tokens, `C7` is the coordinate token of bin 7, and a third entry is the
bin that is taught there. Text is Latin-1, so "\xe4" is one byte.
"""

import inspect
import re
from pathlib import Path

import pytest

from ds_stage2ab.carriers import Match, Truth
from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.load import load_config
from ds_stage2ab.matching.assign import match_boxes
from ds_stage2ab.matching.parse import REASONS, STATES, parse_rollout
from tests.parts import Quickstart, config_values, merged, write_config
from tests.spelled import (
    ARRAY,
    CLOSERS,
    COSTS,
    FORMS,
    KEYED,
    WORDS,
    Form,
    build_vocabulary,
    check_rows,
    corners,
    follow,
    shown,
    spell,
    truths,
)

OWL, CAT = (600, 600, 700, 700), (200, 200, 300, 300)
OWL_SEEN, CAT_SEEN = (600, 600, 700, 720), (200, 200, 300, 310)  # IoU 100/120 and 100/110
FOX, DOG = (0, 0, 100, 100), (400, 400, 500, 500)
ZEBRA = (800, 0, 900, 50)  # touches nothing


both_forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return build_vocabulary((*WORDS, *CLOSERS))


# --- weights, slots and bins, token by token ----------------------------------------------------------------------

A_BOX, K_BOX = '",~ "~bbox~_~2~d~":~ [', '",~ "~bbox~_~2~d~":~ ["'  # from behind a description to the first coordinate
A_NEXT, K_NEXT = ",~ ", '",~ "'  # between coordinates
KEY = 0  # of a matched object in the prefix: no part of its value, it stands between values as a separator does
NAMED = {"fox": ("red fox", FOX), "cat": ("cat", CAT), "dog": ("dog", DOG), "owl": ("owl", OWL), "(x)": ("(x)", DOG)}
TRUTHS = {name: Truth(desc=desc, box=box) for name, (desc, box) in NAMED.items()}

# Seen: the owl, a value without a box, an object that is not there, the cat under the name of a dog.
FULL = ("owl", "boxless", "zebra", "cat as dog")
TABLES = {
    # name: (form, values generated, true objects, rows of the target)
    "array, every region": (ARRAY, FULL, ("fox", "cat", "dog", "owl"), [
        ('{"~objects~":~ [{"', 0),  # the last token holds bytes of the opening
        ('desc~":~ "', 1), ("owl", 0), (A_BOX, 1), *corners(OWL_SEEN, A_NEXT, 1, OWL), ("]},", 1),  # goes on: the cat
        (' {"~desc~":~ "~cat', 0), ('"},', 1), (f' {{"~desc~":~ "~zebra~{A_BOX}', 0), *corners(ZEBRA, A_NEXT, 0),
        ("]},", 1), (' {"', 0), ('desc~":~ "', 1), ("dog", 0), (A_BOX, 1), *corners(CAT_SEEN, A_NEXT, 1, CAT),
        # The last coordinate: what stands behind it is encoded in one call. Drops weigh on what is appended.
        (']},~ {"~desc~":~ "', 3), ("red~ fox", 0.5), (A_BOX, 3), *corners(FOX, A_NEXT, 3, FOX), ("]},", 3),
        (' {"~desc~":~ "', 3), ("dog", 0.5), (A_BOX, 3), *corners(DOG, A_NEXT, 3, DOG),
        ("]}]}~<stop>", 1),  # the token that stops, merged with the object's end
    ]),
    "keyed, every region": (KEYED, FULL, ("fox", "cat", "dog", "owl"), [
        ('{"', 0), ('object~_~1~":~ {"', KEY),
        ('desc~":~ "', 1), ("owl", 0), (K_BOX, 1), *corners(OWL_SEEN, K_NEXT, 1, OWL), ('"]},', 1),
        (' "~object~_~2~":~ {"~desc~":~ "~cat', 0), ('"},', 1),
        (f' "~object~_~3~":~ {{"~desc~":~ "~zebra~{K_BOX}', 0), *corners(ZEBRA, K_NEXT, 0), ('"]},', 1),
        (' "', 0), ('object~_~4~":~ {"', KEY), ('desc~":~ "', 1), ("dog", 0), (K_BOX, 1),
        *corners(CAT_SEEN, K_NEXT, 1, CAT),
        ('"]},~ "~object~_~5~":~ {"~desc~":~ "', 3), ("red~ fox", 0.5), (K_BOX, 3), *corners(FOX, K_NEXT, 3, FOX),
        ('"]},~ "~object~_~6~":~ {"~desc~":~ "', 3), ("dog", 0.5), (K_BOX, 3), *corners(DOG, K_NEXT, 3, DOG),
        ('"]}}~<stop>', 1),
    ]),
    # Behind the prefix a token takes the region of its first byte: ` "(` is structure, `)",` description.
    "array, no drops": (ARRAY, ("zebra",), ("(x)",), [
        (f'{{"~objects~":~ [{{"~desc~":~ "~zebra~{A_BOX}', 0), *corners(ZEBRA, A_NEXT, 0),
        (']},~ {"~desc~":~ "(', 1), ('x~)",', 0.5), (A_BOX[3:], 1), *corners(DOG, A_NEXT, 1, DOG), ("]}]}~<stop>", 1),
    ]),
    "keyed, no drops": (KEYED, ("zebra",), ("(x)",), [
        (f'{{"~object~_~1~":~ {{"~desc~":~ "~zebra~{K_BOX}', 0), *corners(ZEBRA, K_NEXT, 0),
        ('"]},~ "~object~_~2~":~ {"~desc~":~ "(', 1), ('x~)",', 0.5), (K_BOX[3:], 1), *corners(DOG, K_NEXT, 1, DOG),
        ('"]}}~<stop>', 1),
    ]),
    "array, nothing missed": (ARRAY, ("boxless", "owl"), ("owl",), [
        ('{"~objects~":~ [{"~desc~":~ "~cat', 0), ('"},', 1), (' {"', 0),
        ('desc~":~ "', 1), ("owl", 0), (A_BOX, 1), *corners(OWL_SEEN, A_NEXT, 1, OWL), ("]}]}~<stop>", 1),
    ]),
    "keyed, nothing missed": (KEYED, ("boxless", "owl"), ("owl",), [
        ('{"~object~_~1~":~ {"~desc~":~ "~cat', 0), ('"},', 1), (' "', 0), ('object~_~2~":~ {"', KEY),
        ('desc~":~ "', 1), ("owl", 0), (K_BOX, 1), *corners(OWL_SEEN, K_NEXT, 1, OWL), ('"]}}~<stop>', 1),
    ]),
    # To go on is not taught where no true object is to come, to stop is, whatever value it stands behind.
    "array, nothing to come": (ARRAY, ("owl", "zebra"), ("owl",), [
        ('{"~objects~":~ [{"', 0), ('desc~":~ "', 1), ("owl", 0), (A_BOX, 1), *corners(OWL_SEEN, A_NEXT, 1, OWL),
        ("]},", 0), (f' {{"~desc~":~ "~zebra~{A_BOX}', 0), *corners(ZEBRA, A_NEXT, 0), ("]}]}~<stop>", 1),
    ]),
    "keyed, nothing to come": (KEYED, ("owl", "zebra"), ("owl",), [
        ('{"~object~_~1~":~ {"', 0), ('desc~":~ "', 1), ("owl", 0), (K_BOX, 1), *corners(OWL_SEEN, K_NEXT, 1, OWL),
        ('"]},', 0), (f' "~object~_~2~":~ {{"~desc~":~ "~zebra~{K_BOX}', 0), *corners(ZEBRA, K_NEXT, 0),
        ('"]}}~<stop>', 1),
    ]),
    # Nothing was said: whether to begin at all is decided by the token behind the opening, merged with it or not.
    "array, nothing at all": (ARRAY, (), (), [('{"~objects~":', 0), (" []}~<stop>", 1)]),
    "keyed, nothing at all": (KEYED, (), (), [("{}~<stop>", 1)]),
    "array, nothing said": (ARRAY, (), ("dog",), [
        ('{"~objects~":', 0), (' [{"~desc~":~ "', 1), ("dog", 0.5), (A_BOX, 1), *corners(DOG, A_NEXT, 1, DOG),
        ("]}]}~<stop>", 1),
    ]),
    "keyed, nothing said": (KEYED, (), ("dog",), [
        ('{"~object~_~1~":~ {"~desc~":~ "', 1), ("dog", 0.5), (K_BOX, 1), *corners(DOG, K_NEXT, 1, DOG),
        ('"]}}~<stop>', 1),
    ]),
    # Where the close has tokens of its own: drops do not weigh on it, nor the end of an object that is not there.
    "array, plain words": (ARRAY, ("boxless",), ("dog",), [
        ('{"~objects~":~ [{"~desc~":~ "~cat', 0),
        ('"},~ {"~desc~":~ "', 3), ("dog", 0.5), (A_BOX, 3), *corners(DOG, A_NEXT, 3, DOG),
        ("]~}", 3), ("]~}~<stop>", 1),
    ]),
    "keyed, plain words": (KEYED, ("boxless",), ("dog",), [
        ('{"~object~_~1~":~ {"~desc~":~ "~cat', 0),
        ('"},~ "~object~_~2~":~ {"~desc~":~ "', 3), ("dog", 0.5), (K_BOX, 3), *corners(DOG, K_NEXT, 3, DOG),
        ('"~]~}', 3), ("}~<stop>", 1),
    ]),
    # The token that holds the value's last byte decides too: where the next one is `]}`, it could have been `]},`.
    "array, spurious, plain words": (ARRAY, ("zebra",), (), [
        (f'{{"~objects~":~ [{{"~desc~":~ "~zebra~{A_BOX}', 0), *corners(ZEBRA, A_NEXT, 0),
        ("]", 0), ("}~]~}~<stop>", 1),
    ]),
}
REWRITTEN = [  # what both orders share: a true object as it is read, and the bins that are learned
    (desc, [("red~ fox" if desc == "fox" else desc, 0.5)], read, taught)
    for desc, read, taught in (("fox", FOX, FOX), ("cat", CAT_SEEN, CAT), ("dog", DOG, DOG), ("owl", OWL_SEEN, OWL))
]
ORDERS = {False: ("fox", "cat", "dog", "owl"), True: ("owl", "cat", "fox", "dog")}
"""Of a rewritten answer: the data's, and the one in which the objects were said, missed ones behind."""


def generated_ids(words: Vocabulary, form: Form, generated) -> list[int]:
    written = {"boxless": '{"desc": "cat"}', "zebra": form.value("zebra", ZEBRA)}
    written |= {"owl": form.value("owl", OWL_SEEN), "cat as dog": form.value("dog", CAT_SEEN)}
    return words.encode(form.answer(*(written[one] for one in generated)))


@pytest.mark.parametrize("name", [name for name, (form, *_) in TABLES.items() if form in FORMS])
def test_every_token_has_its_weight_and_every_slot_its_bin(vocabulary, name):
    form, generated, true, rows = TABLES[name]
    words = build_vocabulary(WORDS) if name.endswith("plain words") else vocabulary
    _, target = follow(words, form, generated_ids(words, form, generated), [TRUTHS[one] for one in true])
    check_rows(words, target, rows)
    assert not target.seam_fallback


@both_forms
@pytest.mark.parametrize("said_order", ORDERS, ids=["data", "generated"])
def test_a_rewritten_answer_is_the_true_one_with_the_coordinates_that_were_said(vocabulary, form, said_order):
    true = [TRUTHS[one] for one in ORDERS[False]]
    match, target = follow(vocabulary, form, generated_ids(vocabulary, form, FULL), true, said_order)
    assert (match.pairs, match.spurious) == (((0, 3), (2, 1)), (1,))
    box, between = (A_BOX, A_NEXT) if form is ARRAY else (K_BOX, K_NEXT)
    start, go_on, stop = ('{"~objects~":~ [{"', ']},~ {"', "]}]}") if form is ARRAY else ('{"', '"]},~ "', '"]}}')
    rows = []
    for number, name in enumerate(ORDERS[said_order], start=1):
        _, desc, read, taught = next(one for one in REWRITTEN if one[0] == name)
        key = "desc" if form is ARRAY else f'object~_~{number}~":~ {{"~desc'
        rows += [(start if number == 1 else go_on, 1), (f'{key}~":~ "', 1), *desc]
        rows += [(box, 1), *corners(read, between, 1, taught)]
    check_rows(vocabulary, target, [*rows, (f"{stop}~<stop>", 1)])
    assert (target.num_go_on, target.num_stop) == (4, 1)


# --- every state --------------------------------------------------------------------------------------------------

STATE_ROWS = [  # (state, kept, dropped, prefix, responses); <one> is the opening and a cat, <two> goes on with `[1, 2]`
    ("no_json", 0, 0, "<open>", ["", "I see a cat", "<|im_start|><one><close>"]),
    ("empty_answer", 0, 0, "<open>", ["<open><close>", "<open><close>cat"]),
    ("empty_answer", 0, 0, "<open>", ["\n <open> \t<close>cat"]),
    ("ok", 1, 0, "<one>", ["<one><close>"]),
    ("ok", 1, 1, "<two>", ["<two>\n<close>"]),
    ("trailing_garbage", 1, 0, "<one>", ["<one><close> ", "<one><close><|im_start|>"]),
    ("trailing_garbage", 1, 1, "<two>", ["<two><close><one>"]),
    ("malformed", 1, 0, "<one>", ["<one> cat", "<one><|im_start|>"]),
    ("malformed", 1, 1, "<two>", ["<two>,<close>"]),
    ("truncated_first_object", 0, 0, "<open>", ["<open>", "<half>"]),
    ("truncated", 1, 1, "<two>", ["<two>", "<two> , "]),
]
STATE_CASES = [(form, text, *row) for form in FORMS for *row, texts in STATE_ROWS for text in texts] + [
    (ARRAY, '{"objects":', "no_json", 0, 0, "<open>"),
    (ARRAY, KEYED.answer(), "no_json", 0, 0, "<open>"),
    (ARRAY, ' {\n"objects" :[ ] ', "truncated_first_object", 0, 0, "<open>"),
    (ARRAY, '<open>{"desc": "<|coord_5|>', "malformed", 0, 0, "<open>"),  # stands for a value
    (KEYED, '<open>"object_1": {"bbox_2d": [<|coord_5|>', "malformed", 0, 0, "<open>"),  # stands for characters
    (KEYED, '<one>, "cat": 1}', "malformed", 1, 0, "<one>"),
    (KEYED, ARRAY.answer(), "malformed", 0, 0, "<open>"),
]
STATE_CASES = [case for case in STATE_CASES if case[0] in FORMS]


@pytest.mark.parametrize(("form", "response", "state", "kept", "dropped", "prefix"), STATE_CASES,
                         ids=[f"{form.name}-{state}-{place}" for place, (form, _, state, *_) in enumerate(STATE_CASES)])
def test_states(vocabulary, form, response, state, kept, dropped, prefix):
    ids = vocabulary.encode(filled(form, response))
    parsed = parse_rollout(ids, vocabulary, get_codec(form.name))
    assert (parsed.state, len(parsed.objects), len(parsed.dropped)) == (state, kept, dropped)
    assert vocabulary.written_all(parsed.prefix_ids).decode() == filled(form, prefix)
    match, target = follow(vocabulary, form, ids, [TRUTHS["fox"], TRUTHS["cat"]])
    assert (match.pairs, match.missed) == ((((0, 1),), (0,)) if kept else ((), (0, 1)))
    assert target.ids[: parsed.num_anchored] == parsed.prefix_ids[: parsed.num_anchored]
    assert vocabulary.written_all(target.ids).startswith(filled(form, prefix).encode())
    assert any(target.weights[: parsed.num_anchored]) == bool(kept)  # of a matched object alone
    assert target.weights[shown(vocabulary, target.ids).index("red") - 1] == (3.0 if dropped else 1.0)


def filled(form: Form, text: str) -> str:
    one, two = (form.answer(form.value("cat", CAT), *more).removesuffix(form.closing) for more in ((), ("[1, 2]",)))
    parts = {"open": form.opening, "close": form.closing, "one": one, "two": two, "half": one[:-1]}
    return re.sub(r"<(\w+)>", lambda found: parts[found.group(1)], text)


def test_every_state_and_reason_has_a_case():
    assert {state for state, *_ in STATE_ROWS} == set(STATES)
    assert set(DROP_CASES) == set(REASONS) - {"missing_score"}  # tests/unit/matching/test_scored.py has it


# --- every drop reason --------------------------------------------------------------------------------------------

BOXES = {"BOX": (1, 2, 3, 4), "SHORT": (1, 2, 3), "LONG": (1, 2, 3, 4, 5), "FLAT": (3, 2, 3, 4), "BACK": (1, 4, 3, 2)}
DROP_CASES = {
    "key_invalid": ["12", "[BOX]", '{"bbox_2d": SHORT, "score": 1}', '{"desc": "a", "desc": "a", "bbox_2d": BOX}'],
    "missing_desc": ["{}", '{"desc": 7, "bbox_2d": BOX}', '{"desc": "\\t\\u3000", "poly": BOX}'],
    "missing_geom": ['{"desc": "a"}'],
    "unknown_geom": ['{"desc": "a", "point_2d": BOX}', '{"desc": "a", "bbox_2d": BOX, "point_2d": BOX, "poly": BOX}'],
    "poly_unsupported": ['{"desc": "a", "poly": BOX}', '{"desc": "a", "poly": BOX, "bbox_2d": SHORT}'],
    "wrong_arity": [f'{{"desc": "a", "bbox_2d": {box}}}' for box in ("[]", "SHORT", "LONG", "[1, 2, 3]")],
    "non_coord_token": [f'{{"desc": "a", "bbox_2d": {box}}}' for box in ("[1, 2, 3, 4]", '["9", "8", "7", "6"]')],
    "bbox_invalid": ['{"desc": "a", "bbox_2d": FLAT}', '{"bbox_2d": BACK, "desc": "a"}'],
}


@both_forms
@pytest.mark.parametrize(("reason", "value"), [(reason, one) for reason in DROP_CASES for one in DROP_CASES[reason]])
def test_drop_reasons(vocabulary, form, value, reason):
    value = re.sub("[A-Z]{3,}", lambda name: form.box(*BOXES[name.group()]), value)
    ids = vocabulary.encode(form.answer(value, form.value("dog", CAT_SEEN)))
    parsed = parse_rollout(ids, vocabulary, get_codec(form.name))
    assert (parsed.state, parsed.dropped) == ("ok", (reason,))
    assert [(found.desc, found.box) for found in parsed.objects] == [("dog", CAT_SEEN)]
    match, target = follow(vocabulary, form, ids, [TRUTHS["fox"], TRUTHS["cat"]])
    assert match == Match(pairs=((0, 1),), missed=(0,), spurious=())
    assert set(target.weights[: parsed.num_anchored]) == {0.0, 1.0}
    assert set(target.weights[parsed.num_anchored :]) == {0.0, 0.5, 3.0, 1.0}


@both_forms
def test_the_letters_of_a_coordinate_token_are_no_coordinate(vocabulary, form):
    text = form.answer(form.value("cat", CAT)).encode()
    parsed = parse_rollout([vocabulary.byte_ids[byte] for byte in text], vocabulary, get_codec(form.name))
    found = ("malformed", ()) if form is ARRAY else ("ok", ("non_coord_token",))
    assert (parsed.state, parsed.dropped) == found and not parsed.objects


# --- tokens that are cut, characters that are split ---------------------------------------------------------------

HEADS = {"array": '{"~objects~":~ [', "keyed": '{"~object~_~1~":'}


@both_forms
@pytest.mark.parametrize(
    ("before", "cut", "kept"),
    # Half a character is no text of its own, and the tokenizer would write the other one composed.
    [(' "~\xc3', '\xa9",', b'\xa9"'), (' "', 'e\xcc\x81",', b'e\xcc\x81"')],
)
def test_the_cut_in_a_token_keeps_its_bytes(vocabulary, form, before, cut, kept):
    ids = spell(vocabulary, f"{HEADS[form.name]}~{before}~{cut}~ ")
    parsed = parse_rollout(ids, vocabulary, get_codec(form.name))
    assert (parsed.state, parsed.dropped) == ("truncated", ("key_invalid",))
    assert list(parsed.prefix_ids[: len(ids) - 2]) == ids[:-2]
    assert vocabulary.written_all(parsed.prefix_ids[len(ids) - 2 :]) == kept
    _, target = follow(vocabulary, form, ids, [TRUTHS["fox"]])
    assert vocabulary.written_all(target.ids).startswith(vocabulary.written_all(ids[:-2]) + kept)
    assert not any(target.weights[: parsed.num_anchored])
    assert target.seam_fallback == ("\xcc" in cut)  # one encoding of it all would compose the character
    assert target.seam_fallback == (target.ids[: len(parsed.prefix_ids)] == parsed.prefix_ids)


@both_forms
def test_a_character_across_tokens(vocabulary, form):
    box, between = (' "~bbox~_~2~d~":~ [', A_NEXT) if form is ARRAY else (' "~bbox~_~2~d~":~ ["', K_NEXT)
    corner_tokens = "~".join(tokens for tokens, *_ in corners(CAT_SEEN, between, 1))
    end = "]}]}" if form is ARRAY else '"]}}'
    ids = spell(vocabulary, f'{HEADS[form.name]}~ {{"~desc~":~ "\xe4~\xb8~\xad",~{box}~{corner_tokens}~{end}')
    (found,) = parse_rollout(ids, vocabulary, get_codec(form.name)).objects
    assert (found.desc, found.box) == ("\u4e2d", CAT_SEEN)
    _, target = follow(vocabulary, form, ids, [TRUTHS["cat"], Truth(desc="\u4e2d", box=FOX)])
    first = target.ids.index(spell(vocabulary, ' "\xe4')[0])
    # All three hold bytes of a description in the prefix, the first and the last beside structure.
    assert target.weights[first - 2 : first + 4] == (1.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    # Appended, the character stands as it is; the quote before it is a token of its own.
    appended = spell(vocabulary, '":~ "~\xe4~\xb8~\xad~",')
    place = next(t for t in range(len(target.ids)) if list(target.ids[t : t + 6]) == appended)
    assert target.weights[place : place + 6] == (1.0, 1.0, 0.5, 0.5, 0.5, 1.0)


@both_forms
@pytest.mark.parametrize(("end", "state"), [("\xc3", "truncated_first_object"), ('\xc3~",', "malformed")])
def test_half_a_character_is_no_text(vocabulary, form, end, state):
    parsed = parse_rollout(spell(vocabulary, f'{HEADS[form.name]}~ "~{end}'), vocabulary, get_codec(form.name))
    assert (parsed.state, parsed.objects, parsed.dropped) == (state, (), ())


# --- the match ----------------------------------------------------------------------------------------------------

WIDE, FAR = (0, 0, 100, 100), (40, 0, 120, 100)
BETWEEN, LEFT = (10, 0, 110, 100), (0, 0, 60, 100)  # IoU with WIDE 90/110 and 60/100, with FAR 70/110 and 20/120
MATCH_CASES = {
    # (predicted, true, changed costs, pairs)
    "cheapest together, not one by one": ([BETWEEN, LEFT], [WIDE, FAR], {}, ((0, 1), (1, 0))),
    "in another order": ([LEFT, BETWEEN], [FAR, WIDE], {}, ((0, 1), (1, 0))),
    "best candidate alone": ([BETWEEN, LEFT], [WIDE, FAR], {"candidate_top_k": 1}, ((0, 0),)),
    "at the gate": ([(0, 0, 30, 100)], [WIDE], {}, ((0, 0),)),
    "below the gate": ([(0, 0, 29, 100)], [WIDE], {}, ()),
    "dearer than alone": ([LEFT], [WIDE], {"fp_cost": 0.1, "fn_cost": 0.2}, ()),  # 1 - 0.6 > 0.1 + 0.2
}


@pytest.mark.parametrize(("predicted", "true", "changed", "pairs"), MATCH_CASES.values(), ids=MATCH_CASES)
def test_matches(predicted, true, changed, pairs):
    assert match_boxes(truths(predicted, "b"), truths(true), **COSTS | changed).pairs == pairs


def test_decoding_cannot_change_a_match(tmp_path):
    values = config_values(Quickstart(**dict.fromkeys(("model", "plain", "data"), Path("x"))), tmp_path, "run")
    drawn = {"decoding.temperature": 0.7, "decoding.top_p": 0.5, "decoding.top_k": 1, "repetition_penalty": 1.3}
    for changes in ({}, {f"custom.extra.rollout_matching.{key}": value for key, value in drawn.items()}):
        config = load_config(write_config(tmp_path / "c.yaml", merged(values, changes))).config
        assert {name: getattr(config.rollout_matching, name) for name in COSTS} == COSTS
    assert list(inspect.signature(match_boxes).parameters) == ["predicted", "truth", *COSTS]
    assert list(inspect.signature(parse_rollout).parameters) == ["token_ids", "vocabulary", "codec"]
