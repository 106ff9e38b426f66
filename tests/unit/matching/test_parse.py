import json
import re
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.matching.parse import REASONS, STATES, parse_rollout
from tests.parts import as_tuples

ARRAY = get_codec("array")
OPENING = '{"objects": ['
CAT = '{"desc": "cat", "bbox_2d": [<|coord_1|>, <|coord_2|>, <|coord_3|>, <|coord_4|>]}'
BOX = "[<|coord_1|>, <|coord_2|>, <|coord_3|>, <|coord_4|>]"

BOXES = st.tuples(st.integers(0, 998), st.integers(0, 998)).flatmap(
    lambda low: st.tuples(st.just(low[0]), st.just(low[1]), st.integers(low[0] + 1, 999), st.integers(low[1] + 1, 999))
)
DESCS = st.text(st.characters(exclude_categories=["Cs", "M"]), min_size=1, max_size=12).filter(str.strip)
TRUTHS = st.lists(st.builds(Truth, desc=DESCS, box=BOXES), max_size=4)


def spell(vocabulary, text: str | bytes) -> list[int]:
    """Ids of a text: a coordinate token for each of its texts, single bytes for everything else."""
    raw = text if isinstance(text, bytes) else text.encode()
    ids = []
    for part in re.split(rb"(<\|coord_\d+\|>)", raw):
        number = re.fullmatch(rb"<\|coord_(\d+)\|>", part)
        if number:
            ids.append(vocabulary.coordinate_ids[int(number.group(1))])
        else:
            ids += [vocabulary.byte_ids[byte] for byte in part]
    return ids


def parse(vocabulary, text: str | bytes):
    return parse_rollout(spell(vocabulary, text), vocabulary, ARRAY)


def as_json(text: str):
    return json.loads(re.sub(r"<\|coord_(\d+)\|>", r"\1", text))


def test_a_whole_answer(vocabulary):
    dog = '{"bbox_2d": [<|coord_0|>,<|coord_0|>,<|coord_999|>,<|coord_999|>], "desc": "d\u00f6g"}'
    parsed = parse(vocabulary, f"{OPENING}{CAT}, {dog}]}}")
    assert [(found.desc, found.box) for found in parsed.objects] == [
        ("cat", (1, 2, 3, 4)),
        ("d\u00f6g", (0, 0, 999, 999)),
    ]
    assert parsed.state == "ok"
    assert parsed.dropped == ()
    assert parsed.prefix_ids == tuple(spell(vocabulary, f"{OPENING}{CAT}, {dog}"))


def test_spans_slots_and_token_ranges(vocabulary):
    # The opening is 13 bytes in 13 tokens. CAT: `{"desc": "` 10 bytes, `cat` 3, `", "bbox_2d": [` 15, then the
    # coordinates of 11 bytes and one token each with two bytes between: 13 + 28 = 41, then every third token.
    (found,) = parse(vocabulary, f"{OPENING}{CAT}]}}").objects
    assert found.span == (13, 13 + len(CAT))
    assert found.slots == (41, 44, 47, 50)
    assert found.tokens == (13, 53)  # 51 is "]" and 52 is "}"
    assert found.desc_span == (23, 26)


def test_a_token_belongs_to_the_region_of_its_first_byte(vocabulary):
    ids = vocabulary.encode(f"{OPENING}{CAT}]}}")
    (found,) = parse_rollout(ids, vocabulary, ARRAY).objects
    pieces = [vocabulary.written(token) for token in ids]
    # ` [{"` starts with a blank of the opening, so the object's first token is `desc`.
    assert pieces[found.tokens[0]] == b"desc"
    assert b"".join(pieces)[slice(*found.desc_span)] == b"cat"
    assert pieces[found.tokens[1] - 1] == b"]}"
    assert [pieces[slot] for slot in found.slots] == [f"<|coord_{k}|>".encode() for k in (1, 2, 3, 4)]


