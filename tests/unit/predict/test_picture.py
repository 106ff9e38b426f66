"""Pictures of predictions: whatever is found can be read."""

import random

import pytest
from PIL import Image

from ds_stage2ab.carriers import Truth
from ds_stage2ab.predict.picture import COLOURS, LABEL_HEIGHT, draw_detections, place_labels

GREY = (128, 128, 128)
HEADER = 40
ORANGE = tuple(bytes.fromhex(COLOURS[0][1:]))


def some(count: int) -> list[Truth]:
    draw = random.Random(count)
    found = []
    for _ in range(count):
        x, y = draw.randrange(800), draw.randrange(800)
        found.append(Truth(desc=draw.choice(("person", "traffic light of three lamps")), box=(x, y, x + 150, y + 150)))
    return found


def shared(one, other) -> float:
    width, height = (min(one[side + 2], other[side + 2]) - max(one[side], other[side]) for side in (0, 1))
    return max(0, width) * max(0, height)


@pytest.mark.parametrize("count", [1, 7, 40])
def test_no_number_covers_another(count):
    draw = random.Random(count)
    boxes = []
    for _ in range(count):
        x, y = draw.uniform(0, 1100), draw.uniform(0, 750)
        boxes.append((x, y, x + draw.uniform(5, 200), y + draw.uniform(5, 200)))
    labels = place_labels(boxes, [30.0] * count, (0, 0, 1280, 854))
    assert all(0 <= x1 and x2 <= 1280 and 0 <= y1 and y2 <= 854 for x1, y1, x2, y2 in labels)
    assert sum(shared(one, other) for place, one in enumerate(labels) for other in labels[:place]) == 0
    for (x1, y1, x2, y2), label in zip(boxes, labels, strict=True):  # each touches its box, or lies beside it
        assert shared(label, (x1 - 40, y1 - 2 * LABEL_HEIGHT, x2 + 40, y2 + 2 * LABEL_HEIGHT)) > 0


def test_many_names_are_listed_and_few_written_at_their_boxes():
    image = Image.new("RGB", (640, 427), GREY)
    few, many = (draw_detections(image, some(n), [0.5] * n, "") for n in (4, 40))
    assert few.size == (1280 + 24, 854 + HEADER + 12)
    assert (many.width - few.width, many.height) == (2 * 360, few.height)  # 30 rows of 28 pixels in 854


@pytest.mark.parametrize(("size", "longest"), [((4000, 3000), 2000), ((1200, 10), 1200), ((96, 64), 1152)])
def test_any_size_becomes_one_to_look_at(size, longest):
    drawn = draw_detections(Image.new("RGB", size, GREY), some(2), [0.25, 1.0], "")
    assert drawn.width in (longest + 24, longest + 24 + 2 * 360)


def test_a_box_stands_where_its_bins_say():
    """Bins 333 and 666 of 1,200 pixels: pixels 400 and 799 (k / 999 of 1,199), below a header of 40 and right of 12."""
    objects = [Truth(desc="a", box=(333, 333, 666, 666))]
    drawn = draw_detections(Image.new("RGB", (1200, 1200), GREY), objects, [0.5], "")
    assert drawn.getpixel((12 + 400, HEADER + 600)) == ORANGE == drawn.getpixel((12 + 799, HEADER + 600))
    assert drawn.getpixel((12 + 600, HEADER + 799)) == ORANGE
    assert drawn.getpixel((12 + 600, HEADER + 600)) == GREY


def test_nothing_found_is_said():
    image = Image.new("RGB", (1200, 300), GREY)
    silent, told = (draw_detections(image, [], [], note) for note in ("", "the answer is truncated"))
    header = (0, 0, 1200, HEADER)
    assert told.crop(header).tobytes() != silent.crop(header).tobytes()
    assert silent.crop((12, HEADER, 1212, 340)).getcolors() == [(360_000, GREY)]
