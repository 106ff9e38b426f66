"""Boxes in every form that data sets have, and every form taken for every other one."""

import json
from random import Random

import pytest
from PIL import Image

from ds_stage2ab.codec.bins import MAX_BIN
from ds_stage2ab.data.box_forms import FORMS, BoxRefused, numbers_of, to_bins
from ds_stage2ab.data.box_space import SizedBox, other_form
from ds_stage2ab.data.records import read_records
from ds_stage2ab.errors import DataError

SIZES = ((224, 224), (640, 480), (1920, 1440))
SAME_SCALE = {"bins", "norm1000"}  # less than one bin apart


def scene(number=60):
    """Fractions (x1, y1, x2, y2) of objects all over an image, one of them the whole image."""
    random = Random(0)
    starts = [(random.uniform(0, 0.9), random.uniform(0, 0.9)) for _ in range(number - 1)]
    boxes = [(x, y, random.uniform(x + 0.05, 1), random.uniform(y + 0.05, 1)) for x, y in starts]
    return [(0.0, 0.0, 1.0, 1.0), *boxes]


def written(box, name, width, height):
    """What a user of this form has in the file: numbers rounded as data sets round them."""
    x1, y1, x2, y2 = box
    if name in SAME_SCALE:
        return [round(v * (MAX_BIN if name == "bins" else 1000)) for v in box]
    if name.startswith("pixel"):
        x1, y1, x2, y2 = (round(v * size, 2) for v, size in zip(box, (width, height) * 2, strict=True))
    if name == "pixel_xywh":
        return [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
    if name == "fraction_cxcywh":
        return [round(v, 6) for v in ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)]
    return [round(v, 6) for v in (x1, y1, x2, y2)]


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        # 250 / 999 is bin 250; norm1000: 999 * 0.25 = 249.75; pixels: 999 * 25 / 100, where the last pixel is 100
        ("bins", [250, 100, 750.0, "<|coord_999|>"], (250, 100, 750, 999)),
        ("norm1000", [250, 100, 750, 1000], (250, 100, 749, 999)),  # 749.25
        ("pixel", [25, 10, 75, 101], (250, 100, 749, 999)),
        ("pixel_xywh", [25, 10, 50, 91], (250, 100, 749, 999)),
        ("fraction", [0.25, 0.1, 0.75, 1], (250, 100, 749, 999)),
        ("fraction_cxcywh", [0.5, 0.55, 0.5, 0.9000004], (250, 100, 749, 999)),  # a rounding beyond the edge
    ],
)
def test_by_hand(name, values, expected):
    assert to_bins(values, FORMS[name], 101, 101) == expected


@pytest.mark.parametrize("name", FORMS)
def test_numbers_come_back(name):
    for width, height in SIZES:
        for box in scene():
            bins = to_bins(written(box, name, width, height), FORMS[name], width, height)
            numbers = numbers_of(bins, FORMS[name], width, height)
            back = FORMS[name].corners(numbers)
            sides = FORMS[name].sides(width, height) * 2
            again = [v / side for v, side in zip(back, sides, strict=True)]
            assert again == pytest.approx(box, abs=0.006)  # a pixel of 224, and half a bin


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("bad", [10**400, 1e999, -1, True, None, "5", [1]])
def test_what_is_no_coordinate_is_refused_in_every_form(name, bad):
    for place in range(4):
        values = [0, 0, 1, 1]
        values[place] = bad
        with pytest.raises(BoxRefused):
            to_bins(values, FORMS[name], 64, 48)


def file_of(folder, name, size, number=60):
    Image.new("RGB", size).save(folder / "a.png")
    objects = [{"desc": "cat", "bbox_2d": written(box, name, *size)} for box in scene(number)]
    path = folder / "set.jsonl"
    path.write_text(json.dumps({"images": ["a.png"], "width": size[0], "height": size[1], "objects": objects}) + "\n")
    return path


def answer(path, declared):
    """What the reader says of a file: the refusal, else the warning, else nothing."""
    try:
        records = read_records(path, image_root=None, box_format=declared)
    except DataError as error:
        return str(error)
    return other_form([SizedBox(t.box, r.width, r.height) for r in records for t in r.objects], declared)


@pytest.mark.parametrize("size", [SIZES[0], pytest.param(SIZES[1], marks=pytest.mark.soak), SIZES[2]], ids=str)
@pytest.mark.parametrize("true", FORMS)
@pytest.mark.parametrize("declared", FORMS)
def test_a_wrong_form_is_told_and_the_remedy_is_right(tmp_path, declared, true, size):
    """Followed to the letter, the remedies end at a form that reads the boxes as they were meant."""
    path, now, seen = file_of(tmp_path, true, size), declared, []
    while said := answer(path, now):
        seen.append(now)
        assert f"set data.box_format: {true}" in said or SAME_SCALE & {true}, said
        now = said.rpartition("set data.box_format: ")[2].split()[0].strip(";")
        assert now not in seen, said
    assert now == true or {now, true} == SAME_SCALE, f"{now} is silent"


def test_one_pixel_too_many_is_no_reason_for_another_form(tmp_path):
    path = file_of(tmp_path, "pixel", (640, 480))
    record = json.loads(path.read_text())
    record["objects"][5]["bbox_2d"][2] = 643
    path.write_text(json.dumps(record) + "\n")
    assert answer(path, "pixel").endswith("fix: correct the box")


@pytest.mark.parametrize(("true", "declared"), [("pixel_xywh", "pixel"), ("fraction_cxcywh", "fraction")])
def test_large_objects_in_another_layout_are_legal_and_told(true, declared):
    """Objects that fill most of the image: left < width for all of them, so each is a legal box of corners."""
    random = Random(1)
    boxes = [(random.uniform(0.02, 0.2), random.uniform(0.02, 0.2), random.uniform(0.8, 1), 0.9) for _ in range(40)]
    read = [to_bins(written(box, true, 640, 480), FORMS[declared], 640, 480) for box in boxes]
    assert other_form([SizedBox(box, 640, 480) for box in read], declared).endswith(f"set data.box_format: {true}")
    right = [to_bins(written(box, declared, 640, 480), FORMS[declared], 640, 480) for box in boxes]
    assert other_form([SizedBox(box, 640, 480) for box in right], declared) == ""


@pytest.mark.parametrize("declared", ["pixel", "fraction", "norm1000"])
def test_one_centred_object_in_each_image_is_no_other_layout(declared):
    box = to_bins(written((0.1, 0.1, 0.9, 0.9), declared, 640, 480), FORMS[declared], 640, 480)
    assert other_form([SizedBox(box, 640, 480)] * 30, declared) == ""
