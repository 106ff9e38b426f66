"""YOLO's folders: boxes and polygons, with `data.yaml` or a folder of labels."""

import pytest

from ds_stage2ab.errors import ConfigError, DataError
from tests.unit.formats.sets import HEIGHT, WIDTH, counts, expected, image, imported, record

LABELS = """\
0 0.5 0.5 0.2 0.4
1 0.1 0.1 0.3 0.1 0.3 0.5
1.0 0.95 0.5 0.2 0.5
0 0.5 0.5 0.2 0.4

0 1.5 0.5 0.2 0.4
0 0.5 0.5 0 0.4
0 0.5 0.5 0.2 0.4 0.9
2 0.5 0.5 0.2 0.4
0 320 240 100 50
0 0.5 x 0.2 0.4
0 nan 0.5 0.2 0.4
"""
NAMES = "path: /somewhere/else\ntrain: ../train/images\nval: lists/val.txt\nnames: [cat, red dog]\nnc: 2\n"
A = [
    ("cat", 400, 300, 599, 699),  # 0.5 -+ 0.1 and 0.5 -+ 0.2 of 999: 399.6, 599.4, 299.7, 699.3
    ("red dog", 100, 100, 300, 500),  # around a triangle
    ("red dog", 849, 250, 999, 749),  # 0.85 to 1.05, cut; 0.25 and 0.75
]
LEFT = {"bad_annotation": 2, "bad_box": 1, "duplicate": 1, "outside": 2, "unknown_class": 1, "zero_area": 1}


@pytest.fixture
def yolo(tmp_path):
    """train/images/... beside train/labels/..., a list of one held-out image, and labels without an image."""
    root = tmp_path / "set"
    image(root / "train" / "images" / "a.png")
    image(root / "train" / "images" / "sub" / "b.JPG")
    image(root / "train" / "images" / "turned.jpg", orientation=8)
    image(root / "val" / "images" / "c.png")
    labels = root / "train" / "labels"
    (labels / "sub").mkdir(parents=True)
    (labels / "a.txt").write_text(LABELS)
    (labels / "sub" / "b.txt").write_text("")
    (labels / "turned.txt").write_text("0 0.5 0.5 0.2 0.4\n")
    (labels / "gone.txt").write_text("0 0.5 0.5 0.2 0.4\n1 0.5 0.5 0.2 0.4\n")
    (labels / "classes.txt").write_text("cat\nred dog\n")
    (root / "lists").mkdir()
    (root / "lists" / "val.txt").write_text("./val/images/c.png\n")
    (root / "data.yaml").write_text(NAMES)
    return tmp_path


def written(below: str) -> list[dict]:
    return [
        record(f"{below}a.png", *A),
        record(f"{below}sub/b.JPG"),
        record(f"{below}turned.jpg", ("cat", 400, 300, 599, 699), size=(HEIGHT, WIDTH)),
    ]


def test_data_yaml(yolo):
    found, report = imported("yolo", yolo, "set/data.yaml", images="set")
    assert found == written("train/images/")
    changed = {"clipped": 1, "exif_assumed": 1, "polygon_to_box": 1}
    assert counts(report) == expected(3, 4, left=LEFT, changed=changed, classes={"cat": 2, "red dog": 2}, empty=1)
    assert report["first_places"]["unknown_class"] == [f"{yolo}/set/train/labels/a.txt:8"]


def test_a_split_that_is_a_list(yolo):
    found, report = imported("yolo", yolo, "set/data.yaml", images="set", split="val")
    assert found == [record("val/images/c.png")]
    assert report["changed"] == {"label_missing": 1}


@pytest.mark.parametrize("names", ["classes.txt", "data.yaml"])
def test_a_folder_of_labels(yolo, names):
    folder = "train/labels" if names == "classes.txt" else "."
    names = yolo / "set" / folder / names
    found, report = imported("yolo", yolo, "set/train/labels", images="set/train/images", class_names=names)
    assert found == written("")
    assert report["images"]["left_out"] == {"missing_image": 1}
    assert report["objects"]["left_out"] == LEFT


def test_a_file_of_labels_that_is_no_text(yolo):
    (yolo / "set" / "train" / "labels" / "sub" / "b.txt").write_bytes(b"0 0.5 0.5 \xff")
    found, report = imported("yolo", yolo, "set/data.yaml", images="set")
    assert found == [written("train/images/")[0], written("train/images/")[2]]
    assert report["images"]["left_out"] == {"bad_annotation": 1}


@pytest.mark.parametrize(
    ("annotations", "changes", "kind", "message"),
    [
        ("set/train/labels", {}, ConfigError, "add --class-names data.yaml"),
        ("set/data.yaml", {"split": "test"}, ConfigError, "has no split 'test'"),
        ("set/data.yaml", {"images": "set/train"}, ConfigError, "'train/images' is not there"),
        ("set/train/labels/a.txt", {"class_names": "set/data.yaml"}, DataError, "is no folder"),
        ("set/train/labels", {"class_names": "set/none.yaml"}, ConfigError, "none.yaml: cannot be read"),
        ("set/train/labels", {"class_names": "set/lists/empty.txt"}, DataError, "no image is left"),
    ],
)
def test_what_is_refused(yolo, annotations, changes, kind, message):
    (yolo / "set" / "lists" / "empty.txt").write_text("")
    options = {key: yolo / value if key == "class_names" else value for key, value in changes.items()}
    with pytest.raises(kind) as caught:
        imported("yolo", yolo, annotations, **{"images": "set/lists", **options})
    assert message in str(caught.value)
