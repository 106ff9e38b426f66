"""Predictions over truth, drawn for people: two colours, descriptions beside the boxes, a legend."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ds_stage2ab.carriers import Truth
from ds_stage2ab.errors import printable

Rectangle = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels."""

LAST_BIN = 999
TRUTH_COLOUR = "#1b9e8f"  # teal and orange stay apart for every common kind of colour blindness,
WRONG_COLOUR = "#c2185b"  # of a prediction under a wrong name; its label says both names
PREDICTION_COLOUR = "#f5821f"  # in greyscale (dark and light), and on black and on white pictures
CASING_COLOUR = "#101418"
PAPER_COLOUR = "#ffffff"
INK_COLOUR = "#1c2126"
FAINT_COLOUR = "#8a9299"
MIN_WIDTH = 512  # smaller images are enlarged by a whole factor, so that pixels stay square
MAX_SIDE = 1280  # larger images are shrunk: the files are looked at, not measured
FONT_SIZE = 17
MAX_LABEL = 28  # characters; longer descriptions end in dots
MAX_NOTE = 54  # characters below a picture of a contact sheet
MAX_FILE_NAME = 100  # characters of a sample id; file systems take 255 bytes
DIGEST_BYTES = 8
MARGIN = 34  # paper around the image, high enough for one label
DASH = (8, 16)  # pixels drawn, pixels left out, before a stroke grows at its ends by half its breadth
SHEET_COLUMNS = 4
SHEET_CELL = 420  # pixels per picture of a contact sheet
SHEET_FONT_SIZE = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One validation image with what was found in it and what is there."""

    name: str
    image: Image.Image
    # as the model saw it, any mode
    predicted: tuple[Truth, ...]
    truth: tuple[Truth, ...]
    predicted_matched: tuple[bool, ...] | None = None
    # per prediction: has it a partner; None: not known
    truth_matched: tuple[bool, ...] | None = None
    # per true object: was it found; None: not known
    wrong_names: tuple[tuple[int, int], ...] = ()
    # (place among the predicted, place among the true) of boxes that were found under another name
    note: str = ""
    # said below the image, as why it has no boxes


@dataclass(frozen=True, slots=True)
class _Mark:
    """One box to draw, in pixels of the canvas."""

    box: Rectangle
    text: str
    is_truth: bool
    matched: bool
    is_misnamed: bool = False

    @property
    def colour(self) -> str:
        if self.is_misnamed:
            return WRONG_COLOUR
        return TRUTH_COLOUR if self.is_truth else PREDICTION_COLOUR


def draw_picture(picture: Picture) -> Image.Image:
    """An RGB picture of predictions over truth with a legend, at least `MIN_WIDTH` wide, the note below it.

    Bin b of a box lies at b / 999 * (width - 1) pixels; objects without a partner are drawn dashed.
    """
    body = _draw_body(picture, _scaled(picture.image), FONT_SIZE)
    legend = _draw_legend(body.width, picture)
    canvas = Image.new("RGB", (body.width, legend.height + body.height), PAPER_COLOUR)
    canvas.paste(legend, (0, 0))
    canvas.paste(body, (0, legend.height))
    place = (canvas.width / 2, canvas.height - MARGIN / 2)
    note = printable(picture.note)
    ImageDraw.Draw(canvas).text(place, note, font=label_font(SHEET_FONT_SIZE), fill=INK_COLOUR, anchor="mm")
    return canvas


def save_pictures(folder: Path, step: int, pictures: Sequence[Picture]) -> Path | None:
    """Write `step_000100/<name>.png` for each picture and `step_000100.png`, the contact sheet of all.

    Args:
        folder: made if it is missing.
        step: number of finished steps.
        pictures: the same validation images each time; none: nothing is written.

    Returns:
        The path of the contact sheet.
    """
    if not pictures:
        return None
    inner = folder / f"step_{step:06d}"
    inner.mkdir(parents=True, exist_ok=True)
    for index, picture in enumerate(pictures):
        draw_picture(picture).save(inner / f"{index:02d}_{_file_name(picture.name)}.png")
    sheet = folder / f"{inner.name}.png"
    _draw_sheet(step, pictures).save(sheet)
    return sheet


def _draw_body(picture: Picture, scaled: Image.Image, font_size: int) -> Image.Image:
    """The image at its final size on paper, with boxes and descriptions."""
    canvas = Image.new("RGB", (scaled.width + 2 * MARGIN, scaled.height + 2 * MARGIN), PAPER_COLOUR)
    draw = ImageDraw.Draw(canvas)
    frame = (MARGIN - 1, MARGIN - 1, MARGIN + scaled.width, MARGIN + scaled.height)
    draw.rectangle(frame, outline=FAINT_COLOUR)
    canvas.paste(scaled, (MARGIN, MARGIN))
    marks = _marks(picture, scaled.size)
    for mark in sorted(marks, key=lambda mark: not mark.is_truth):
        _draw_box(draw, mark)
    _draw_labels(draw, marks, canvas.size, font_size)
    return canvas


def _marks(picture: Picture, size: tuple[int, int]) -> list[_Mark]:
    """Truth and predictions in pixels, from top to bottom."""
    width, height = size
    marks = []
    truth_of = dict(picture.wrong_names)
    for is_truth, objects, flags in (
        (True, picture.truth, picture.truth_matched),
        (False, picture.predicted, picture.predicted_matched),
    ):
        for place, (item, matched) in enumerate(zip(objects, flags or [True] * len(objects), strict=True)):
            x1, x2 = (MARGIN + item.box[side] / LAST_BIN * (width - 1) for side in (0, 2))
            y1, y2 = (MARGIN + item.box[side] / LAST_BIN * (height - 1) for side in (1, 3))
            is_misnamed = not is_truth and place in truth_of
            meant = f"{item.desc}, is {picture.truth[truth_of[place]].desc}" if is_misnamed else item.desc
            mark = _Mark((x1, y1, x2, y2), shortened(meant), is_truth, matched or is_misnamed, is_misnamed)
            marks.append(mark)
    return sorted(marks, key=lambda mark: (mark.box[1], mark.box[0], not mark.is_truth))


def _draw_box(draw: ImageDraw.ImageDraw, mark: _Mark) -> None:
    """Truth is a broad line and a prediction a narrow one, so both show where they agree."""
    line = 5 if mark.is_truth else 3
    x1, y1, x2, y2 = mark.box
    sides = (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1)))
    for colour_now, line_now in ((CASING_COLOUR, line + 2), (mark.colour, line)):
        for start, end in sides:
            for piece in _pieces(start, end, dashed=not mark.matched):
                _draw_stroke(draw, piece, colour_now, line_now)


def _draw_stroke(
    draw: ImageDraw.ImageDraw, piece: tuple[tuple[float, float], tuple[float, float]], colour: str, line: int
) -> None:
    """An upright or level stroke as a filled rectangle, square at its ends: corners close without a gap."""
    (x1, y1), (x2, y2) = piece
    before, after = line // 2, (line - 1) // 2
    left, right = sorted((round(x1), round(x2)))
    top, bottom = sorted((round(y1), round(y2)))
    draw.rectangle((left - before, top - before, right + after, bottom + after), fill=colour)


def _pieces(
    start: tuple[float, float], end: tuple[float, float], dashed: bool
) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The line itself, or its dashes."""
    length = math.dist(start, end)
    if not dashed or length == 0:
        return [(start, end)]
    drawn, left_out = DASH
    count = max(1, round((length + left_out) / (drawn + left_out)))
    pitch = (length + left_out) / count

    def at(along: float) -> tuple[float, float]:
        share = min(along, length) / length
        return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])

    return [(at(index * pitch), at(index * pitch + pitch - left_out)) for index in range(count)]


