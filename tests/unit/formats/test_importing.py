"""What an import does with its folder: nothing is overwritten, nothing half-made is left."""

import json

import pytest

from ds_stage2ab.data.records import read_records
from ds_stage2ab.errors import ConfigError, DataError, EnvironmentFault
from ds_stage2ab.formats import importing
from ds_stage2ab.formats.options import output_name
from tests.unit.formats.sets import HEIGHT, WIDTH, image, imported, lines

NUM_IMAGES = 20


@pytest.fixture
def coco(tmp_path):
    """Twenty images with a cat in each."""
    images, annotations = [], []
    for place in range(NUM_IMAGES):
        image(tmp_path / "images" / f"{place}.png")
        images.append({"id": place, "file_name": f"{place}.png", "width": WIDTH, "height": HEIGHT})
        annotations.append({"image_id": place, "category_id": 1, "bbox": [10, 10, 20, 20]})
    values = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "set.json").write_text(json.dumps(values))
    return tmp_path


def test_images_are_linked_by_one_link(coco):
    imported("coco", coco, "set.json")
    assert sorted(path.name for path in (coco / "out").iterdir()) == ["images", "import_report.json", "set.jsonl"]
    assert (coco / "out" / "images" / "set").resolve() == coco / "images"


def test_images_are_copied(coco):
    image(coco / "images" / "unused.png")
    imported("coco", coco, "set.json", copy=True)
    copied = coco / "out" / "images" / "set"
    assert not copied.is_symlink() and len(list(copied.iterdir())) == NUM_IMAGES
    assert (copied / "3.png").read_bytes() == (coco / "images" / "3.png").read_bytes()


def test_images_below_the_output_folder_stay_where_they_are(coco):
    found, _ = imported("coco", coco, "set.json", out=".")
    assert found[0]["images"] == ["images/0.png"]
    assert not (coco / "images" / "set").exists()


def test_a_part_is_held_out_by_the_path_alone(coco):
    rest, report = imported("coco", coco, "set.json", hold_out=0.3)
    held_out = lines(coco / "out" / "validation.jsonl")
    assert 1 <= len(held_out) <= 12 and len(rest) + len(held_out) == NUM_IMAGES
    assert report["images"]["written"] == {"set.jsonl": len(rest), "validation.jsonl": len(held_out)}
    values = json.loads((coco / "set.json").read_text())
    values["images"].reverse()
    (coco / "set.json").write_text(json.dumps(values))
    imported("coco", coco, "set.json", out="again", hold_out=0.3)
    paths = {one["images"][0] for one in held_out}
    assert {one["images"][0] for one in lines(coco / "again" / "validation.jsonl")} == paths


def test_two_splits_in_one_folder(coco):
    imported("coco", coco, "set.json")
    imported("coco", coco, "set.json", name="second")
    report = json.loads((coco / "out" / "import_report.json").read_text())
    assert list(report) == ["set.jsonl", "second.jsonl"]


def test_what_is_there_is_never_overwritten(coco):
    imported("coco", coco, "set.json")
    before = {path: path.read_bytes() for path in (coco / "out").glob("*.json*")}
    with pytest.raises(ConfigError, match="exists already"):
        imported("coco", coco, "set.json", hold_out=0.5)
    assert {path: path.read_bytes() for path in (coco / "out").glob("*.json*")} == before


def test_an_import_that_fails_half_way_leaves_nothing(coco, monkeypatch):
    """The disk fills up at the tenth image."""

    def full(source, destination):
        if source.name == "9.png":
            raise OSError(28, "No space left on device", str(destination))

    monkeypatch.setattr(importing.shutil, "copyfile", full)
    with pytest.raises(EnvironmentFault, match="No space left on device"):
        imported("coco", coco, "set.json", copy=True)
    assert list((coco / "out").iterdir()) == []


def test_another_import_of_the_same_name_is_not_disturbed(coco):
    (coco / "out" / ".set.partial").mkdir(parents=True)
    with pytest.raises(ConfigError, match="another import of this name"):
        imported("coco", coco, "set.json")
    assert (coco / "out" / ".set.partial").is_dir()


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"hold_out": 0.01}, DataError, "left none for validation.jsonl"),
        ({"hold_out": 0.3, "name": "validation"}, ConfigError, "both what is held out and the rest"),
        ({"out": "set.json"}, EnvironmentFault, "cannot be written"),
    ],
)
def test_what_is_refused(coco, changes, kind, message):
    with pytest.raises(kind, match=message):
        imported("coco", coco, "set.json", **changes)
    assert not (coco / "out").exists() or list((coco / "out").iterdir()) == []


def test_a_report_that_is_none_is_refused_first(coco):
    (coco / "out").mkdir()
    (coco / "out" / "import_report.json").write_text("[]")
    with pytest.raises(ConfigError, match="is no report of an import"):
        imported("coco", coco, "set.json")


def test_names_that_the_reader_would_refuse(coco):
    values = json.loads((coco / "set.json").read_text())
    values["categories"] += [
        {"id": 2, "name": "x" * 4000},
        {"id": 3, "name": "  "},
        {"id": 4, "name": "a\nb \u00e9"},
        {"id": 5, "name": "\0"},
    ]
    values["annotations"] += [
        {"image_id": 0, "category_id": key, "bbox": [50, 50, 20, 20]} for key in (2, 3, 4, 5)
    ]
    (coco / "set.json").write_text(json.dumps(values))
    found, report = imported("coco", coco, "set.json")
    assert [one["desc"] for one in found[0]["objects"]] == ["cat", "a\nb \u00e9"]
    assert report["objects"]["left_out"] == {"long_name": 1, "no_name": 2}


def test_the_name_of_the_output(tmp_path):
    assert output_name("coco", tmp_path / "instances_val.json", None) == "instances_val"
    assert output_name("yolo", tmp_path / "data.yaml", None) == "train"
    assert output_name("voc", tmp_path / "Annotations", "val") == "val"
    with pytest.raises(ConfigError, match="is no name of a file"):
        output_name("coco", tmp_path / "x.json", "../val")


def test_what_is_written_is_read(coco):
    """Every other test reads it too, through `imported`; this one looks at a whole record."""
    imported("coco", coco, "set.json")
    (first, *_) = read_records(coco / "out" / "set.jsonl", image_root=None, box_format="bins")
    assert (first.id, first.width, first.objects[0].box) == ("0", WIDTH, (30, 90, 90, 270))
