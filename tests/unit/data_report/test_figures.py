"""What a set holds, counted by hand."""

import pytest
from PIL import Image

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.data.images import unusable_images
from ds_stage2ab.data_report.figures import (
    ASPECT,
    BOX_HEIGHT,
    BOX_WIDTH,
    IMAGE_WIDTH,
    PER_IMAGE,
    same_images,
    set_figures,
    spread,
)
from ds_stage2ab.data_report.findings import of_images, of_one_set

CAT, WIDE = Truth(desc="cat", box=(0, 0, 100, 200)), Truth(desc="Cat ", box=(0, 0, 500, 100))
DOG = Truth(desc="dog", box=(10, 10, 20, 20))


def record(path, key, *objects, size=(64, 32)) -> Record:
    return Record(id=key, image=path, width=size[0], height=size[1], objects=objects, where=f"set.jsonl:{key}")


@pytest.fixture
def folder(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "red")):
        Image.new("RGB", (64, 32), colour).save(tmp_path / f"{name}.bmp")
    (tmp_path / "d.bmp").write_bytes(b"BM, and no more")
    return tmp_path


@pytest.fixture
def records(folder):
    return [
        record(folder / "a.bmp", "1", CAT, WIDE, CAT),
        record(folder / "b.bmp", "2"),
        record(folder / "c.bmp", "3", DOG, size=(32, 64)),
        record(folder / "d.bmp", "4", DOG),
        record(folder / "gone.bmp", "5", DOG),
    ]


def test_the_figures_of_a_set(records, folder):
    figures = set_figures(folder / "set.jsonl", records, [])
    assert (figures.objects, figures.empty) == (6, 1)
    assert [(one.name, one.objects, one.images) for one in figures.classes] == [
        ("dog", 3, 3), ("cat", 2, 1), ("Cat ", 1, 1),
    ]  # fmt: skip
    measures = {name: values.tolist() for name, values in figures.measures.items()}
    assert measures[PER_IMAGE] == [3, 0, 1, 1, 1]
    assert measures[BOX_WIDTH] == [100, 500, 100, 10, 10, 10]
    assert measures[BOX_HEIGHT] == [200, 100, 200, 10, 10, 10]
    # (100 / 200) (64 / 32), 5 x 2, again the first, 1 x 1/2, 1 x 2 twice
    assert measures[ASPECT] == [1, 10, 1, 0.5, 2, 2]
    assert measures[IMAGE_WIDTH] == [64, 64, 32, 64, 64]
    assert figures.repeated == ("1",)
    assert figures.spellings == (("Cat ", "cat"),)


def test_a_spread():
    import numpy as np

    assert spread(np.arange(101.0)) == ["0", "5", "50", "95", "100"]
    assert spread(np.array([1234.5678])) == ["1,235"] * 5


def test_images_that_cannot_be_used(records):
    found = list(unusable_images(records))
    assert [line.split(":")[1] for line in found] == ["3", "4", "5"]
    assert "64 x 32 pixels" in found[0] and "is gone" in found[2]


def test_images_of_the_same_content(records):
    assert [[one.id for one in group] for group in same_images(records)] == [["1", "3"]]


def test_the_findings(records, folder):
    unusable = list(unusable_images(records))
    found = list(of_one_set(set_figures(folder / "set.jsonl", records, unusable), "bins"))
    assert found[0].startswith("3 images cannot be used; the first, set.jsonl:3: ")
    assert found[1] == "an object stands twice, with the same name and box, in 1 sample; the first, 1"
    assert found[2].endswith("takes as one: 'Cat ', 'cat'")
    pixels = [Truth(desc="cat", box=(k, k, k + 30, k + 26)) for k in range(4)]
    figures = set_figures(folder / "x.jsonl", [record(folder / "a.bmp", str(k), *pixels) for k in range(6)], [])
    # 24 boxes that end at (33, 29) or before, and one at 62 and 31, in an image of 64 x 32: pixels read as bins
    edge = set_figures(
        folder / "x.jsonl", [*figures.records, record(folder / "a.bmp", "e", Truth(desc="cat", box=(1, 1, 62, 31)))], []
    )
    assert "boxes look like pixels" in next(of_one_set(edge, "bins"))
    assert list(of_one_set(figures, "bins")) == []


def test_held_out_images_that_are_trained(records, folder):
    train = set_figures(folder / "t.jsonl", records[:2], [])
    validation = set_figures(folder / "v.jsonl", records[2:3], [])
    leaked, same = of_images(train, validation)
    pair = "set.jsonl:1 and set.jsonl:3"
    assert leaked == f"1 held-out image in the training set too, by the content; the first, {pair}"
    assert same == f"1 image with the content of another one; the first, {pair}"
    assert list(of_images(set_figures(folder / "t.jsonl", records[1:3], []), None)) == []


def test_images_that_cannot_be_read_are_no_traceback(records, folder):
    """Of one length, and none of them can be read: an error of the system at the first byte."""
    for name in ("e.bmp", "f.bmp"):
        (folder / name).symlink_to("/proc/self/mem")
    broken = [record(folder / name, name) for name in ("e.bmp", "f.bmp")]
    assert same_images([*records, *broken]) == same_images(records) != []
    assert [line.partition(" image")[0] for line in unusable_images(broken)] == ["set.jsonl:e.bmp:", "set.jsonl:f.bmp:"]
