"""COCO's and LVIS's JSON: every oddity gives the stated line and count."""

import json

import pytest

from ds_stage2ab.errors import DataError
from tests.unit.formats.sets import HEIGHT, WIDTH, counts, expected, image, imported, record

SIZE = {"width": WIDTH, "height": HEIGHT}
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 7, "name": "red dog"}, {"id": 9, "name": "owl"}]


def annotation(image_id, box, category=3, **more):
    return {"id": 1, "image_id": image_id, "category_id": category, "bbox": box, "iscrowd": 0, **more}


@pytest.fixture
def coco(tmp_path):
    """Ten listed images, eight of which can be used; annotations stand first, as some tools write them."""
    for name in ("a.png", "b.png", "deep/c.png", "crowd.png", "none.png"):
        image(tmp_path / "images" / name)
    image(tmp_path / "images" / "turned.jpg", orientation=6)
    image(tmp_path / "images" / "shown.jpg", orientation=6)
    image(tmp_path / "images" / "mirrored.jpg", orientation=3)
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    annotations = [
        annotation("seven", [10, 10, 20, 20]),  # ids may be text, and images come in any order
        annotation(1, [10, 10, 20, 20], segmentation=[[10, 10, 30, 10, 30, 30]]),
        annotation(1, [-10, 50, 20, 200], category=7),  # cut at two borders
        annotation(1, [10.0, 10.04, 20.0, 19.96]),  # the bins of the first once more
        annotation(1, [10, 10, 0, 20]),
        annotation(1, [10, 10, 5, -2]),
        annotation(1, [333, 10, 20, 20]),  # outside
        annotation(1, [10, 10, 20, 20], category=8),
        annotation(1, [10, 10, 20]),
        annotation(1, [10, 10, "20", 20]),
        annotation(1, [10, 10, 0.1, 20]),  # 0.3 of a bin
        annotation(1, None, segmentation=[[100, 20, 110, 20, 110, 30], [90, 25, 95, 25, 95, 40]], category=7),
        annotation(1, None, segmentation={"counts": "abc", "size": [1, 1]}),
        annotation(2, [0, 0, 333, 111], iscrowd=1),
        annotation(99, [1, 1, 5, 5]),
        annotation(5, [10, 10, 20, 20]),
        annotation(6, [10, 10, 20, 20]),
        annotation(8, [10, 10, 20, 20]),
        annotation(9, [10, 10, 20, 20]),
        annotation(10, [10, 10, 20, 20]),
        "nonsense",
    ]
    images = [
        {"id": 1, "file_name": "a.png", **SIZE},
        {"id": 2, "file_name": "crowd.png", **SIZE},
        {"id": 3, "file_name": "deep/c.png", **SIZE},
        {"id": 4, "file_name": "elsewhere/none.png"},  # found by its name alone, without a size
        {"id": 5, "file_name": "turned.jpg", **SIZE},
        {"id": 6, "file_name": "shown.jpg", "width": HEIGHT, "height": WIDTH},
        {"id": "seven", "file_name": "mirrored.jpg", **SIZE},
        {"id": 8, "file_name": "gone.png", **SIZE},
        {"id": 9, "file_name": "broken.png", **SIZE},
        {"id": 10, "file_name": "b.png", "width": 100, "height": 100},
        {"id": 1, "file_name": "b.png", **SIZE},
        {"id": 12, "file_name": "./a.png", **SIZE},
        {"id": 13, "file_name": "../set.json", **SIZE},
        {"id": 14},
    ]
    values = {"annotations": annotations, "images": images, "categories": CATEGORIES}
    (tmp_path / "set.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(values).encode())
    return tmp_path


WRITTEN = [
    # bins are 3 x and 9 y; the second box ends at 3 * 10 and at the lower border, the third surrounds two polygons
    record("a.png", ("cat", 30, 90, 90, 270), ("red dog", 0, 450, 30, 999), ("red dog", 270, 180, 330, 360), id="1"),
    record("crowd.png", id="2"),
    record("deep/c.png", id="3"),
    record("none.png", id="4"),
    # turned right by EXIF: x becomes 111 - y, y becomes x; 10..30 of 111 is 81..101, and bins are 9 x and 3 y
    record("turned.jpg", ("cat", 729, 30, 909, 90), size=(HEIGHT, WIDTH), id="5"),
    record("shown.jpg", ("cat", 90, 30, 270, 90), size=(HEIGHT, WIDTH), id="6"),
    record("mirrored.jpg", ("cat", 30, 90, 90, 270), id="seven"),
]
LEFT = {
    "bad_annotation": 1, "bad_box": 2, "crowd": 1, "duplicate": 1, "missing_image": 1, "no_box": 1, "other_size": 1,
    "outside": 1, "too_thin": 1, "unknown_class": 1, "unknown_image": 1, "unreadable_image": 1, "zero_area": 2,
}  # fmt: skip
LEFT_IMAGES = {
    "bad_annotation": 1, "bad_path": 1, "duplicate_image": 2, "missing_image": 1, "other_size": 1,
    "unreadable_image": 1,
}  # fmt: skip
CHANGED = {"clipped": 1, "emptied": 1, "exif_assumed": 1, "exif_shown": 1, "exif_turned": 1, "polygon_to_box": 2}


def test_coco(coco):
    written, report = imported("coco", coco, "set.json")
    assert written == WRITTEN
    classes = {"cat": 4, "red dog": 2, "owl": 0}
    assert counts(report) == expected(
        7, 6, images=LEFT_IMAGES, left=LEFT, changed=CHANGED, classes=classes, empty=3
    )
    assert report["first_places"]["crowd"] == [f"{coco}/set.json: annotations[13]"]


def test_crowds_small_objects_and_names(coco):
    (coco / "names.yaml").write_text("names: {3: puma, owl: eagle}\n")
    written, report = imported(
        "coco", coco, "set.json", keep_crowd=True, min_side=20.0, class_names=coco / "names.yaml"
    )
    assert written[0] == record("a.png", ("puma", 30, 90, 90, 270), id="1")
    assert written[1] == record("crowd.png", ("puma", 0, 0, 999, 999), id="2")
    left = report["objects"]["left_out"]
    # two boxes of 9.92 and 0.1 pixels; the dogs have no name any more
    assert left["too_small"] == 2 and left["unknown_class"] == 3 and "crowd" not in left
    assert report["classes"] == {"puma": 5, "eagle": 0}


def test_lvis(tmp_path):
    image(tmp_path / "images" / "train2017" / "1.png")
    image(tmp_path / "images" / "2.png")
    sizes = [{"id": place, **SIZE} for place in (1, 2, 3)]
    url = "http://images.cocodataset.org/train2017/{}.png"
    negative = [{"neg_category_ids": [9, 3], "not_exhaustive_category_ids": []}, {"neg_category_ids": [7]}, {}]
    negative[1]["not_exhaustive_category_ids"] = [7, 99, None]
    images = [{**a, **b, "coco_url": url.format(a["id"])} for a, b in zip(sizes, negative, strict=True)]
    annotations = [annotation(2, [10, 10, 20, 20], category=7, segmentation=[[1, 1, 2, 2, 3, 1]])]
    values = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    (tmp_path / "set.json").write_text(json.dumps(values))
    written, report = imported("lvis", tmp_path, "set.json")
    # the second says of a class that it is absent, and has an object of it: it is there
    assert written == [
        {**record("train2017/1.png", id="1"), "absent": ["owl", "cat"]},
        {**record("2.png", ("red dog", 30, 90, 90, 270), id="2"), "absent": [], "not_exhaustive": ["red dog"]},
    ]
    assert counts(report) == expected(
        2,
        1,
        images={"missing_image": 1},
        changed={"polygon_to_box": 1},
        classes={"cat": 0, "red dog": 1, "owl": 0},
        empty=1,
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"[]", "has no list `images`"),
        (b'[{"image_id": 1, "score": 0.5}]', "has no list `images`"),
        (b'{"images": [{"id": 1, "file_name": "a.png"}', "is no JSON"),
        (b'{"images": [{"id": 1, "file_name": "a.png", "area": NaN}]}', "a NaN or an Infinity is no JSON number"),
        (b'{"images": [{"id": 1, "file_name": "gone.png"}]}', "no image is left: missing_image 1"),
    ],
)
def test_a_file_that_cannot_be_used_leaves_nothing_behind(tmp_path, content, why):
    (tmp_path / "images").mkdir()
    (tmp_path / "set.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        imported("coco", tmp_path, "set.json")
    assert why in str(caught.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []
