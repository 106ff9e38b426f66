"""Sets of boxes in the right convention and in the other one."""

from pathlib import Path
from random import Random

import pytest

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.codec.bins import pixel_to_bin
from ds_stage2ab.data.box_space import boxes_of, other_form
from ds_stage2ab.data.records import read_records


def records(width, height, boxes):
    objects = tuple(Truth(desc="a", box=box) for box in boxes)
    return [Record(id="r", image=Path("x.png"), width=width, height=height, objects=objects, where="x:1")]


def boxes_up_to(right, lower, number=40):
    """Boxes all over a range, one of them at its far corner."""
    random = Random(0)
    corners = [(random.randrange(right - 10), random.randrange(lower - 10)) for _ in range(number - 1)]
    some = [(x, y, random.randrange(x + 1, right), random.randrange(y + 1, lower)) for x, y in corners]
    return [*some, (right - 20, lower - 20, right - 1, lower - 1)]


def as_bins(boxes, width, height):
    sizes = (width, height, width, height)
    return [tuple(pixel_to_bin(c, size) for c, size in zip(box, sizes, strict=True)) for box in boxes]


def looks(found, box_format):
    return other_form(boxes_of(found), box_format)


def test_pixels_read_as_bins():
    warning = looks(records(640, 480, boxes_up_to(640, 480)), "bins")
    assert warning.startswith("boxes look like pixels: each of 40, ")
    assert warning.endswith("set data.box_format: pixel")


def test_bins_read_as_pixels():
    read = as_bins(boxes_up_to(1000, 1000), 1920, 1280)
    assert looks(records(1920, 1280, read), "pixel").startswith("boxes look like bins of 0..999: each of 40, ")


@pytest.mark.parametrize(
    ("width", "height", "boxes", "box_format"),
    [
        (640, 480, boxes_up_to(1000, 1000), "bins"),
        (1920, 1280, as_bins(boxes_up_to(1920, 1280), 1920, 1280), "pixel"),
        (640, 480, boxes_up_to(640, 480, number=19), "bins"),  # too few
        (640, 480, boxes_up_to(400, 300), "bins"),  # they stay in a corner, whatever the unit
        (1000, 900, boxes_up_to(900, 850), "bins"),  # an image in which the two are alike
        (1100, 1000, as_bins(boxes_up_to(990, 990), 1100, 1000), "pixel"),
        (640, 480, [], "bins"),
    ],
    ids=["bins", "pixels", "few", "corner", "alike bins", "alike pixels", "none"],
)
def test_nothing_to_say(width, height, boxes, box_format):
    assert looks(records(width, height, boxes), box_format) == ""


def test_the_quickstart_is_right(quickstart):
    found = read_records(quickstart.data / "train.jsonl", image_root=None, box_format="bins")
    assert looks(found, "bins") == ""
