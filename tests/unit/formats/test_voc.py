"""Pascal VOC: a folder of XML files, or a split of it."""

import pytest

from ds_stage2ab.errors import ConfigError, DataError
from tests.unit.formats.sets import HEIGHT, WIDTH, counts, expected, image, imported, record

BOMB = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotation><filename>&b;</filename></annotation>'


def box(x1, y1, x2, y2):
    return f"<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"


def entry(name, inner, difficult=0):
    part = f"<part><name>head</name>{box(1, 1, 2, 2)}</part>"
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{inner}{part}</object>"


def annotation(name, *entries, size=(WIDTH, HEIGHT)):
    inner = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>" if size else ""
    return f"<annotation><filename>{name}</filename>{inner}{''.join(entries)}</annotation>"


@pytest.fixture
def voc(tmp_path):
    """Eight files; the images of five can be used."""
    for name in ("a.png", "b.png", "c.png"):
        image(tmp_path / "images" / name)
    image(tmp_path / "images" / "turned.jpg", orientation=5)
    polygon = "<polygon><x1>10</x1><y1>10</y1><x2>20</x2><y2>10</y2><x3>20</x3><y3>30</y3></polygon>"
    files = {
        "a": annotation(
            "a.png",
            entry("cat", box(11, 11, 30, 30)),
            entry("dog", box(31.0, 1, 333, 111)),
            entry("dog", box(0, 1, 10, 10)),  # counted from 0 after all: cut
            entry("cat", box(1, 1, 5, 5), difficult=1),
            entry("owl", polygon),
            entry("cat", ""),
            entry("cat", box(1, 1, "x", 5)),
            entry("", box(1, 1, 50, 50)),
            entry("cat", box(20, 1, 19, 5)),
        ),
        "b": annotation("old_name.png", size=None),  # found by the name of the XML file
        "c": annotation("c.png", entry("dog", box(1, 1, 5, 5), difficult=1)),
        "d": "<annotation><filename>",
        "e": BOMB,
        "f": annotation("gone.png", entry("cat", box(1, 1, 5, 5))),
        "g": annotation("turned.jpg", entry("cat", box(11, 11, 30, 30))),
    }
    for name, text in files.items():
        path = tmp_path / "voc" / "Annotations" / f"{name}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    splits = tmp_path / "voc" / "ImageSets" / "Main"
    splits.mkdir(parents=True)
    (splits / "val.txt").write_text("b\na\n")
    (splits / "dog_val.txt").write_text("a  1\nb -1\nc  0\nmissing 1\n")
    return tmp_path


# 11..30, counted from 1 with both ends inside, is 10..30: bins 3 x and 9 y
A = record("a.png", ("cat", 30, 90, 90, 270), ("dog", 90, 0, 999, 999), ("dog", 0, 0, 30, 90), ("owl", 30, 90, 60, 270))


@pytest.mark.parametrize("annotations", ["voc", "voc/Annotations"])
def test_voc(voc, annotations):
    written, report = imported("voc", voc, annotations)
    # EXIF 5 swaps the axes; the size says that the boxes are those of the stored image
    turned = record("turned.jpg", ("cat", 90, 30, 270, 90), size=(HEIGHT, WIDTH))
    assert written == [A, record("b.png"), record("c.png"), turned]
    assert counts(report) == expected(
        4,
        5,
        images={"bad_annotation": 2, "missing_image": 1},
        left={"bad_box": 1, "crowd": 2, "missing_image": 1, "no_box": 1, "no_name": 1, "zero_area": 1},
        changed={"clipped": 1, "emptied": 1, "exif_turned": 1, "polygon_to_box": 1},
        classes={"cat": 2, "dog": 2, "owl": 1},
        empty=2,
    )


def test_splits_and_difficult_objects(voc):
    assert imported("voc", voc, "voc", split="val")[0] == [record("b.png"), A]
    written, report = imported("voc", voc, "voc", split="dog_val", keep_crowd=True, out="second")
    assert written[1] == record("c.png", ("dog", 0, 0, 15, 45))
    assert report["images"]["left_out"] == {"bad_annotation": 1}


def test_other_names(voc):
    (voc / "names.yaml").write_text("cat: tabby cat\nowl: owl\n")
    written, report = imported("voc", voc, "voc", class_names=voc / "names.yaml")
    assert written[0] == record("a.png", ("tabby cat", 30, 90, 90, 270), ("owl", 30, 90, 60, 270))
    assert report["objects"]["left_out"]["unknown_class"] == 3


@pytest.mark.parametrize(
    ("annotations", "changes", "kind", "message"),
    [
        ("images", {}, DataError, "holds no XML file"),
        ("nowhere", {}, DataError, "nowhere: is not there"),
        ("voc", {"split": "test"}, ConfigError, "Main/test.txt: cannot be read"),
        ("voc", {"images": "nowhere"}, ConfigError, "the folder of images is not there"),
    ],
)
def test_what_is_refused(voc, annotations, changes, kind, message):
    with pytest.raises(kind) as caught:
        imported("voc", voc, annotations, **changes)
    assert message in str(caught.value)
