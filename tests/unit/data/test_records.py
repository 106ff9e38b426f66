import json
import os
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from ds_stage2ab.carriers import Truth
from ds_stage2ab.data.record_line import MAX_LINE_BYTES
from ds_stage2ab.data.records import load_image, read_records
from ds_stage2ab.errors import DataError

SCHEMA = json.loads((Path(__file__).parents[3] / "schemas" / "record.schema.json").read_text())
CAT = {"desc": "cat", "bbox_2d": [10, 20, 30, 40]}


def line(**changes) -> dict:
    return {"images": ["a.png"], "width": 64, "height": 48, "objects": [CAT], **changes}


def boxed(*box) -> dict:
    return line(objects=[{"desc": "cat", "bbox_2d": list(box)}])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    return tmp_path


def write(folder: Path, *lines: dict | str | bytes) -> Path:
    path = folder / "set.jsonl"
    parts = [json.dumps(value) if isinstance(value, dict) else value for value in lines]
    path.write_bytes(b"".join((part.encode() if isinstance(part, str) else part) + b"\n" for part in parts))
    return path


def read(folder: Path, *lines: dict | str | bytes, box_format="bins"):
    return read_records(write(folder, *lines), image_root=None, box_format=box_format)


def refused(folder: Path, *lines: dict | str | bytes, box_format="bins") -> DataError:
    with pytest.raises(DataError) as caught:
        read(folder, *lines, box_format=box_format)
    assert caught.value.fix
    return caught.value


def test_a_record(folder):
    (record,) = read(folder, line(id="scene 1"))
    assert record.id == "scene 1"
    assert record.image == (folder / "a.png").resolve()
    assert (record.width, record.height) == (64, 48)
    assert record.objects == (Truth(desc="cat", box=(10, 20, 30, 40)),)
    assert record.where == f"{folder / 'set.jsonl'}:1"


def test_the_id_defaults_to_file_and_line(folder):
    assert [record.id for record in read(folder, line(), line())] == ["set.jsonl:1", "set.jsonl:2"]


def test_objects_are_sorted_by_top_then_left_and_ties_stay(folder):
    boxes = [("d", 0, 9, 20, 20), ("b", 5, 3, 20, 20), ("a", 1, 3, 20, 20), ("c", 5, 3, 10, 10)]
    objects = [{"desc": name, "bbox_2d": box} for name, *box in boxes]
    (record,) = read(folder, line(objects=objects))
    assert "".join(truth.desc for truth in record.objects) == "abcd"


def test_coordinate_strings_and_ints_are_bins(folder):
    (record,) = read(folder, boxed("<|coord_7|>", 0, 999, "<|coord_998|>"))
    assert record.objects[0].box == (7, 0, 999, 998)


def test_pixels_become_bins(folder):
    # x: 999 * 16 / 63 = 253.71, 999 * 63 / 63 = 999; y: 999 * 12 / 47 = 255.06, 999 * 23.5 / 47 = 499.5 -> 500
    (record,) = read(folder, boxed(16, 12, 63, 23.5), box_format="pixel")
    assert record.objects[0].box == (254, 255, 999, 500)


def test_a_pixel_box_may_end_at_the_right_edge(folder):
    (record,) = read(folder, boxed(0, 0, 64, 48), box_format="pixel")
    assert record.objects[0].box == (0, 0, 999, 999)


def test_what_is_known_of_other_descriptions(folder):
    plain, said = read(folder, line(), line(absent=["dog", "owl"], not_exhaustive=["cat"]))
    assert (plain.absent, plain.not_exhaustive) == (None, ())
    assert (said.absent, said.not_exhaustive) == (("dog", "owl"), ("cat",))


def test_no_objects_is_legal(folder):
    assert read(folder, line(objects=[]))[0].objects == ()


def test_line_ends_of_windows_and_a_last_line_without_one(folder):
    path = folder / "set.jsonl"
    path.write_bytes(json.dumps(line()).encode() + b"\r\n" + json.dumps(line()).encode())
    assert len(read_records(path, image_root=None, box_format="bins")) == 2


def test_non_ascii_stays(folder):
    (record,) = read(folder, json.dumps(line(objects=[{**CAT, "desc": "\u4e2d\u6587 \u00e9"}]), ensure_ascii=False))
    assert record.objects[0].desc == "\u4e2d\u6587 \u00e9"


def test_an_image_root_of_its_own(folder, tmp_path):
    root = folder / "images" / "deep"
    root.mkdir(parents=True)
    (folder / "a.png").rename(root / "a.png")
    path = write(folder, line(images=["deep/a.png"]))
    (record,) = read_records(path, image_root=folder / "images", box_format="bins")
    assert record.image == (root / "a.png").resolve()


def test_a_relative_file_name(folder, monkeypatch):
    write(folder, line())
    monkeypatch.chdir(folder)
    (record,) = read_records(Path("set.jsonl"), image_root=None, box_format="bins")
    assert record.image.is_absolute()
    assert record.where == "set.jsonl:1"


