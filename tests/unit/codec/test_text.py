import json
import re
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.text import Piece, encode_answer, encode_pieces, get_codec
from ds_stage2ab.errors import ConfigError, DataError
from tests.parts import as_tuples
from tests.unit.conftest import SPECIALS

ARRAY = get_codec("array")
CAT = Truth(desc="black cat", box=(110, 310, 410, 705))
DOG = Truth(desc="\u4e2d\u6587", box=(0, 1, 998, 999))

DESCS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
HOSTILE = st.lists(st.sampled_from([*SPECIALS, "<think>", "<|coord_7|>", '"', "\\", "]}", ", ", "\u00e9", "e\u0301"]))
BOXES = st.tuples(st.integers(0, 998), st.integers(0, 998)).flatmap(
    lambda low: st.tuples(st.just(low[0]), st.just(low[1]), st.integers(low[0] + 1, 999), st.integers(low[1] + 1, 999))
)
TRUTHS = st.builds(Truth, desc=DESCS | HOSTILE.map("".join), box=BOXES)


def answer_of(truths, vocabulary, codec):
    return as_tuples(encode_answer(truths, vocabulary, codec))


def test_the_text_of_the_contract(vocabulary):
    answer = answer_of([CAT, DOG], vocabulary, ARRAY)
    expected = (
        '{"objects": [{"desc": "black cat", "bbox_2d": [<|coord_110|>, <|coord_310|>, <|coord_410|>, <|coord_705|>]}, '
        '{"desc": "\u4e2d\u6587", "bbox_2d": [<|coord_0|>, <|coord_1|>, <|coord_998|>, <|coord_999|>]}]}'
    )
    assert vocabulary.written_all(answer.ids) == expected.encode()
    assert answer.ids[-1] == vocabulary.stop_id
    assert answer.ids.count(vocabulary.stop_id) == 1


def test_no_objects(vocabulary):
    answer = answer_of([], vocabulary, ARRAY)
    assert vocabulary.written_all(answer.ids) == b'{"objects": []}'
    assert answer.slots == answer.bins == ()
    assert not any(answer.is_desc)


def test_ids_are_those_of_one_call_of_the_tokenizer(tokenizer, vocabulary):
    answer = answer_of([CAT], vocabulary, ARRAY)
    text = vocabulary.written_all(answer.ids).decode()
    assert list(answer.ids) == tokenizer.encode(text + "<|im_end|>", add_special_tokens=False)


def test_slots_and_bins(vocabulary):
    answer = answer_of([CAT, DOG], vocabulary, ARRAY)
    assert answer.bins == (110, 310, 410, 705, 0, 1, 998, 999)
    assert [answer.ids[slot] for slot in answer.slots] == [vocabulary.coordinate_ids[k] for k in answer.bins]
    assert [place for place, coordinate in enumerate(answer.is_coord) if coordinate] == list(answer.slots)


def test_a_token_takes_the_region_of_its_first_byte(vocabulary):
    answer = answer_of([CAT], vocabulary, ARRAY)
    desc = b"".join(vocabulary.written(answer.ids[t]) for t, inside in enumerate(answer.is_desc) if inside)
    assert desc == b"black cat"  # the closing quote is fused with the comma and is structure
    # Here the opening quote and the first word are one token, whose first byte is the quote: structure.
    pieces = [Piece(' "', "structure"), Piece("cat", "desc"), Piece('"', "structure")]
    fused = _with_fused_token(vocabulary, ' "cat')
    assert as_tuples(encode_pieces(pieces, fused)).is_desc == (False, False)


def _with_fused_token(vocabulary, text):
    """The same vocabulary in which `text` and a quote are two tokens."""
    new = len(vocabulary.token_bytes)
    quote = vocabulary.byte_ids[ord('"')]
    return replace(vocabulary, token_bytes=(*vocabulary.token_bytes, text.encode()), encode=lambda _: [new, quote])


@pytest.mark.parametrize("text", [*SPECIALS, "<think>", "<|coord_7|>", "a <|coord_7|> b"])
def test_a_description_never_becomes_a_special_token(vocabulary, text):
    answer = answer_of([Truth(desc=text, box=(1, 2, 3, 4))], vocabulary, ARRAY)
    assert answer.bins == (1, 2, 3, 4)
    assert sum(vocabulary.bytes_of(token) is None for token in answer.ids) == 5  # four coordinates, one end of turn
    assert _read_back(vocabulary, answer)[0]["desc"] == text


def test_descriptions_are_written_in_the_tokenizers_normal_form(vocabulary):
    answer = answer_of([Truth(desc="cafe\u0301", box=(1, 2, 3, 4))], vocabulary, ARRAY)
    assert "caf\u00e9".encode() in vocabulary.written_all(answer.ids)
    assert sum(answer.is_desc) == len(vocabulary.encode("caf\u00e9"))


@given(st.lists(TRUTHS, max_size=4))
def test_any_description_reads_back(vocabulary, truths):
    answer = answer_of(truths, vocabulary, ARRAY)
    expected = [{"desc": unicodedata.normalize("NFC", t.desc), "bbox_2d": list(t.box)} for t in truths]
    assert _read_back(vocabulary, answer) == expected
    assert len(answer.ids) == len(answer.is_desc) == len(answer.is_coord)
    assert not any(desc and coordinate for desc, coordinate in zip(answer.is_desc, answer.is_coord, strict=True))


def test_text_that_cannot_be_written_is_refused(vocabulary):
    with pytest.raises(DataError, match="cannot write this answer exactly"):
        encode_pieces([Piece("a <think> b", "desc")], vocabulary)
    with pytest.raises(DataError, match="cannot write this answer exactly"):
        encode_pieces([Piece("<|coord_7|>", "desc")], vocabulary)


def test_an_unknown_codec_is_refused():
    with pytest.raises(ConfigError, match="no codec 'xml'"):
        get_codec("xml")


def _read_back(vocabulary, answer):
    text = vocabulary.written_all(answer.ids).decode()
    return json.loads(re.sub(r"<\|coord_(\d+)\|>", r"\1", text))["objects"]
