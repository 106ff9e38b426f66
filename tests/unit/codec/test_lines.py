"""The text of the compact form, and which descriptions it cannot hold."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.codec.added_tokens import unwritable
from ds_stage2ab.codec.text import encode_answer, get_codec
from ds_stage2ab.data.datasets import assert_answerable
from ds_stage2ab.errors import DataError
from ds_stage2ab.matching.parse import parse_rollout
from tests.parts import as_tuples
from tests.unit.codec.test_text import TRUTHS

ARRAY, COMPACT = get_codec("array"), get_codec("compact")


def written(vocabulary, *objects):
    answer = as_tuples(encode_answer([Truth(desc=desc, box=box) for desc, box in objects], vocabulary, COMPACT))
    assert answer.ids[-1] == vocabulary.stop_id and answer.ids.count(vocabulary.stop_id) == 1
    return vocabulary.written_all(answer.ids[:-1]).decode(), answer


def test_the_text_of_the_contract(vocabulary):
    text, answer = written(vocabulary, ("black cat", (110, 310, 410, 705)))
    assert text == "black cat<|coord_110|><|coord_310|><|coord_410|><|coord_705|>"
    assert answer.bins == (110, 310, 410, 705)
    assert [answer.ids[slot] for slot in answer.slots] == [vocabulary.coordinate_ids[k] for k in answer.bins]
    assert not any(answer.is_desc[answer.slots[0] :])
    assert all(answer.is_desc[: answer.slots[0]])


def test_no_objects_are_the_end_of_turn_alone(vocabulary):
    text, answer = written(vocabulary)
    assert (text, answer.ids, answer.slots, answer.is_desc) == ("", (vocabulary.stop_id,), (), (False,))


def test_objects_that_follow_each_other_share_their_description(vocabulary):
    one, two, three = (0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)
    boxes = ["".join(f"<|coord_{k}|>" for k in box) for box in (one, two, three)]
    text, answer = written(vocabulary, ("cat", one), ("cat", two), ("dog", three))
    assert text == f"cat{boxes[0]}{boxes[1]}\ndog{boxes[2]}"
    assert answer.bins == (*one, *two, *three)
    text, _ = written(vocabulary, ("cat", one), ("dog", two), ("cat", three))
    assert text == f"cat{boxes[0]}\ndog{boxes[1]}\ncat{boxes[2]}"
    text, _ = written(vocabulary, ("cafe\u0301", one), ("caf\u00e9", two))  # one description in the tokenizer's form
    assert text == f"caf\u00e9{boxes[0]}{boxes[1]}"


@given(st.lists(TRUTHS, max_size=5))
def test_any_description_that_can_be_written_reads_back(vocabulary, truths):
    normal, added = vocabulary.normalise, vocabulary.added_texts
    truths = [t for t in truths if t.desc.strip() and not unwritable(normal(t.desc), added, COMPACT.name)]
    answer = encode_answer(truths, vocabulary, COMPACT)
    parsed = parse_rollout(answer.ids[:-1].tolist(), vocabulary, COMPACT)
    assert [(one.desc, one.box) for one in parsed.objects] == [(vocabulary.normalise(t.desc), t.box) for t in truths]
    assert (parsed.state, parsed.dropped) == ("ok" if truths else "empty_answer", ())


REFUSED = {
    "a\nb": "holds a newline",
    " cat": "begins or ends with a blank",
    "cat\u3000": "begins or ends with a blank",
    "cat\n": "holds a newline",
    "<|im_end|>": "holds '<|im_end|>', which is an added token",
    "a <|coord_7|> b": "holds '<|coord_7|>', which is an added token",
}


@pytest.mark.parametrize("desc", REFUSED)
def test_what_a_line_cannot_hold_is_refused_with_its_file_and_line(vocabulary, desc):
    records = [
        Record(
            id=str(n), image=Path("a.png"), width=64, height=48, where=f"train.jsonl:{n}",
            objects=(Truth(desc=name, box=(0, 0, 9, 9)),),
        )
        for n, name in enumerate(("cat", "<|coord_", "x\ty", desc), start=1)
    ]  # fmt: skip
    assert_answerable(records[:3], vocabulary, COMPACT)
    assert_answerable(records, vocabulary, ARRAY)
    with pytest.raises(DataError, match=re.escape(REFUSED[desc])) as caught:
        assert_answerable(records, vocabulary, COMPACT)
    assert caught.value.where == "train.jsonl:4"
    assert repr(desc) in caught.value.why and "use other words" in caught.value.fix
