"""Predictions drawn for people: a colour for each name, names and scores beside the boxes, or in a list if it is full.

Labels that cover the image hide what they name. Where they would, each box bears a number, and the list at the side
says what it is; so forty objects can be read, and a photograph of any size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ds_stage2ab.carriers import Truth
from ds_stage2ab.codec.bins import MAX_BIN
from ds_stage2ab.codec.names import compared
from ds_stage2ab.evaluation.pictures import CASING_COLOUR, FAINT_COLOUR, INK_COLOUR, PAPER_COLOUR, label_font, shortened

Rectangle = tuple[float, float, float, float]

COLOURS = ("#f5821f", "#23c4b0", "#a78bfa", "#f472b6", "#60a5fa", "#d4c200", "#a3a9b0", "#5cc85c")
"""By the number of objects; light enough for dark letters."""
USUAL_SIDE, LONGEST_SIDE = 1200, 2000
"""Pixels of the longer side: smaller images are enlarged by a whole factor, larger ones shrunk."""
MOST_COVERED = 1 / 8
"""Of the image, by names: else numbers."""
SMALL = 0.005  # a score that two decimals would round to nothing
FONT_SIZE, LABEL_HEIGHT, BLANK = 18, 25, 5
MARGIN, HEADER = 12, 40
ROW, SIDE_WIDTH = 28, 360
"""Pixels of a line of the list, and of a column."""


@dataclass(frozen=True, slots=True)
class _Mark:
    box: Rectangle
    # pixels of the canvas
    name: str
    score: str
    colour: str


def draw_detections(image: Image.Image, objects: Sequence[Truth], scores: Sequence[float], note: str) -> Image.Image:
    """An RGB picture.

    Args:
        image: RGB, as the model saw it.
        objects: boxes in bins; bin b lies at b / 999 of the side.
        note: what is to be said of the answer; empty: nothing.
    """
    scaled = _scaled(image)
    marks = list(_marks(objects, scores, scaled.size))
    inner = (MARGIN, HEADER, MARGIN + scaled.width, HEADER + scaled.height)
    texts = [f"{mark.name} {mark.score}" for mark in marks]
    labels = _labels(marks, texts, inner)
    listed = _hide(labels, inner)
    if listed:
        texts = [str(number) for number in range(1, len(marks) + 1)]
        labels = _labels(marks, texts, inner)
    rows = max(1, scaled.height // ROW)
    columns = -(-len(marks) // rows) if listed else 0
    size = (scaled.width + 2 * MARGIN + columns * SIDE_WIDTH, scaled.height + HEADER + MARGIN)
    canvas = Image.new("RGB", size, PAPER_COLOUR)
    canvas.paste(scaled, (MARGIN, HEADER))
    draw = ImageDraw.Draw(canvas)
    head = f"{len(marks)} object{'s' * (len(marks) != 1)}{f'; {note}' * bool(note)}"
    draw.text((MARGIN, HEADER / 2), head, font=label_font(FONT_SIZE), fill=INK_COLOUR, anchor="lm")
    for mark in sorted(marks, key=lambda mark: -_area(mark.box)):
        _draw_box(draw, mark)
    for place, (mark, text, label) in enumerate(zip(marks, texts, labels, strict=True)):
        _draw_label(draw, mark, text, label)
        if listed:
            left = scaled.width + 2 * MARGIN + place // rows * SIDE_WIDTH
            _draw_row(draw, text, mark, left, HEADER + place % rows * ROW)
    return canvas


def _scaled(image: Image.Image) -> Image.Image:
    longest = max(image.size)
    if longest > LONGEST_SIDE:
        size = tuple(max(1, round(side * LONGEST_SIDE / longest)) for side in image.size)
        return image.resize(size, Image.Resampling.LANCZOS)
    factor = max(1, round(USUAL_SIDE / longest))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _marks(objects: Sequence[Truth], scores: Sequence[float], size: tuple[int, int]) -> Iterator[_Mark]:
    """From top to bottom, so that a number is found."""
    names = [name for name, _ in Counter(compared(one.desc) for one in objects).most_common()]
    found = sorted(zip(objects, scores, strict=True), key=lambda pair: (pair[0].box[1], pair[0].box[0]))
    for one, score in found:
        x1, y1, x2, y2 = (k / MAX_BIN * (side - 1) for k, side in zip(one.box, size * 2, strict=True))
        box = (MARGIN + x1, HEADER + y1, MARGIN + x2, HEADER + y2)
        colour = COLOURS[names.index(compared(one.desc)) % len(COLOURS)]
        yield _Mark(box, shortened(one.desc), _short(score), colour)


def _short(score: float) -> str:
    """Products of many probabilities are small: the order tells more than 0.00."""
    return f"{score:.2f}" if score >= SMALL or score == 0 else f"{score:.0e}"


def _area(box: Rectangle) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _draw_box(draw: ImageDraw.ImageDraw, mark: _Mark) -> None:
    x1, y1, x2, y2 = mark.box
    draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline=CASING_COLOUR, width=5)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=mark.colour, width=3)


def _draw_label(draw: ImageDraw.ImageDraw, mark: _Mark, text: str, label: Rectangle) -> None:
    draw.rectangle(label, fill=mark.colour, outline=CASING_COLOUR)
    middle = (label[0] + BLANK, (label[1] + label[3]) / 2)
    draw.text(middle, text, font=label_font(FONT_SIZE), fill=INK_COLOUR, anchor="lm")


def _labels(marks: Sequence[_Mark], texts: Sequence[str], image: Rectangle) -> list[Rectangle]:
    font = label_font(FONT_SIZE)
    return place_labels([mark.box for mark in marks], [font.getlength(text) + 2 * BLANK for text in texts], image)


def _hide(labels: Sequence[Rectangle], image: Rectangle) -> bool:
    """Whether they cover too much of the image, or each other."""
    covered = sum(map(_area, labels)) > MOST_COVERED * _area(image)
    return covered or any(_shared(one, other) > 0 for place, one in enumerate(labels) for other in labels[:place])


def place_labels(boxes: Sequence[Rectangle], widths: Sequence[float], image: Rectangle) -> list[Rectangle]:
    """Where the label of each box stands: at it, within the image, and on as few pixels of other labels as possible.

    The small boxes choose first: a large one has room elsewhere.
    """
    taken: dict[int, Rectangle] = {}
    for place in sorted(range(len(boxes)), key=lambda place: _area(boxes[place])):
        around = _places(boxes[place], (widths[place], LABEL_HEIGHT), image)
        taken[place] = min(around, key=lambda one: sum(_shared(one, other) for other in taken.values()))
    return [taken[place] for place in range(len(boxes))]


def _places(box: Rectangle, size: tuple[float, float], image: Rectangle) -> list[Rectangle]:
    """Around the box and in its corners, the usual ones first; within the image."""
    (x1, y1, x2, y2), (width, height) = box, size
    lefts, tops = (x1 - 2, x2 + 2 - width), (y1 - 2 - height, y2 + 2, y1 - 2, y2 + 2 - height)
    corners = [(left, top) for top in tops for left in lefts]
    corners += [(x2 + 4, y1 - 2), (x1 - 4 - width, y1 - 2), (x2 + 4, y2 - height), (x1 - 4 - width, y2 - height)]
    return [_within((left, top, left + width, top + height), image) for left, top in corners]


def _within(label: Rectangle, image: Rectangle) -> Rectangle:
    """Moved so that it does not leave the image."""
    right = max(0.0, image[0] - label[0]) - max(0.0, label[2] - image[2])
    down = max(0.0, image[1] - label[1]) - max(0.0, label[3] - image[3])
    return label[0] + right, label[1] + down, label[2] + right, label[3] + down


def _shared(first: Rectangle, second: Rectangle) -> float:
    """Pixels that both cover."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(0.0, width) * max(0.0, height)


def _draw_row(draw: ImageDraw.ImageDraw, number: str, mark: _Mark, left: float, top: float) -> None:
    font, middle = label_font(FONT_SIZE), top + LABEL_HEIGHT / 2
    draw.rectangle((left, top, left + 40, top + LABEL_HEIGHT), fill=mark.colour, outline=CASING_COLOUR)
    draw.text((left + 20, middle), number, font=font, fill=INK_COLOUR, anchor="mm")
    draw.text((left + 50, middle), mark.name, font=font, fill=INK_COLOUR, anchor="lm")
    draw.text((left + SIDE_WIDTH - MARGIN, middle), mark.score, font=font, fill=FAINT_COLOUR, anchor="rm")
