import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.matching.scan import scan
from ds_stage2ab.ops.json_value import MAX_DEPTH, MAX_VALUE_BYTES

ARRAY = get_codec("array")
OPENING = b'{"objects": ['

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def scan_bytes(vocabulary, raw: bytes):
    return scan([vocabulary.byte_ids[byte] for byte in raw], vocabulary, ARRAY)


def complete(vocabulary, value: bytes) -> bool:
    """Whether `value` is read as one complete value."""
    found = scan_bytes(vocabulary, OPENING + value + b"]}")
    spans = [(node.first, node.last) for node in found.values]
    assert spans in ([], [(len(OPENING), len(OPENING) + len(value))])
    return found.ended == "closed" and bool(spans)


@pytest.mark.parametrize("number", ["0", "-0", "7", "10", "-12.50", "1e5", "1E+05", "0.0e-0", "120.5e3"])
def test_numbers(vocabulary, number):
    assert complete(vocabulary, number.encode())
    assert complete(vocabulary, f"[{number}]".encode())
    assert complete(vocabulary, f'{{"a":{number} ,"b":{number}}}'.encode())


@pytest.mark.parametrize(
    "number", ["01", "-", "+1", ".5", "1.", "1.e5", "1e", "1e+", "0x1", "--1", "1-1", "1e5.5", "NaN"]
)
def test_no_numbers(vocabulary, number):
    assert not complete(vocabulary, number.encode())
    assert not complete(vocabulary, f"[{number}]".encode())


@pytest.mark.parametrize(
    "value", ["true", "false", "null", "[ ]", "{ }", '{"a" : [ 1 , {} ] }', '"\\u00e9\\/"', '"\x7f"']
)
def test_other_values(vocabulary, value):
    assert complete(vocabulary, value.encode())


NO_VALUES = ["tru", "True", "nul", "[1,]", "[,1]", "[1 2]", "{1:2}", "{a:1}", "[}", "{]", "'a'", "/**/1", "[1}"]
NO_VALUES += ['{"a"}', '{"a":}', '{"a":1,}', '{"a":1]', '{"a":1 "b":2}', '"\\x"', '"\\u12g4"', '"\x1f"', '"\n"']


@pytest.mark.parametrize("value", NO_VALUES)
def test_no_values(vocabulary, value):
    assert not complete(vocabulary, value.encode())


@pytest.mark.parametrize(
    "raw",
    # truncated, overlong (two), a surrogate, above U+10FFFF, a lone continuation byte, impossible bytes (two)
    [
        b"\xc3",
        b"\xc0\x80",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\x80",
        b"\xff",
        b"\xf8\x88\x80\x80",
    ],
)
def test_invalid_utf8_ends_the_scan(vocabulary, raw):
    assert not complete(vocabulary, b'"' + raw + b'"')


@given(st.binary(max_size=6))
def test_strings_hold_what_python_decodes(vocabulary, raw):
    try:
        legal = not any(character in '"\\' or character < " " for character in raw.decode())
    except UnicodeDecodeError:
        legal = False
    if b'"' not in raw and b"\\" not in raw:
        assert complete(vocabulary, b'"' + raw + b'"') == legal


@given(JSON_VALUES, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_what_python_writes_is_read(vocabulary, value, indent, ascii_only):
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert complete(vocabulary, text.encode())


@given(st.lists(st.sampled_from(list('{}[],:"\\ue0123.5-+truefalsn ')), max_size=14).map("".join))
def test_python_accepts_and_refuses_the_same(vocabulary, text):
    try:
        json.loads(text)
        legal = True
    except ValueError:
        legal = False
    if text == text.strip(" ") and _depth(text) <= MAX_DEPTH:
        assert _one_value(vocabulary, text) == legal


def _one_value(vocabulary, text: str) -> bool:
    found = scan_bytes(vocabulary, OPENING + text.encode() + b"]}")
    spans = [(node.first, node.last) for node in found.values]
    return found.ended == "closed" and not found.behind and spans == [(len(OPENING), len(OPENING) + len(text.encode()))]


def _depth(text: str) -> int:
    return text.count("[") + text.count("{")


def test_depth_limit(vocabulary):
    assert complete(vocabulary, b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert complete(vocabulary, b'{"a":' * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH)
    assert not complete(vocabulary, b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))
    found = scan_bytes(vocabulary, OPENING + b"[" * 100_000)
    assert found.ended == "refused"


def test_length_limit(vocabulary):
    inside = MAX_VALUE_BYTES - 2
    assert complete(vocabulary, b'"' + b"a" * inside + b'"')
    assert not complete(vocabulary, b'"' + b"a" * (inside + 1) + b'"')
    assert complete(vocabulary, b"1" * MAX_VALUE_BYTES)
    assert not complete(vocabulary, b"1" * (MAX_VALUE_BYTES + 1))
    assert complete(vocabulary, b"[" + b" " * inside + b"]")
    # Blanks between values are outside of values.
    assert len(scan_bytes(vocabulary, OPENING + b" " * 9_000 + b"1" + b" " * 9_000 + b"]}").values) == 1