STATE_CASES = [
    # (text, state, kept, dropped, text of the prefix)
    ("", "no_json", 0, 0, OPENING),
    ("I see a cat", "no_json", 0, 0, OPENING),
    ('{"objects"', "no_json", 0, 0, OPENING),
    ('{"objects": ', "no_json", 0, 0, OPENING),
    ('{"objekts": [', "no_json", 0, 0, OPENING),
    ("[", "no_json", 0, 0, OPENING),
    ('{"objects": []}', "empty_answer", 0, 0, OPENING),
    (' \n{ "objects"\t:\r[ ] } ', "empty_answer", 0, 0, OPENING),  # nothing of it is kept: the codec's own
    ('{"objects": []}]', "empty_answer", 0, 0, OPENING),
    (f"{OPENING}{CAT}]}}", "ok", 1, 0, OPENING + CAT),
    (f"{OPENING}\n {CAT}\t,\r\n{CAT} ] }}", "ok", 2, 0, f"{OPENING}\n {CAT}\t,\r\n{CAT}"),
    (f"{OPENING}1]}}", "ok", 0, 1, OPENING + "1"),
    (f"{OPENING}{CAT}]}} ", "trailing_garbage", 1, 0, OPENING + CAT),
    (f"{OPENING}{CAT}]}}{OPENING}{CAT}]}}", "trailing_garbage", 1, 0, OPENING + CAT),
    (f"{OPENING}{CAT}]}}<|coord_5|>", "trailing_garbage", 1, 0, OPENING + CAT),
    (f"{OPENING}x", "malformed", 0, 0, OPENING),
    (f"{OPENING},", "malformed", 0, 0, OPENING),
    (f"{OPENING}{CAT},]}}", "malformed", 1, 0, OPENING + CAT),
    (f"{OPENING}{CAT} {CAT}", "malformed", 1, 0, OPENING + CAT),
    (f"{OPENING}{CAT}], ", "malformed", 1, 0, OPENING + CAT),
    (f'{OPENING}{CAT}, {{"desc": "a\nb"', "malformed", 1, 0, OPENING + CAT),
    (f"{OPENING}{CAT}<|coord_1|>", "malformed", 1, 0, OPENING + CAT),
    (f"{OPENING}1x", "malformed", 0, 0, OPENING),
    (OPENING, "truncated_first_object", 0, 0, OPENING),
    (f"{OPENING}]", "truncated_first_object", 0, 0, OPENING),
    (OPENING + CAT[:-1], "truncated_first_object", 0, 0, OPENING),
    (f"{OPENING}12", "truncated_first_object", 0, 0, OPENING),
    (OPENING + CAT, "truncated", 1, 0, OPENING + CAT),
    (f"{OPENING}{CAT}]", "truncated", 1, 0, OPENING + CAT),
    (f"{OPENING}{CAT}, {CAT[:-1]}", "truncated", 1, 0, OPENING + CAT),
    (f"{OPENING}{CAT}, 12", "truncated", 1, 0, OPENING + CAT),
    (f"{OPENING}{CAT}, 12 ", "truncated", 1, 1, f"{OPENING}{CAT}, 12"),
]


@pytest.mark.parametrize(("text", "state", "kept", "dropped", "prefix"), STATE_CASES, ids=range(len(STATE_CASES)))
def test_states(vocabulary, text, state, kept, dropped, prefix):
    parsed = parse(vocabulary, text)
    assert parsed.state == state
    assert (len(parsed.objects), len(parsed.dropped)) == (kept, dropped)
    assert vocabulary.written_all(parsed.prefix_ids) == prefix.encode()


def test_every_state_has_a_case():
    assert {state for _, state, *_ in STATE_CASES} == set(STATES)


