"""Each rank looks at its share of the images, and all of them have the same records."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from PIL import Image

from ds_stage2ab.data import datasets as module
from ds_stage2ab.data import records as reading
from ds_stage2ab.data.datasets import now_and_then, read_datasets
from ds_stage2ab.errors import DataError


class Ranks:
    """One of several ranks that cannot hear each other."""

    def __init__(self, rank, size):
        self.rank, self.size = rank, size

    def raise_together(self, doing):
        return nullcontext()

    def gather(self, value):
        return [value]


@pytest.fixture
def config(tmp_path):
    """Of 7 training and 3 held-out records."""
    for k in range(7):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{k}.png")
    (tmp_path / "linked.png").symlink_to("0.png")
    names = ["linked.png", *(f"{k}.png" for k in range(1, 7))]
    for file, count in (("train", 7), ("validation", 3)):
        lines = [{"images": [name], "width": 64, "height": 48, "objects": []} for name in names[:count]]
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = {"train": tmp_path / "train.jsonl", "validation": tmp_path / "validation.jsonl", "image_root": None}
    section = SimpleNamespace(**data, box_format="bins", on_bad_sample="stop")
    return SimpleNamespace(data=section, evaluation=SimpleNamespace(max_samples=None))


def nobody(line):
    raise AssertionError(line)


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_each_image_is_looked_for_and_looked_at_by_one_rank(config, monkeypatch, size):
    sought, opened = [], []
    find, check = reading.find_image, module.check_image
    monkeypatch.setattr(reading, "find_image", lambda root, text: sought.append(text) or find(root, text))
    monkeypatch.setattr(module, "check_image", lambda record: opened.append(record.image.name) or check(record))
    found = [read_datasets(config, Ranks(rank, size), nobody) for rank in range(size)]
    assert sorted(sought) == sorted(opened) == sorted(
        ["linked.png", *(f"{k}.png" for k in range(1, 7)), "linked.png", "1.png", "2.png"]
    )
    assert all(one.train == found[0].train and one.validation == found[0].validation for one in found)
    assert len(found[0].train) == 7


def test_the_rank_whose_share_it_is_in_finds_what_is_missing(config, tmp_path):
    (tmp_path / "4.png").unlink()
    for rank in (0, 2):
        read_datasets(config, Ranks(rank, 3), nobody)
    with pytest.raises(DataError, match=r"image '4\.png' does not exist") as caught:
        read_datasets(config, Ranks(1, 3), nobody)  # records 1 and 4
    assert caught.value.where == f"{tmp_path / 'train.jsonl'}:5"


@pytest.mark.parametrize("bad", ["../x.png", "/etc/passwd", "http://host/x.png"])
def test_a_path_that_no_record_may_have_is_refused_by_every_rank(config, tmp_path, bad):
    path = tmp_path / "train.jsonl"
    path.write_text(path.read_text().replace("3.png", bad))
    for rank in range(3):
        with pytest.raises(DataError):
            read_datasets(config, Ranks(rank, 3), nobody)


def test_a_line_now_and_then_and_of_all():
    times = iter([0.0, *(4.0 * n for n in range(1, 8))])
    told = []
    assert list(now_and_then(range(7), 28, told.append, clock=lambda: next(times))) == list(range(7))
    # 4 s each: after the 3rd (12 s) and after the 6th (24 s); 4 ranks have done as much
    assert told == ["looking at the images: 12 of 28, 12 s", "looking at the images: 24 of 28, 24 s"]


def test_the_first_rank_alone_speaks(config, monkeypatch):
    monkeypatch.setattr(module, "TELL_EVERY_S", 0)
    told = []
    for rank in range(2):
        read_datasets(config, Ranks(rank, 2), told.append)
        assert len(told) == 4, rank  # of the 7 training images the first of two ranks has 4