def _draw_labels(draw: ImageDraw.ImageDraw, marks: Sequence[_Mark], size: tuple[int, int], font_size: int) -> None:
    """Descriptions above truths and below predictions; one that had to give way gets a line to its box."""
    font = label_font(font_size)
    placed: list[Rectangle] = []
    for mark in marks:
        label_size = (draw.textlength(mark.text, font=font) + 10, font_size + 7)
        placed.append(_label_place(mark, label_size, size, placed))
    for mark, label in zip(marks, placed, strict=True):
        x, gap = max(label[0] + 8, mark.box[0]), max(mark.box[1] - label[3], label[1] - mark.box[3])
        if gap < label[3] - label[1]:
            continue
        line = ((x, (label[1] + label[3]) / 2), (x, mark.box[1] if label[1] < mark.box[1] else mark.box[3]))
        draw.line(line, fill=CASING_COLOUR, width=4)
        draw.line(line, fill=mark.colour, width=2)
    for mark, label in zip(marks, placed, strict=True):
        ink = INK_COLOUR if mark.colour == PREDICTION_COLOUR else PAPER_COLOUR
        draw.rounded_rectangle(label, radius=4, fill=mark.colour, outline=CASING_COLOUR, width=1)
        draw.text((label[0] + 5, (label[1] + label[3]) / 2), mark.text, font=font, fill=ink, anchor="lm")


def _label_place(
    mark: _Mark, label: tuple[float, float], size: tuple[int, int], taken: Sequence[Rectangle]
) -> Rectangle:
    """The place nearest to the box, above it or below, on which no label stands yet; the first one if there is none."""
    width, height = label
    left = max(2.0, min(mark.box[0] - 4, size[0] - 2 - width))
    above = np.arange(mark.box[1] - 4 - height, 2, -height)
    below = np.arange(mark.box[3] + 4, size[1] - 2 - height, height)
    tops = (*above, *below) if mark.is_truth else (*below, *above)
    places = [(left, float(top), left + width, float(top) + height) for top in tops]
    return next((place for place in places if not any(_meet(place, other) for other in taken)), places[0])


def _meet(first: Rectangle, second: Rectangle) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _draw_legend(width: int, picture: Picture | None = None) -> Image.Image:
    """The strip above a picture: which colour is what, and how many."""
    strip = Image.new("RGB", (width, FONT_SIZE + 16), PAPER_COLOUR)
    draw = ImageDraw.Draw(strip)
    font = label_font(FONT_SIZE)
    x = float(MARGIN)
    middle = strip.height / 2 + 3
    dashes = picture is None or picture.predicted_matched is not None or picture.truth_matched is not None
    words = [
        ("truth" if picture is None else f"truth ({len(picture.truth)})", True, False),
        ("prediction" if picture is None else f"prediction ({len(picture.predicted)})", False, False),
    ]
    if picture is None or picture.wrong_names:
        words.append(("wrong name" if picture is None else f"wrong name ({len(picture.wrong_names)})", False, True))
    for text, is_truth, is_misnamed in words:
        _draw_box(draw, _Mark((x, middle - 7, x + 22, middle + 7), "", is_truth, True, is_misnamed))
        draw.text((x + 32, middle), text, font=font, fill=INK_COLOUR, anchor="lm")
        x += 32 + draw.textlength(text, font=font) + 26
    if dashes:
        draw.text((x, middle), "dashed: no partner", font=font, fill=FAINT_COLOUR, anchor="lm")
    return strip


def _draw_sheet(step: int, pictures: Sequence[Picture]) -> Image.Image:
    """All pictures in rows, each with its name and its numbers of objects."""
    columns = min(SHEET_COLUMNS, len(pictures))
    cells = [_draw_cell(picture) for picture in pictures]
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) for row in rows]
    legend = _draw_legend(max(columns * SHEET_CELL, 640))
    top = 40 + legend.height
    sheet = Image.new("RGB", (legend.width, top + sum(heights)), PAPER_COLOUR)
    title = f"step {step}"
    ImageDraw.Draw(sheet).text((MARGIN, 26), title, font=label_font(FONT_SIZE + 7), fill=INK_COLOUR, anchor="lm")
    sheet.paste(legend, (0, 40))
    for row, height in zip(rows, heights, strict=True):
        for column, cell in enumerate(row):
            sheet.paste(cell, (column * SHEET_CELL, top))
        top += height
    return sheet


def _draw_cell(picture: Picture) -> Image.Image:
    """One picture of the contact sheet in a square of `SHEET_CELL`, its caption below."""
    scaled = _scaled(picture.image)
    factor = (SHEET_CELL - 2 * MARGIN) / max(scaled.size)
    size = (max(1, round(scaled.width * factor)), max(1, round(scaled.height * factor)))
    body = _draw_body(picture, scaled.resize(size, Image.Resampling.LANCZOS), SHEET_FONT_SIZE)
    cell = Image.new("RGB", (SHEET_CELL, body.height + 2 * SHEET_FONT_SIZE), PAPER_COLOUR)
    cell.paste(body, ((SHEET_CELL - body.width) // 2, 0))
    text = f"{shortened(picture.name)}: {len(picture.truth)} true, {len(picture.predicted)} predicted"
    draw = ImageDraw.Draw(cell)
    for line, said in enumerate((text, shortened(picture.note, MAX_NOTE))):
        middle = body.height + (1.2 * line - 0.5) * SHEET_FONT_SIZE
        draw.text((SHEET_CELL / 2, middle), said, font=label_font(SHEET_FONT_SIZE), fill=FAINT_COLOUR, anchor="mm")
    return cell


def _scaled(image: Image.Image) -> Image.Image:
    """RGB: small images enlarged by a whole factor, very large ones shrunk."""
    image = image.convert("RGB")
    longest = max(image.size)
    if longest > MAX_SIDE:
        factor = MAX_SIDE / longest
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        return image.resize(size, Image.Resampling.LANCZOS)
    factor = max(1, min(math.ceil(MIN_WIDTH / image.width), MAX_SIDE // longest))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def shortened(text: str, most: int = MAX_LABEL) -> str:
    """One line of at most so many characters."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else line[: most - 3].rstrip() + "..."


def _file_name(name: str) -> str:
    """A sample id as a file name; a long one is cut, and a digest of the whole tells it from others."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "image"
    if len(plain) <= MAX_FILE_NAME:
        return plain
    digest = blake2b(name.encode(), digest_size=DIGEST_BYTES).hexdigest()
    return f"{plain[: MAX_FILE_NAME - len(digest) - 1]}-{digest}"


@cache
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans as matplotlib ships it: the same on every machine, Latin, Greek, Cyrillic and more."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