REASON_CASES = [
    ("12", "key_invalid"),
    ('"cat"', "key_invalid"),
    ("null", "key_invalid"),
    ("[]", "key_invalid"),
    ("<|coord_5|>", "key_invalid"),
    (f'{{"desc": "a", "desc": "a", "bbox_2d": {BOX}}}', "key_invalid"),
    (f'{{"desc": "a", "d\\u0065sc": "a", "bbox_2d": {BOX}}}', "key_invalid"),
    (f'{{"desc": "a", "bbox_2d": {BOX}, "score": 1}}', "key_invalid"),
    (f'{{"Desc": "a", "bbox_2d": {BOX}}}', "key_invalid"),
    ('{"color": 1}', "key_invalid"),  # before missing_desc
    ("{}", "missing_desc"),
    (f'{{"bbox_2d": {BOX}}}', "missing_desc"),
    (f'{{"desc": 7, "bbox_2d": {BOX}}}', "missing_desc"),
    (f'{{"desc": <|coord_7|>, "bbox_2d": {BOX}}}', "missing_desc"),
    (f'{{"desc": "", "bbox_2d": {BOX}}}', "missing_desc"),
    (f'{{"desc": " \\t\\u3000", "bbox_2d": {BOX}}}', "missing_desc"),
    ('{"poly": []}', "missing_desc"),  # before the geometry
    ('{"desc": "a"}', "missing_geom"),
    (f'{{"desc": "a", "bbox": {BOX}}}', "unknown_geom"),
    (f'{{"desc": "a", "bbox_2d": {BOX}, "point_2d": []}}', "unknown_geom"),
    ('{"desc": "a", "poly": [], "box": []}', "unknown_geom"),  # before poly_unsupported
    (f'{{"desc": "a", "poly": {BOX}}}', "poly_unsupported"),
    (f'{{"desc": "a", "bbox_2d": {BOX}, "poly": []}}', "poly_unsupported"),
    ('{"desc": "a", "bbox_2d": []}', "wrong_arity"),
    ('{"desc": "a", "bbox_2d": [<|coord_1|>, <|coord_2|>, <|coord_3|>]}', "wrong_arity"),
    ('{"desc": "a", "bbox_2d": [1, 2, 3, 4, 5]}', "wrong_arity"),  # before non_coord_token
    ('{"desc": "a", "bbox_2d": <|coord_1|>}', "wrong_arity"),
    ('{"desc": "a", "bbox_2d": "<>"}', "wrong_arity"),
    ('{"desc": "a", "bbox_2d": [1, 2, 3, 4]}', "non_coord_token"),
    ('{"desc": "a", "bbox_2d": [<|coord_1|>, <|coord_2|>, <|coord_3|>, 4]}', "non_coord_token"),
    ('{"desc": "a", "bbox_2d": [<|coord_1|>, <|coord_2|>, <|coord_3|>, [<|coord_4|>]]}', "non_coord_token"),
    ('{"desc": "a", "bbox_2d": [<|coord_3|>, <|coord_2|>, <|coord_3|>, <|coord_4|>]}', "bbox_invalid"),
    ('{"desc": "a", "bbox_2d": [<|coord_1|>, <|coord_5|>, <|coord_3|>, <|coord_4|>]}', "bbox_invalid"),
]


@pytest.mark.parametrize(("value", "reason"), REASON_CASES, ids=range(len(REASON_CASES)))
def test_reasons(vocabulary, value, reason):
    parsed = parse(vocabulary, f"{OPENING}{CAT}, {value}, {CAT}]}}")
    assert parsed.dropped == (reason,)
    assert len(parsed.objects) == 2
    assert parsed.state == "ok"
    assert vocabulary.written_all(parsed.prefix_ids) == f"{OPENING}{CAT}, {value}, {CAT}".encode()


def test_every_reason_has_a_case():
    assert {reason for _, reason in REASON_CASES} == set(REASONS) - {"missing_score"}  # test_scored.py has it


def test_escapes_are_read_and_half_a_pair_is_replaced(vocabulary):
    def desc(inside: str) -> str:
        return parse(vocabulary, f'{OPENING}{{"desc": "{inside}", "bbox_2d": {BOX}}}]}}').objects[0].desc

    assert desc('a\\"\\\\\\/\\b\\f\\n\\r\\t') == 'a"\\/\b\f\n\r\t'
    assert desc("\\u4e2d \\ud83d\\ude00") == "\u4e2d \U0001f600"
    assert desc("a\\ud83d") == "a\ufffd"
    assert desc("\\uDE00 b") == "\ufffd b"


