"""The compiled scan, here against the plain Python one: by hand, on random bytes and near misses, and when refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab import ops
from ds_stage2ab.codec.text import CODECS
from ds_stage2ab.ops import reference
from tests.unit.ops.cases import table_of

ARRAY, KEYED = CODECS["array"].grammar, CODECS["keyed"].grammar
# Any single byte, fragments of answers, coordinate tokens, a special token, one of no bytes.
FRAGMENTS = (
    *(b'{"objects": [', b'{"', b'{"desc": "', b'", "bbox_2d": [', b'"object_', b'"object_1": ', b'"object_20":'),
    *(b"]}, ", b"]}", b'"]}, ', b'["', b'", "', b"null", b"true", b"fals", b"-1", b"1.5e", b"0", b"\\u00e9", b'\\"'),
    *("\u4e2d".encode(), "\u00e9".encode()[1:], "\U0001f600".encode()[:2], b"}, {", b"]]", b"[[[[[[[["),
)
BINS = (0, 7, 999)
PIECES = (*(bytes([byte]) for byte in range(256)), *FRAGMENTS, *(f"<|coord_{k}|>".encode() for k in BINS), b"", b"")
KINDS = [-1] * (256 + len(FRAGMENTS)) + [*BINS, -2, -1]
TABLE = table_of(*PIECES, kinds=KINDS)
CLOSE_TO_JSON = [*b' \n{}[]",:\\untrue019-+.eE', *range(256, len(PIECES))]
IDS = st.lists(st.sampled_from(CLOSE_TO_JSON) | st.integers(-2, len(PIECES) + 1), max_size=60)
OPENED = {"array": [256], "keyed": [ord("{")]}


def both(ids: list[int], grammar, table=TABLE) -> list[list]:
    """What the two find; they must agree in everything."""
    tensor = torch.tensor(ids, dtype=torch.int64)
    compiled = ops.scan_rollout(tensor, *table, **grammar)
    plain = reference.scan_rollout(tensor, *table, *grammar.values())
    for one, other in zip(compiled, plain, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other), (one.tolist(), other.tolist())
    return [part.tolist() for part in compiled]


def spelled(text: str) -> list[int]:
    """Ids of single bytes; `@7` is the coordinate token of bin 7."""
    ids: list[int] = []
    for part in text.replace("@", "\0@").split("\0"):
        if part.startswith("@"):
            ids.append(PIECES.index(b"<|coord_7|>"))
            part = part[2:]
        ids += part.encode()
    return ids


def test_every_node_by_hand():
    # offsets: { 0, "objects" 1, : 10, [ 11, { 12, "a" 13, : 16, [ 17, a coordinate of 11 bytes 18, comma 29, 1 30, ] 31
    nodes, text, starts, summary = both(spelled('{"objects":[{"a":[@7,1]},"b"]}'), ARRAY)
    kinds = ["object", "string", "array", "coordinate", "number", "string"]
    slot = 18  # eighteen tokens of one byte stand before the coordinate
    assert nodes == [
        [reference.KINDS.index(kind), *rest]
        for kind, rest in zip(
            kinds,
            [
                (12, 33, -1, -1, -1),
                (13, 16, 0, -1, -1),
                (17, 32, 0, -1, -1),
                (18, 29, 2, slot, 7),
                (30, 31, 2, -1, -1),
                (34, 37, -1, -1, -1),
            ],
            strict=True,
        )
    ]
    assert bytes(text) == b'{"objects":[{"a":[<|coord_7|>,1]},"b"]}'
    assert starts[18:20] == [18, 29] and starts[-1] == len(text)
    assert summary == [12, reference.ENDED.index("closed"), 0]


def test_a_coordinate_is_characters_of_a_string_in_the_keyed_form():
    nodes, _, _, summary = both(spelled('{"object_5": ["@7", "x@7", "@7 ", "@7@7", ""]}'), KEYED)
    assert summary[1] == reference.ENDED.index("closed")
    assert nodes[0][5] == 5  # the number of its key
    # `{"object_5": ["` are 15 tokens; the second coordinate does not begin its string, the others do not fill theirs
    assert [node[4:] for node in nodes[1:]] == [[15, 7], [-1, -1], [-1, -1], [-1, -1], [-1, -1]]


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ('{"object_1": 1, "object_02"', "refused"),
        ('{"object_1234567890', "refused"),
        ('{"object_"', "refused"),
        ('{"object_1 "', "refused"),
        ('{"Object_1"', "refused"),
        ('{"object_@7"', "refused"),
        ('{"object_1": @7', "refused"),
        ('{"object_1": "\\@7', "refused"),
        ('{"object_1": 1,}', "refused"),
        ('{"object_1": 1 1', "refused"),
        ('{ "object_0"\n:\t1\r}', "closed"),
        ('{"object_123456789": 1}', "closed"),
        ('{"object_1": 1', "end"),
        ("{}", "closed"),
    ],
)
def test_keys(text: str, ended: str):
    assert both(spelled(text), KEYED)[3][1] == reference.ENDED.index(ended)


@pytest.mark.parametrize("name", OPENED)
@given(opened=st.booleans(), ids=IDS)
def test_random_tokens(name: str, opened: bool, ids: list[int]):
    both(OPENED[name] * opened + ids, CODECS[name].grammar)


@pytest.mark.parametrize("depth", [8, 9])
@pytest.mark.parametrize("grammar", [ARRAY, KEYED], ids=["array", "keyed"])
def test_depth(grammar, depth: int):
    opening = '{"objects": [' if grammar is ARRAY else '{"object_1": '
    closing = "]}" if grammar is ARRAY else "}"
    ended = both(spelled(opening + "[" * depth + "]" * depth + closing), grammar)[3][1]
    assert ended == reference.ENDED.index("closed" if depth == 8 else "refused")


@pytest.mark.parametrize("length", [4096, 4097])
def test_length(length: int):
    """A string, a number, and coordinates at the limit of bytes."""
    for value in ('"' + "a" * (length - 2) + '"', "1" * length, "[" + " " * (length - 13) + "@7]"):
        ended = both(spelled('{"objects": [' + value + "]}"), ARRAY)[3][1]
        assert ended == reference.ENDED.index("closed" if length == 4096 else "refused")


def refused(sentence: str, *arguments):
    for code in (torch.ops.ds_stage2ab.scan_rollout, reference.scan_rollout):
        with pytest.raises(ValueError, match=sentence):
            code(*arguments)


def test_what_does_not_fit_is_refused():
    ids, (table, offsets, kinds) = torch.tensor([1]), table_of(b"[", b"1]")
    words = ("[", "]", "", False)
    refused("token_ids must be int64 with 1 axis, not int32 with 1", ids.int(), table, offsets, kinds, *words)
    refused("kinds must be int64 with 1 axis, not int64 with 2", ids, table, offsets, kinds[None], *words)
    refused("table must be uint8 with 1 axis, and offsets one longer", ids, table.long(), offsets, kinds, *words)
    refused("table must be uint8 with 1 axis, and offsets one longer", ids, table, offsets[1:], kinds, *words)
    refused("opening and closing must hold a lexeme each", ids, table, offsets, kinds, " ", "]", "", False)
    for bad in ([0, 1, 4], [0, -1, 3], [0, 2, 1]):
        refused("offsets must ascend from 0 to 3, the number of bytes", ids, table, torch.tensor(bad), kinds, *words)
