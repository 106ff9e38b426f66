"""Files of others that their libraries cannot read, each in its own way: XML, ijson, YAML."""

import json
import os

import pytest

from ds_stage2ab.errors import ConfigError, DataError
from ds_stage2ab.formats.class_names import read_class_names
from ds_stage2ab.formats.report import read_reports
from tests.unit.formats.sets import image, imported, record
from tests.unit.formats.test_voc import annotation, box, entry

ENDLESS = "9" * 5000  # more digits than a reader of JSON takes
TOO_LARGE = 10**400  # for a float


@pytest.mark.parametrize("encoding", ["gb2312", "utf-32", "cp437", "no such one"])
def test_an_encoding_that_expat_does_not_know_leaves_one_image_out(tmp_path, encoding):
    image(tmp_path / "images" / "a.png")
    image(tmp_path / "images" / "b.png")
    text = annotation("a.png", entry("cat", box(11, 11, 30, 30)))
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.xml").write_text(text)
    (tmp_path / "voc" / "b.xml").write_text(
        f'<?xml version="1.0" encoding="{encoding}"?>{text.replace("a.png", "b.png")}'
    )
    written, report = imported("voc", tmp_path, "voc")
    assert written[0] == record("a.png", ("cat", 30, 90, 90, 270))
    assert report["images"]["left_out"] in ({}, {"bad_annotation": 1})
    assert encoding == "cp437" or len(written) == 1


@pytest.mark.parametrize("size", ["inf", "1e999", "nan", "-3", "0", "3.5", "x", ""])
def test_a_size_that_is_none_is_not_compared(tmp_path, size):
    image(tmp_path / "images" / "a.png")
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.xml").write_text(annotation("a.png", size=(size, size)))
    assert imported("voc", tmp_path, "voc")[0] == [record("a.png")]


@pytest.mark.parametrize("place", ["images", "annotations", "categories"])
def test_an_endless_number_is_no_json(tmp_path, place):
    image(tmp_path / "images" / "a.png")
    lists = {"images": '{"id": 1, "file_name": "a.png"}', "annotations": "", "categories": ""}
    text = ", ".join(f'"{key}": [{f"[{ENDLESS}]" if key == place else value}]' for key, value in lists.items())
    (tmp_path / "set.json").write_text(f"{{{text}}}")
    with pytest.raises(DataError, match="is no JSON") as caught:
        imported("coco", tmp_path, "set.json")
    assert caught.value.where == str(tmp_path / "set.json") and caught.value.fix


def test_a_number_beyond_every_float_is_no_box(tmp_path):
    image(tmp_path / "images" / "a.png")
    instances = [{"bbox": [0, 0, TOO_LARGE, 5], "category": "cat"}]
    line = {"filename": "a.png", "width": 333, "height": 111, "detection": {"instances": instances}}
    (tmp_path / "set.json").write_text(json.dumps(line))
    written, report = imported("odvg", tmp_path, "set.json")
    assert written[0]["objects"] == [] and report["objects"]["left_out"] == {"bad_box": 1}


@pytest.mark.parametrize(
    "text",
    [
        "names: [2024-99-99]",
        "{[a]: b}: c",
        "[" * 500,
        "names: !!int x",
        "names: !!python/object:a.b x",
        "a: b: c",
        "\x01",
    ],
)
def test_names_that_yaml_cannot_read_are_told(tmp_path, text):
    (tmp_path / "names.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"is no YAML|has no names of classes") as caught:
        read_class_names(tmp_path / "names.yaml")
    assert caught.value.where == str(tmp_path / "names.yaml") and caught.value.fix


@pytest.mark.parametrize("kind", ["coco", "odvg"])
def test_annotations_that_come_out_of_a_pipe_are_refused(tmp_path, kind):
    """COCO's are read several times; and nobody may ever write to it."""
    image(tmp_path / "images" / "a.png")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="is neither a file nor a folder"):
        imported(kind, tmp_path, "pipe")


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "[]"])
def test_a_report_of_an_earlier_import_that_is_none(tmp_path, text):
    (tmp_path / "import_report.json").write_text(text)
    with pytest.raises(ConfigError, match=r"import_report\.json: (cannot be read|is no report)"):
        read_reports(tmp_path)
