"""Prompts of records: one test for each invariant of `data.asked`, and what the reader makes of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.data.asked import Asked
from ds_stage2ab.data.feed import Reader
from ds_stage2ab.data.records import read_records
from ds_stage2ab.data.stream import SampleOrder
from ds_stage2ab.errors import DataError
from ds_stage2ab.preflight.report import preflight_report
from ds_stage2ab.preflight.text import as_text
from tests.parts import config_values, merged, write_config
from tests.unit.parts import load_bench

BOX = (0, 0, 9, 9)
TEMPLATE = "Find: {classes}."


def record(*names, key="r", prompt=None) -> Record:
    objects = tuple(Truth(desc=name, box=BOX) for name in names)
    return Record(id=key, image=Path("a.png"), width=9, height=9, objects=objects, where="a:1", prompt=prompt)


RECORDS = [record("dog", "Cat", "dog"), record("boat"), record(), record("cat ", "apple", "egg")]


def asked(num_absent, seed=0, records=RECORDS) -> Asked:
    return Asked.of(records, TEMPLATE, num_absent, seed)


def test_an_own_prompt_is_taken_as_it_stands():
    own = record("dog", prompt="Where is {classes}? ")
    assert asked(2)(own, 0) is own
    assert Asked.of(RECORDS, "Detect.", 0, 0)(RECORDS[0], 0).prompt == "Detect."


def test_names_are_in_alphabetical_order():
    """Each once, as it is first written in the record; `Cat` and `cat ` are one."""
    assert [asked(0)(one, 0).prompt for one in RECORDS[:2]] == ["Find: Cat, dog.", "Find: boat."]
    assert asked(9)(RECORDS[1], 0).prompt == "Find: apple, boat, Cat, dog, egg."


def test_absent_names_depend_on_the_draw_alone():
    names = [f"n{k}" for k in range(40)]
    many = asked(3, records=[record(*names), RECORDS[1]])
    seen = [many(RECORDS[1], draw).prompt for draw in range(50)]
    assert seen == [many(RECORDS[1], draw).prompt for draw in range(50)]
    assert len(set(seen)) > 40 and all(one.count(",") == 3 and "boat" in one for one in seen)
    assert replace(many, seed=1)(RECORDS[1], 0).prompt != seen[0]
    assert many(replace(RECORDS[1], id="s"), 0).prompt != seen[0]


def test_what_a_record_says_is_absent_is_all_that_is_asked_for_as_absent():
    said = replace(RECORDS[1], absent=("Cat", "ghost", "boat"))
    assert {asked(9)(said, draw).prompt for draw in range(9)} == {"Find: boat, Cat, ghost."}
    assert asked(9)(replace(said, absent=()), 0).prompt == "Find: boat."


def test_an_image_of_nothing_is_asked_for_something():
    assert {asked(0)(RECORDS[2], draw).prompt for draw in range(99)} == {
        f"Find: {name}." for name in ("apple", "boat", "Cat", "dog", "egg")
    }
    with pytest.raises(DataError, match="no record has an object"):
        asked(2, records=[record()])(record(), 0)


def test_no_draw_is_longer_than_the_longest():
    for one in RECORDS:
        longest = len(asked(2).longest(one).prompt)
        assert max(len(asked(2)(one, draw).prompt) for draw in range(50)) == longest


@pytest.fixture
def written(tmp_path):
    """Writes records as a JSONL, and reads them."""
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    plain = {"images": ["a.png"], "width": 64, "height": 48, "objects": [{"desc": "one", "bbox_2d": [0, 0, 9, 9]}]}

    def write(*changes):
        (tmp_path / "set.jsonl").write_text("\n".join(json.dumps({**plain, **one}) for one in changes))
        return read_records(tmp_path / "set.jsonl", image_root=None, box_format="bins")

    return write


def test_a_prompt_is_read_and_a_wrong_one_refused(written):
    assert [one.prompt for one in written({"prompt": "the left one"}, {})] == ["the left one", None]
    for wrong in (7, " ", None, "a <image>", "x<|im_end|>"):
        with pytest.raises(DataError, match="prompt is"):
            written({"prompt": wrong})


def test_the_plan_says_how_records_are_asked(quickstart, tmp_path):
    def planned(**data):
        values = merged(config_values(quickstart, tmp_path, "run"), {f"data.{key}": one for key, one in data.items()})
        report = preflight_report(
            write_config(tmp_path / "c.yaml", values), None, learners=1, rollout_devices=None, records=None
        )
        return as_text(report)

    assert "prompts" not in planned()
    assert "names of a record's classes and 3 absent ones" in planned(user_prompt=TEMPLATE, negative_classes=3)


def test_absent_classes_change_no_draw_of_any_sample(quickstart):
    """Ids, order, objects in their random order, pixels: everything but the prompt."""
    bench = load_bench(quickstart, num_samples=0)
    records = read_records(quickstart.data / "train.jsonl", image_root=None, box_format="bins")
    own = [replace(one, prompt="Find the digits." if place % 5 == 0 else None) for place, one in enumerate(records)]
    readers = [
        Reader(
            records=own,
            order=SampleOrder(3, len(own), len(own)),
            encoder=bench.encoder,
            asked=Asked.of(own, TEMPLATE, num_absent, 3),
            seed=3,
            shuffle_objects=True,
            skip_bad=False,
        )
        for num_absent in (0, 2)
    ]
    differ = 0
    for draw in range(24):
        one, other = (reader[draw] for reader in readers)
        assert (one.id, one.draw, one.objects, one.image) == (other.id, other.draw, other.objects, other.image)
        assert one.vision.pixel_values.equal(other.vision.pixel_values)
        is_own = one.user_prompt == "Find the digits."
        assert (one.prompt_ids == other.prompt_ids) == is_own
        differ += not is_own
        text = bench.encoder.tokenizer.decode(other.prompt_ids)
        assert other.user_prompt in text
    assert 10 < differ < 24