# Lines that are refused: (line, box_format, part of the message)
BAD_LINES = [
    ('{"images": ["a.png"], ', "bins", "column 23: no JSON"),
    ("", "bins", "the line is empty"),
    (b"\xef\xbb\xbf{}", "bins", "byte order mark"),
    (b'{"id": "\0"}', "bins", "column 9: a NUL byte"),
    (b'{"id": "\xff"}', "bins", "byte 9 of the line is no UTF-8"),
    ("[1, 2]", "bins", "the record is [1, 2], not an object"),
    ("[" * 100_000, "bins", "nested too deeply"),
    ('{"width": 1, "width": 2}', "bins", "the key 'width' stands twice"),
    ('{"width": NaN}', "bins", "NaN is no JSON number"),
    ('{"width": -Infinity}', "bins", "-Infinity is no JSON number"),
    ('{"width": ' + "9" * 5000 + "}", "bins", "no JSON: Exceeds the limit"),
    (line(caption="x"), "bins", "the record has the unknown key 'caption'"),
    ({"images": ["a.png"], "width": 64, "height": 48}, "bins", "the record has no 'objects'"),
    (line(width=64.0), "bins", "width is 64.0"),
    (line(height=True), "bins", "height is true"),
    (line(width=0), "bins", "width is 0"),
    (line(id=""), "bins", 'id is ""'),
    (line(id=7), "bins", "id is 7"),
    (line(absent=None), "bins", "absent is null, not a list"),
    (line(not_exhaustive=["cat", " "]), "bins", 'not_exhaustive[1] is " "'),
    (line(absent=["dog", " CAT"]), "bins", "' CAT' stands in absent and under objects"),
    (line(images="a.png"), "bins", "not a list of exactly one path"),
    (line(images=["a.png", "a.png"]), "bins", "not a list of exactly one path"),
    (line(images=[1]), "bins", "images[0] is 1"),
    (line(images=["a\0.png"]), "bins", "a NUL"),
    (line(objects={}), "bins", "objects is {}, not a list"),
    (line(objects=[CAT, "cat"]), "bins", 'objects[1]: it is "cat", not an object'),
    (line(objects=[{**CAT, "poly": [1]}]), "bins", "objects[0]: it has the unknown key 'poly'"),
    (line(objects=[{"desc": "cat", "bbox": [1, 2, 3, 4]}]), "bins", "objects[0]: it has the unknown key 'bbox'"),
    (line(objects=[{"desc": "cat"}]), "bins", "objects[0]: it has no 'bbox_2d'"),
    (line(objects=[{**CAT, "desc": " \t"}]), "bins", "objects[0]: desc is"),
    (line(objects=[{**CAT, "desc": "\ud800"}]), "bins", "half a surrogate pair"),
    (line(objects=[{**CAT, "desc": "x" * 4000}]), "bins", "longer than 3840 bytes"),
    (boxed(1, 2, 3), "bins", "bbox_2d is [1, 2, 3], not a list of four"),
    (boxed(1, 2, 3, 4, 5), "bins", "not a list of four"),
    (boxed(30, 20, 10, 40), "bins", "but x2 > x1 and y2 > y1 must hold"),
    (boxed(10, 20, 30, 20), "bins", "but x2 > x1 and y2 > y1 must hold"),
    (boxed(10, 20, 30, 1000), "bins", "if they are 0..1000, as Qwen3-VL writes, set data.box_format: norm1000"),
    (boxed(-1, 20, 30, 40), "bins", "correct the box"),
    (boxed(0.1, 0.2, 0.3, 0.4), "bins", "if they are fractions of the image, 0..1, set data.box_format: fraction"),
    (boxed(1.5, 2, 3, 4), "bins", "bbox_2d is [1.5, 2, 3, 4], not four bins (whole"),
    (boxed(True, 2, 3, 4), "bins", "not four bins"),
    (boxed("<|coord_07|>", 2, 30, 40), "bins", "not four bins"),
    (boxed("<|coord_1000|>", 2, 30, 40), "bins", "not four bins"),
    (boxed(None, 2, 30, 40), "bins", "not four bins"),
    (boxed(10, 20, 65, 40), "pixel", "outside the image of 64 x 48 pixels"),
    (boxed(10, -0.5, 60, 40), "pixel", "outside the image"),
    (boxed("<|coord_1|>", 0, 60, 40), "pixel", "or no numbers"),
    (boxed(0.1, 0.2, 0.9, 0.95), "pixel", "within one pixel, these look like fractions"),
    (boxed(0.1, 0.2, 0.8, 0.7), "pixel_xywh", "within one pixel, these look like fractions"),
    (json.dumps(boxed(0, 0, 7777, 9)).replace("7777", "1e999"), "pixel", "outside the image"),
    (boxed(10, 10, 10.01, 20), "pixel", "thinner than one of the 1,000 bins"),
]


