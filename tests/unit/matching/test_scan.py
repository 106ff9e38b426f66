from dataclasses import replace

from ds_stage2ab.codec.text import get_codec
from ds_stage2ab.matching.scan import scan

ARRAY = get_codec("array")
OPENING = b'{"objects": ['


def spelled(vocabulary, raw: bytes) -> list[int]:
    return [vocabulary.byte_ids[byte] for byte in raw]


def test_offsets_of_tokens_and_values(vocabulary):
    ids = [*vocabulary.encode("{"), *spelled(vocabulary, b'"objects":['), vocabulary.coordinate_ids[7]]
    found = scan([*ids, *vocabulary.encode(", 12 ]}")], vocabulary, ARRAY)
    assert found.opening_end == 12
    assert found.starts[11:14] == [11, 12, 23]  # "[", `<|coord_7|>` of 11 bytes, ","
    assert [(value.kind, value.first, value.last) for value in found.values] == [
        ("coordinate", 12, 23),
        ("number", 25, 27),
    ]
    assert (found.values[0].slot, found.values[0].number) == (12, 7)


def test_behind_the_close_counts_inside_the_last_token_too(vocabulary):
    close = vocabulary.token_bytes.index(b"]}")
    ids = [*spelled(vocabulary, OPENING), close]
    assert (scan(ids, vocabulary, ARRAY).ended, scan(ids, vocabulary, ARRAY).behind) == ("closed", False)
    assert scan([*ids, vocabulary.stop_id], vocabulary, ARRAY).behind
    longer = replace(vocabulary, token_bytes=(*vocabulary.token_bytes, b"}\n"))
    ids = [*spelled(vocabulary, OPENING + b"]"), len(vocabulary.token_bytes)]
    assert (scan(ids, longer, ARRAY).ended, scan(ids, longer, ARRAY).behind) == ("closed", True)


def test_keys_and_values_are_paired(vocabulary):
    (value,) = scan(spelled(vocabulary, OPENING + b'{"a": {"b": 1}, "c": [2, 3]}]}'), vocabulary, ARRAY).values
    assert [key.first for key in value.inside[::2]] == [14, 29]
    assert [child.kind for child in value.inside[1::2]] == ["object", "array"]
    assert [child.kind for child in value.inside[1].inside] == ["string", "number"]
    assert len(value.inside[3].inside) == 2


def test_a_coordinate_counts_by_its_text(vocabulary):
    # A coordinate of three digits and its separator are 13 + 2 bytes; the two brackets stand for the last separator.
    # 273 * 15 = 4,095 bytes; 274 are too many.
    def ids(count: int) -> list[int]:
        separator = [vocabulary.byte_ids[byte] for byte in b", "]
        inner = [token for _ in range(count) for token in (vocabulary.coordinate_ids[100], *separator)][:-2]
        opening = [vocabulary.byte_ids[byte] for byte in OPENING + b"["]
        return [*opening, *inner, *(vocabulary.byte_ids[byte] for byte in b"]]}")]

    (value,) = scan(ids(273), vocabulary, ARRAY).values
    assert value.last - value.first == 273 * 15
    assert scan(ids(274), vocabulary, ARRAY).ended == "refused"


def test_coordinates_stand_only_where_values_do(vocabulary):
    def ended(before: bytes, after: bytes) -> str:
        ids = [vocabulary.byte_ids[byte] for byte in OPENING + before]
        ids += [vocabulary.coordinate_ids[5], *(vocabulary.byte_ids[byte] for byte in after)]
        return scan(ids, vocabulary, ARRAY).ended

    assert ended(b"", b"]}") == "closed"
    assert ended(b"[", b"]]}") == "closed"
    assert ended(b"[1, ", b"]]}") == "closed"
    assert ended(b'{"a": ', b"}]}") == "closed"
    for before in (b'"', b'"a', b'"\\', b"1", b"tr", b"{", b'{"a"', b"[1", b'"a"', b"1,2 "):
        assert ended(before, b"") == "refused"
