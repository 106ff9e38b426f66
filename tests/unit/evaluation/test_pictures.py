"""Pictures: colours where the boxes are, nothing covered, files with safe names."""

import pytest
from PIL import Image

from ds_stage2ab.carriers import Truth
from ds_stage2ab.evaluation.pictures import (
    MARGIN,
    MAX_SIDE,
    MIN_WIDTH,
    PREDICTION_COLOUR,
    TRUTH_COLOUR,
    WRONG_COLOUR,
    Picture,
    draw_picture,
    save_pictures,
)

BLUE = (20, 40, 200)
CAT = Truth(desc="cat", box=(200, 300, 600, 800))
DOG = Truth(desc="dog", box=(650, 350, 900, 700))


def rgb(colour):
    return tuple(int(colour[index : index + 2], 16) for index in (1, 3, 5))


def origin(picture, image, factor):
    """Pixel of the picture where the image's first pixel is: paper around, the legend above."""
    return MARGIN, picture.height - MARGIN - image.height * factor


def drawing(image, predicted, truth, **known):
    return draw_picture(Picture(name="x", image=image, predicted=tuple(predicted), truth=tuple(truth), **known))


def test_boxes_lie_where_their_bins_say():
    # 100 x 80 pixels, enlarged by ceil(512 / 100) = 6 to 600 x 480.
    image = Image.new("RGB", (100, 80), BLUE)
    picture = drawing(image, [DOG], [CAT])
    left, top = origin(picture, image, 6)
    assert picture.width == 600 + 2 * MARGIN
    # Left side of the truth at 200 / 999 * 599 = 119.9, half-way down; its right side at 600 / 999 * 599 = 359.8.
    middle = top + round(550 / 999 * 479)
    assert picture.getpixel((left + 120, middle)) == rgb(TRUTH_COLOUR)
    assert picture.getpixel((left + 360, middle)) == rgb(TRUTH_COLOUR)
    # Left side of the prediction at 650 / 999 * 599 = 389.7.
    assert picture.getpixel((left + 390, middle)) == rgb(PREDICTION_COLOUR)
    # Inside and outside of the boxes the image is untouched.
    assert picture.getpixel((left + 240, middle)) == BLUE
    assert picture.getpixel((left + 10, top + 10)) == BLUE


def test_descriptions_cover_no_box():
    image = Image.new("RGB", (100, 80), BLUE)
    picture = drawing(image, [DOG], [CAT])
    left, top = origin(picture, image, 6)
    for item in (CAT, DOG):
        x1, x2 = (left + round(item.box[side] / 999 * 599) for side in (0, 2))
        y1, y2 = (top + round(item.box[side] / 999 * 479) for side in (1, 3))
        inside = picture.crop((x1 + 5, y1 + 5, x2 - 5, y2 - 5))
        assert inside.getcolors() == [(inside.width * inside.height, BLUE)]


def test_where_prediction_and_truth_agree_both_colours_show():
    picture = drawing(Image.new("RGB", (100, 80), BLUE), [CAT], [CAT])
    without_labels = picture.crop((MARGIN + 100, 200, MARGIN + 140, 420))
    colours = {colour for _, colour in without_labels.getcolors(maxcolors=10_000)}
    assert {rgb(TRUTH_COLOUR), rgb(PREDICTION_COLOUR)} <= colours


def test_an_object_without_partner_is_dashed():
    image = Image.new("RGB", (100, 80), BLUE)
    counts = {}
    for flag in (True, False):
        picture = drawing(image, [], [CAT], truth_matched=[flag])
        left, top = origin(picture, image, 6)
        column = [picture.getpixel((left + 120, y)) for y in range(top + 150, top + 380)]
        counts[flag] = sum(colour == BLUE for colour in column)
    assert counts[True] == 0
    assert counts[False] > 40


def test_flags_must_be_as_many_as_objects():
    with pytest.raises(ValueError, match="shorter"):
        drawing(Image.new("L", (64, 64)), [CAT, DOG], [], predicted_matched=[True])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("size", [(8, 8), (700, 500), (4000, 1000), (16, 900)])
def test_any_image_becomes_a_readable_size(mode, size):
    picture = drawing(Image.new(mode, size), [CAT], [DOG])
    inner = picture.width - 2 * MARGIN, picture.height - 2 * MARGIN
    assert picture.mode == "RGB"
    assert max(inner) <= MAX_SIDE + 40  # the legend's height
    assert inner[0] >= MIN_WIDTH or size[1] > size[0]


def test_long_and_foreign_descriptions_are_drawn():
    long = Truth(desc="a very long description\nof a thing " * 9, box=(0, 0, 999, 999))
    foreign = Truth(desc="\u0447\u0451\u0440\u043d\u044b\u0439 \u043a\u043e\u0442", box=(10, 10, 20, 20))
    assert drawing(Image.new("RGB", (64, 64)), [long, foreign], [long]).width > MIN_WIDTH


def test_no_picture_leaves_no_file(tmp_path):
    assert save_pictures(tmp_path / "pictures", 0, []) is None
    assert list(tmp_path.iterdir()) == []


def test_files_and_the_contact_sheet(tmp_path):
    image = Image.new("RGB", (96, 96), BLUE)
    pictures = [
        Picture(name="validation-000000", image=image, predicted=(CAT,), truth=(CAT, DOG)),
        Picture(name="../a b.jsonl:7", image=image, predicted=(), truth=()),
    ]
    sheet = save_pictures(tmp_path / "pictures", 100, pictures)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert sheet == tmp_path / "pictures" / "step_000100.png"
    assert names == [
        "pictures/step_000100.png",
        "pictures/step_000100/00_validation-000000.png",
        "pictures/step_000100/01_a_b.jsonl_7.png",
    ]
    with Image.open(sheet) as drawn:
        assert drawn.width == 2 * 420
        assert rgb(TRUTH_COLOUR) in {colour for _, colour in drawn.getcolors(maxcolors=100_000)}


def test_a_wrong_name_is_seen_as_such():
    image = Image.new("RGB", (100, 80), BLUE)
    cow = Truth(desc="cow", box=DOG.box)
    plain, wrong = (
        Picture(name="x", image=image, predicted=(cow,), truth=(DOG,), predicted_matched=(False,), wrong_names=pairs)
        for pairs in ((), ((0, 0),))
    )
    colours = [{colour for _, colour in draw_picture(one).getcolors(10**6)} for one in (plain, wrong)]
    assert rgb(WRONG_COLOUR) not in colours[0] and rgb(WRONG_COLOUR) in colours[1]
    # the whole left side is drawn: it is no object without a partner
    picture = draw_picture(wrong)
    left, top = origin(picture, image, 6)
    side = [picture.getpixel((left + 390, y)) for y in range(top + 180, top + 320)]
    assert set(side) == {rgb(WRONG_COLOUR)}


def test_a_picture_without_boxes_says_why():
    image = Image.new("RGB", (100, 80), BLUE)
    bare, told = (
        draw_picture(Picture(name="x", image=image, predicted=(), truth=(CAT,), note=note))
        for note in ("", "malformed, cut at the token limit")
    )
    below = (0, bare.height - MARGIN + 2, bare.width, bare.height)
    assert len(bare.crop(below).getcolors()) == 1 and len(told.crop(below).getcolors()) > 10
    assert bare.crop((0, 0, bare.width, bare.height - MARGIN)) == told.crop((0, 0, bare.width, bare.height - MARGIN))
