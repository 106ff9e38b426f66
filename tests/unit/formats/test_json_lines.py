"""ODVG's and ms-swift's JSON lines."""

import json

import pytest

from ds_stage2ab.errors import DataError
from tests.unit.formats.sets import HEIGHT, WIDTH, counts, expected, image, imported, record

SIZE = {"width": WIDTH, "height": HEIGHT}
BOX = [10, 10, 30, 30]
BINS = (30, 90, 90, 270)


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        image(tmp_path / "images" / name)
    return tmp_path


def write(folder, *values) -> None:
    texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
    (folder / "set.jsonl").write_text("\n".join(texts), encoding="utf-8")


def odvg(name, *instances, regions=None, **more):
    grounding = {} if regions is None else {"grounding": {"caption": "two owls", "regions": regions}}
    return {"filename": name, **SIZE, "detection": {"instances": list(instances)}, **grounding, **more}


@pytest.fixture
def boxes(folder):
    write(
        folder,
        odvg(
            "a.png",
            {"bbox": BOX, "label": 0, "category": "cat"},
            {"bbox": BOX, "label": 5},
            {"bbox": [1, 2, 3], "label": 0, "category": "cat"},
            {"label": 0, "category": "cat"},
            "nonsense",
            regions=[
                {"phrase": "two owls", "bbox": [BOX, [0, 0, 333, 111]]},
                {"phrase": "the left owl", "bbox": [1, 1, 5, 5], "tokens_positive": [[0, 3]]},
                {"bbox": BOX},
                7,
            ],
        ),
        "",
        "{broken",
        odvg("b.png"),
        {"filename": "c.png", **SIZE},
        odvg("gone.png", {"bbox": BOX, "label": 0, "category": "cat"}),
        [1, 2],
    )
    return folder


def test_odvg(boxes):
    written, report = imported("odvg", boxes, "set.jsonl")
    owls = [("two owls", *BINS), ("two owls", 0, 0, 999, 999), ("the left owl", 3, 9, 15, 45)]
    assert written == [record("a.png", ("cat", *BINS), *owls), record("b.png")]
    assert counts(report) == expected(
        2,
        4,
        images={"bad_annotation": 3, "missing_image": 1},
        left={"bad_annotation": 2, "bad_box": 1, "missing_image": 1, "no_box": 1, "no_name": 1, "unknown_class": 1},
        classes={"cat": 1, "two owls": 2, "the left owl": 1},
        empty=1,
    )
    assert report["first_places"]["no_name"] == [f"{boxes}/set.jsonl:1: regions[2]"]


def test_the_label_map_of_odvg(boxes):
    (boxes / "labels.json").write_text(json.dumps({"0": "puma", "5": "owl"}))
    written, report = imported("odvg", boxes, "set.jsonl", class_names=boxes / "labels.json")
    assert [one["desc"] for one in written[0]["objects"]][:2] == ["puma", "owl"]
    assert "unknown_class" not in report["objects"]["left_out"]


def swift(images, refs, bbox, user="<image>find <ref-object>", answer="", **more):
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": answer or "<bbox>" * len(bbox)}]
    return {"messages": messages, "images": images, "objects": {"ref": refs, "bbox": bbox, **more}}


def test_swift(folder):
    other = [0, 0, 333, 111]
    describes = "<ref-object><bbox>, <ref-object><bbox><bbox> and <bbox>"
    write(
        folder,
        swift(["a.png"], ["cat", "dog"], [BOX, other]),  # as many refs as boxes
        swift([{"path": f"{folder}/images/b.png"}], ["sheep"], [BOX, other], bbox_type="real"),  # one ref for all
        swift(
            ["c.png"],
            ["cat", "dog"],
            [[0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0, 0.2, 0.2], [0, 0, 0.3, 0.3]],
            user="<image>Describe.",
            answer=describes,
            bbox_type="norm1",
        ),
        swift(["d.png"], [], [[100, 50]], user="<image>Open it", answer="click(<bbox>)"),
        swift(["d.png"], [], [BOX], user="<image>Look", answer="<bbox>"),
        swift(["d.png", "a.png"], ["cat"], [BOX]),
        swift(["d.png"], ["cat"], [BOX], bbox_type="norm1000"),
        {"messages": [{"role": "user", "content": "hello"}], "images": ["d.png"]},
        "{broken",
        swift(["d.png"], ["cat", None], [[1, 1, "x", 5], BOX]),
    )
    written, report = imported("swift", folder, "set.jsonl")
    assert written == [
        record("a.png", ("cat", *BINS), ("dog", 0, 0, 999, 999)),
        record("b.png", ("sheep", *BINS), ("sheep", 0, 0, 999, 999)),
        # of 999: 99.9, 499.5 (which goes up), 199.8, 299.7
        record(
            "c.png", ("cat", 100, 100, 500, 500), ("dog", 500, 500, 999, 999), ("dog", 0, 0, 200, 200),
            ("dog", 0, 0, 300, 300),
        ),
    ]  # fmt: skip
    assert counts(report) == expected(
        3,
        8,
        images={"bad_annotation": 2, "not_grounding": 4, "several_images": 1},
        left={"bad_annotation": 1, "bad_box": 1, "no_name": 2, "point": 1, "several_images": 1},
        classes={"cat": 2, "dog": 4, "sheep": 2},
    )


def test_a_file_that_is_not_there(folder):
    with pytest.raises(DataError, match="is not there"):
        imported("swift", folder, "set.jsonl")