@pytest.mark.parametrize("token_text", ["<|im_end|>", "<|image_pad|>", "<|im_start|>", "<think>"])
def test_a_special_token_ends_the_scan(tokenizer, vocabulary, token_text):
    special = tokenizer.convert_tokens_to_ids(token_text)
    inside = [*spell(vocabulary, f'{OPENING}{CAT}, {{"desc": "a'), special, *spell(vocabulary, f'", {CAT}]}}')]
    assert parse_rollout(inside, vocabulary, ARRAY).state == "malformed"
    assert len(parse_rollout(inside, vocabulary, ARRAY).objects) == 1
    behind = [*spell(vocabulary, f"{OPENING}{CAT}]}}"), special]
    assert parse_rollout(behind, vocabulary, ARRAY).state == "trailing_garbage"
    assert parse_rollout([special], vocabulary, ARRAY).state == "no_json"
    assert parse_rollout([10**6], vocabulary, ARRAY).state == "no_json"  # an id beyond the tokenizer


def test_the_text_of_a_coordinate_token_is_no_coordinate(vocabulary):
    ids = [vocabulary.byte_ids[byte] for byte in f"{OPENING}{CAT}]}}".encode()]
    parsed = parse_rollout(ids, vocabulary, ARRAY)
    assert parsed.state == "malformed"
    assert parsed.objects == ()


def test_a_cut_inside_a_token_spells_only_that_token_again(vocabulary):
    # The last value ends inside `]}`.
    fused = vocabulary.token_bytes.index(b"]}")
    ids = [*spell(vocabulary, f"{OPENING}["), fused]
    parsed = parse_rollout(ids, vocabulary, ARRAY)
    assert (parsed.state, parsed.dropped) == ("malformed", ("key_invalid",))
    assert parsed.prefix_ids == (*ids[:-1], vocabulary.byte_ids[ord("]")])


def test_a_cut_inside_a_token_that_is_no_text_is_spelled_byte_by_byte(vocabulary):
    # A token that no tokenizer writes here: the last byte of a character, the end of the object, more.
    new = len(vocabulary.token_bytes)
    odd = replace(vocabulary, token_bytes=(*vocabulary.token_bytes, b"\xa9 1, x"))
    ids = [*spell(vocabulary, OPENING + '{"desc": "caf'), vocabulary.byte_ids[0xC3], new]
    assert parse_rollout(ids, odd, ARRAY).prefix_ids == tuple(vocabulary.encode(OPENING))
    odd = replace(vocabulary, token_bytes=(*vocabulary.token_bytes, b'\xa9"]}'))
    ids = [*spell(vocabulary, OPENING + '"caf'), vocabulary.byte_ids[0xC3], new]
    parsed = parse_rollout(ids, odd, ARRAY)
    assert parsed.dropped == ("key_invalid",)
    assert parsed.prefix_ids == (*ids[:-1], vocabulary.byte_ids[0xA9], vocabulary.byte_ids[ord('"')])


@given(TRUTHS)
def test_what_was_encoded_is_read_back(vocabulary, truths):
    answer = as_tuples(encode_answer(truths, vocabulary, ARRAY))
    parsed = parse_rollout(answer.ids[:-1], vocabulary, ARRAY)
    expected = [(vocabulary.normalise(truth.desc), truth.box) for truth in truths]
    assert [(found.desc, found.box) for found in parsed.objects] == expected
    assert parsed.dropped == ()
    assert parsed.state == ("ok" if truths else "empty_answer")
    assert [slot for found in parsed.objects for slot in found.slots] == list(answer.slots)
    starts = accumulate(map(len, map(vocabulary.written, answer.ids[:-1])), initial=0)
    spans = [found.desc_span for found in parsed.objects]
    in_descs = [t for t, start in enumerate(starts) if any(first <= start < last for first, last in spans)]
    assert in_descs == [t for t, inside in enumerate(answer.is_desc) if inside]


