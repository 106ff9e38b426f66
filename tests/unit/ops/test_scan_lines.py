"""The compiled scan of lines against the plain Python one: by hand, on random tokens, and when refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab import ops
from ds_stage2ab.ops import reference
from tests.unit.ops.cases import table_of
from tests.unit.ops.test_scan_rollout import IDS, PIECES, TABLE, spelled

SPECIAL = PIECES.index(b"")
SEVEN = PIECES.index(b"<|coord_7|>")
USUAL = st.sampled_from([SEVEN] * 6 + [ord("a"), ord("\n"), ord("\n")])
MIXED = st.lists(USUAL | IDS.map(lambda ids: ids[0] if ids else 0), max_size=60)


def both(ids: list[int], table=TABLE, per_value: int = 4) -> list[list]:
    """What the two find; they must agree in everything."""
    tensor = torch.tensor(ids, dtype=torch.int64)
    compiled, plain = ops.scan_lines(tensor, *table, per_value), reference.scan_lines(tensor, *table, per_value)
    for one, other in zip(compiled, plain, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other), (one.tolist(), other.tolist())
    return [part.tolist() for part in compiled]


def ended(ids: list[int]) -> str:
    return reference.ENDED[both(ids)[3][1]]


def values(text: str) -> list[tuple[str, str, int]]:
    """(the value's own bytes, its description, how many coordinates) of each."""
    nodes, raw, *_ = both(spelled(text))
    found = []
    for row, (kind, first, last, parent, *_) in enumerate(nodes):
        if parent < 0:
            assert kind == reference.KINDS.index("array")
            inside = [node for node in nodes if node[3] == row]
            assert [reference.KINDS[node[0]] for node in inside] == ["string"] + ["coordinate"] * (len(inside) - 1)
            desc = bytes(raw[slice(*inside[0][1:3])]).decode()
            found.append((bytes(raw[first:last]).decode().replace("<|coord_7|>", "@"), desc, len(inside) - 1))
    return found


def test_every_node_by_hand():
    # "ab" 0, two boxes of four coordinates of 11 bytes 2 and 46, newline 90, a box without a description 91, and 135
    nodes, text, starts, summary = both(spelled("ab@7@7@7@7@7@7@7@7\n@7@7@7@7\n"))
    array, string, coordinate = (reference.KINDS.index(kind) for kind in ("array", "string", "coordinate"))
    assert nodes == [
        [array, 0, 46, -1, -1, -1],
        [string, 0, 2, 0, -1, -1],
        *([coordinate, 2 + 11 * n, 13 + 11 * n, 0, 2 + n, 7] for n in range(4)),
        [array, 46, 90, -1, -1, -1],  # the second box begins with its first coordinate
        [string, 0, 2, 6, -1, -1],
        *([coordinate, 46 + 11 * n, 57 + 11 * n, 6, 6 + n, 7] for n in range(4)),
        [array, 91, 135, -1, -1, -1],
        [string, 91, 91, 12, -1, -1],
        *([coordinate, 91 + 11 * n, 102 + 11 * n, 12, 11 + n, 7] for n in range(4)),
    ]
    assert bytes(text).startswith(b"ab<|coord_7|>") and starts[:4] == [0, 1, 2, 13] and starts[-1] == 136
    assert summary == [0, reference.ENDED.index("end"), 0]


def test_values():
    four = "@7@7@7@7"
    assert values(f"cat{four}\ndog{four}") == [("cat@@@@", "cat", 4), ("dog@@@@", "dog", 4)]
    assert values(f"{four}{four}") == [("@@@@", "", 4), ("@@@@", "", 4)]
    assert values(f"a{four}@7@7\nb{four}") == [("a@@@@", "a", 4)]
    assert values(f"some words\na{four}") == []
    assert values(f'{{"objects": [ "x]}}{four}') == [('{"objects": [ "x]}@@@@', '{"objects": [ "x]}', 4)]
    assert values(f"a{four}\n\nb{four}") == [("a@@@@", "a", 4)]  # an empty line ends it
    assert values("") == values("cat") == values("cat@7@7@7") == values("\ncat\n") == []


@pytest.mark.parametrize(
    ("text", "how"),
    [
        ("", "closed"),
        ("cat@7@7@7@7", "closed"),
        ("@7@7@7@7", "closed"),
        ("a@7@7@7@7\nb@7@7@7@7@7@7@7@7", "closed"),
        ("cat", "end"),
        ("cat@7@7@7", "end"),
        ("cat@7@7@7@7@7", "end"),
        ("cat@7@7@7@7\n", "end"),
        ("cat\n", "refused"),
        ("cat@7@7@7\n", "refused"),
        ("\u4e2d", "end"),
        ("\n", "refused"),
        ("cat@7 ", "refused"),
        ("cat@7@7@7@7 ", "refused"),
        ("cat@7@7@7@7dog", "refused"),
        ("cat@7@7@7@7\n\n", "refused"),
    ],
)
def test_how_it_ends(text: str, how: str):
    assert ended(spelled(text)) == how


def test_what_ends_the_scan():
    assert ended([*spelled("cat"), SPECIAL]) == ended([*spelled("cat@7@7@7@7"), SPECIAL]) == "refused"
    assert ended([*spelled("cat@7@7@7@7"), -1]) == ended([10**6]) == "refused"
    assert ended([len(PIECES) - 1]) == "closed"  # text of no bytes is nothing
    for broken in ([0x80], [0xC3, ord("a")], [0xC3, ord("\n")], [0xE4, 0xB8, SEVEN], [0xED, 0xA0], [0xFF], [0xC1]):
        assert ended(broken) == "refused"
    assert ended([0xC3]) == ended([0xC3, 0xA9, 0xF0, 0x9F]) == "end"


@pytest.mark.parametrize("length", [4096, 4097])
def test_length(length: int):
    for text in ("a" * length, "\u00e9" * (length // 2) + "a" * (length % 2)):
        for first in ("", "b@7@7@7@7\n"):
            assert ended(spelled(first + text)) == ("end" if length == 4096 else "refused")


@given(ids=MIXED)
def test_random_tokens(ids: list[int]):
    both(ids)


def test_what_does_not_fit_is_refused():
    ids, (table, offsets, kinds) = torch.tensor([1]), table_of(b"[", b"1]")
    for sentence, arguments in {
        "token_ids must be int64 with 1 axis, not int32 with 1": (ids.int(), table, offsets, kinds),
        "table must be uint8 with 1 axis, and offsets one longer": (ids, table, offsets[1:], kinds),
        "offsets must ascend from 0 to 3, the number of bytes": (ids, table, torch.tensor([0, 2, 1]), kinds),
    }.items():
        for code in (torch.ops.ds_stage2ab.scan_lines, reference.scan_lines):
            with pytest.raises(ValueError, match=sentence):
                code(*arguments, 4)


def test_values_of_five_coordinates():
    nodes, *_, summary = both(spelled("ab@7@7@7@7@7@7@7@7@7@7\nab@7@7@7@7"), per_value=5)
    assert [node[1:3] for node in nodes if node[3] < 0] == [[0, 57], [57, 112]]
    assert summary[1] == reference.ENDED.index("end"), "four are no value"


@pytest.mark.parametrize("code", [torch.ops.ds_stage2ab.scan_lines, reference.scan_lines])
def test_values_of_no_coordinate_are_refused(code):
    with pytest.raises(ValueError, match="num_coordinates must be positive"):
        code(torch.tensor([1]), *TABLE, 0)
