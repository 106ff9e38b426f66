"""Foreign boxes -> bins. The numbers of whole sets are in the tests of each format."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from ds_stage2ab.formats.boxes import Placed, place, polygon_corners, turned

SIDES = (40, 20)
PIXELS = (5, 2, 15, 6)  # of the stored image: left, top, right, bottom
CORNERS = (5 / 40, 2 / 20, 15 / 40, 6 / 20)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_turns_with_its_image(orientation, tmp_path):
    """Where Pillow, which training reads with, shows the white pixels of the box."""
    stored = Image.new("L", SIDES)
    stored.paste(255, PIXELS)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    shown = ImageOps.exif_transpose(Image.open(tmp_path / "a.png"))
    sides = shown.size * 2
    found = [round(value * side, 6) for value, side in zip(turned(CORNERS, orientation), sides, strict=True)]
    assert tuple(found) == shown.getbbox()


SIZES = st.integers(min_value=1, max_value=5000)


@given(data=st.data(), width=SIZES, height=SIZES)
def test_a_box_inside_moves_by_half_a_bin_at_most(data, width, height):
    corners = []
    for side in (width, height):
        first = data.draw(st.floats(min_value=0, max_value=side * 0.9))
        corners.append((first / side, data.draw(st.floats(min_value=first + side * 0.002, max_value=side)) / side))
    (x1, x2), (y1, y2) = corners
    placed = place((x1, y1, x2, y2), 1, (width, height), 0.0)
    assert isinstance(placed, Placed) and not placed.clipped
    for fraction, k in zip((x1, y1, x2, y2), placed.box, strict=True):
        assert abs(k / 999 - fraction) <= 0.5 / 999 + 1e-12


@pytest.mark.parametrize(
    ("corners", "min_side", "found"),
    [
        ((0.1, 0.1, 0.2, 0.2), 0.0, Placed((100, 100, 200, 200), False)),
        ((0.1, 0.1, 0.2, 0.2), 10.1, "too_small"),  # a tenth of 100 pixels
        ((-0.1, 0.1, 0.2, 0.2), 0.0, Placed((0, 100, 200, 200), True)),
        ((0.9, 0.9, 1.0000001, 1.0), 0.0, Placed((899, 899, 999, 999), False)),
        ((1.0, 0.1, 1.2, 0.2), 0.0, "outside"),
        ((-0.2, 0.1, 0.0, 0.2), 0.0, "outside"),
        ((0.2, 0.1, 0.2, 0.2), 0.0, "zero_area"),
        ((0.2, 0.3, 0.3, 0.2), 0.0, "zero_area"),
        ((0.5, 0.1, 0.5004, 0.2), 0.0, "too_thin"),  # 499.5 and 499.9 are both bin 500
        ((float("nan"), 0.1, 0.5, 0.2), 0.0, "bad_box"),
        ((0.1, 0.1, float("inf"), 0.2), 0.0, "bad_box"),
    ],
)
def test_what_is_kept(corners, min_side, found):
    assert place(corners, 1, (100, 100), min_side) == found


def test_a_polygon_has_three_points():
    assert polygon_corners([1, 2, 3, 4, 2, 9]) == (1, 2, 3, 9)
    assert polygon_corners([1, 2, 3, 4]) is None
    assert polygon_corners([1, 2, 3, 4, 2, 9, 1]) is None