@given(TRUTHS, st.data())
def test_a_cut_at_any_token_keeps_what_was_complete(vocabulary, truths, data):
    ids = as_tuples(encode_answer(truths, vocabulary, ARRAY)).ids[:-1]
    whole = parse_rollout(ids, vocabulary, ARRAY)
    num_kept = data.draw(st.integers(0, len(ids)))
    ends = list(accumulate(len(vocabulary.written(token)) for token in ids[:num_kept]))
    num_bytes = ends[-1] if ends else 0
    parsed = parse_rollout(ids[:num_kept], vocabulary, ARRAY)
    complete = [found for found in whole.objects if found.span[1] <= num_bytes]
    assert list(parsed.objects) == complete
    prefix = vocabulary.written_all(parsed.prefix_ids)
    if num_bytes < len(OPENING):
        assert parsed.state == "no_json"
    elif num_bytes == len(vocabulary.written_all(ids)):
        assert parsed.state == whole.state
    else:
        assert parsed.state == ("truncated" if complete else "truncated_first_object")
        assert prefix == vocabulary.written_all(ids)[: complete[-1].span[1] if complete else len(OPENING)]


WORDS = [
    OPENING,
    CAT,
    BOX,
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    ", ",
    " ",
    "\n",
    '"',
    "\\",
    "\\u00",
    "\\ud83d",
    '"desc"',
    '"a"',
]
WORDS += [
    '"bbox_2d": ',
    "<|coord_0|>",
    "<|coord_999|>",
    "-",
    "0",
    "12",
    ".5",
    "e+3",
    "true",
    "null",
    "tru",
    "\u00e9",
    "]}",
]
WORDS += ['{"desc": "a", "bbox_2d": ', '{"desc": "\u4e2d", "poly": [1], "bbox_2d": ' + BOX + "}"]
FRAGMENTS = st.sampled_from(WORDS)
RAW = st.lists(FRAGMENTS.map(str.encode) | st.binary(min_size=1, max_size=2), max_size=12).map(b"".join)


@given(RAW, st.booleans(), st.booleans())
@example(b"1,2 ,3", True, False)
@example(b'{"desc": "a", "bbox_2d": ' + BOX.encode() + b"}\xff", True, False)
def test_anything_gives_a_prefix_that_can_be_closed(vocabulary, raw, opened, tokenised):
    text = OPENING.encode() + raw if opened else raw
    ids = spell(vocabulary, text)
    if tokenised:
        ids = vocabulary.encode(text.decode(errors="replace"))
        text = vocabulary.written_all(ids)
    parsed = parse_rollout(ids, vocabulary, ARRAY)
    prefix = vocabulary.written_all(parsed.prefix_ids)
    assert parsed.state in STATES
    assert set(parsed.dropped) <= set(REASONS)
    if parsed.value_ends:
        assert text.startswith(prefix) and len(prefix) == parsed.value_ends[-1]
        assert parsed.prefix_ids[: parsed.num_whole] == tuple(ids[: parsed.num_whole])
        assert parsed.num_anchored <= parsed.num_whole
    else:
        assert (list(parsed.prefix_ids), parsed.num_whole) == (vocabulary.encode(OPENING), 0)
    # The prefix and the close are one document of the same values for every parser.
    closed = parse_rollout([*parsed.prefix_ids, *spell(vocabulary, "]}")], vocabulary, ARRAY)
    assert closed.state == ("ok" if parsed.objects or parsed.dropped else "empty_answer")
    assert (closed.objects, closed.dropped) == (parsed.objects, parsed.dropped)
    values = as_json(prefix.decode() + "]}")["objects"]
    assert len(values) == len(parsed.objects) + len(parsed.dropped)


@given(st.lists(st.integers(0, 1400), max_size=30), st.booleans())
def test_random_ids_never_raise(vocabulary, ids, opened):
    parsed = parse_rollout([*(spell(vocabulary, OPENING) if opened else []), *ids], vocabulary, ARRAY)
    assert parsed.state in STATES


@given(RAW, RAW)
def test_what_is_behind_the_close_changes_nothing_but_the_state(vocabulary, raw, tail):
    before = parse(vocabulary, OPENING.encode() + raw + b"]}")
    after = parse(vocabulary, OPENING.encode() + raw + b"]}" + tail)
    if before.state == "ok" and tail:
        assert after.state == "trailing_garbage"
        assert (after.objects, after.dropped, after.prefix_ids) == (before.objects, before.dropped, before.prefix_ids)