@pytest.mark.parametrize(("bad", "box_format", "message"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_name_file_line_and_reason(folder, bad, box_format, message):
    good = json.dumps(line(objects=[]))
    lines = (bad, good) if message == "byte order mark" else (good, bad, good)
    error = refused(folder, *lines, box_format=box_format)
    assert message in str(error)
    assert error.where == f"{folder / 'set.jsonl'}:{lines.index(bad) + 1}"


def test_a_line_without_end_is_not_read_into_memory(folder):
    error = refused(folder, b"x" * (MAX_LINE_BYTES + 5))
    assert f"longer than {MAX_LINE_BYTES} bytes" in error.why


def test_ids_are_unique(folder):
    assert "id 'a' is that of line 1 too" in refused(folder, line(id="a"), line(id="b"), line(id="a")).why
    assert "is that of line 1 too" in refused(folder, line(id="set.jsonl:2"), line()).why


def test_all_problems_are_listed(folder):
    error = refused(folder, boxed(1, 2, 1, 4), line(), line(objects=[{"desc": ""}, {**CAT, "desc": ""}]), "{")
    text = str(error)
    assert error.where.endswith(":1")
    assert [part in text for part in ("set.jsonl:3: objects[0]", "set.jsonl:3: objects[1]", "set.jsonl:4: ")] == [
        True
    ] * 3
    assert error.fix == "correct these 4 places"


def test_a_hopeless_file_stops_at_the_limit(folder):
    error = refused(folder, *["{"] * 500)
    assert "set.jsonl:20:" in str(error)
    assert "set.jsonl:21:" not in str(error)
    assert error.fix == "correct these 20 places; reading stopped after 20 problems"


def test_files_that_cannot_be_read(folder):
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "empty.jsonl").write_bytes(b"")
    cases = [
        (folder / "none.jsonl", "no such file"),
        (folder / "pipe.jsonl", "no regular file"),
        (folder, "no regular file"),
        (folder / "empty.jsonl", "empty"),
    ]
    for path, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            read_records(path, image_root=None, box_format="bins")
        assert caught.value.where == str(path)
    with pytest.raises(DataError, match="image root is no folder"):
        read_records(write(folder, line()), image_root=folder / "none", box_format="bins")


# A schema cannot compare two numbers, does not know data.box_format, and counts 64.0 as an integer.
BEYOND_A_SCHEMA = (
    "must hold",
    "thinner",
    "64.0",
    "half a",
    "box_format",
    "outside",
    "no numbers",
    "fractions",
    "not four bins (whole",
    "stands in absent",
)

# Lines on which the schema and the reader must agree: (line, box_format, accepted)
AGREED = [
    (line(), "bins", True),
    (line(id="a"), "bins", True),
    (line(absent=[], not_exhaustive=["a", "b"]), "bins", True),
    (line(absent=None), "bins", False),
    (line(absent=[""]), "bins", False),
    (line(not_exhaustive="cat"), "bins", False),
    (line(objects=[]), "bins", True),
    (boxed("<|coord_7|>", 0, 999, "<|coord_998|>"), "bins", True),
    (boxed(12.0, 40.0, 60, 900.0), "bins", True),
    (boxed(1.5, 2, 60, 40.25), "pixel", True),
    (line(images=["./a.png"]), "bins", True),
    *[
        (bad, box_format, False)
        for bad, box_format, message in BAD_LINES
        if isinstance(bad, dict) and not any(part in message for part in BEYOND_A_SCHEMA)
    ],
    (line(images=["/etc/a.png"]), "bins", False),
    (line(images=["b/../a.png"]), "bins", False),
    (line(images=[".."]), "bins", False),
    (line(images=["https://example.org/a.png"]), "bins", False),
    (line(images=["FILE:a.png"]), "bins", False),
    (line(images=["data:image/png;base64,AA"]), "bins", False),
    (line(images=[]), "bins", False),
    (line(images=[" "]), "bins", False),
]


@pytest.mark.parametrize(("value", "box_format", "accepted"), AGREED, ids=range(len(AGREED)))
def test_schema_and_reader_agree(folder, value, box_format, accepted):
    assert Draft202012Validator(SCHEMA).is_valid(value) == accepted
    if accepted:
        assert len(read(folder, value, box_format=box_format)) == 1
    else:
        refused(folder, value, box_format=box_format)


def test_the_schema_is_one():
    Draft202012Validator.check_schema(SCHEMA)


def test_a_record_without_its_image_can_be_kept(folder):
    """Missing or empty; a path that no record may have is refused all the same."""
    (folder / "empty.png").touch()
    names = ("gone.png", "empty.png")
    path = write(folder, *(line(images=[name]) for name in names))
    kept = read_records(path, image_root=None, box_format="bins", keep_unusable=True)
    assert [record.image.name for record in kept] == list(names)
    for record in kept:
        with pytest.raises(DataError, match=r"is gone|is no image of a supported format"):
            load_image(record)
    for bad in ("../x.png", "/etc/passwd", "http://host/x.png"):
        path = write(folder, line(images=[bad]))
        with pytest.raises(DataError):
            read_records(path, image_root=None, box_format="bins", keep_unusable=True)
