"""What a reader of a foreign format gives: images with named boxes, and a tally of what it left out and changed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MAX_PLACES = 5
"""Places that are named for each reason."""

LEFT_OUT = {
    "bad_annotation": "an entry or a file that is not of the format",
    "bad_box": "a box that is not made of four finite numbers",
    "bad_path": "an image path that leaves the folder, or is no path",
    "crowd": "a crowd of COCO, or a difficult object of VOC: --keep-crowd keeps them",
    "duplicate": "the same name and the same bins twice in one image",
    "duplicate_image": "an image that was there before",
    "long_name": "a name too long for an answer",
    "missing_image": "an image that is not in the folder, or empty",
    "no_box": "an object without a box or a polygon",
    "no_name": "a box without a name",
    "not_grounding": "a line of swift without one named box: it teaches something else",
    "other_size": "an image that is not as large as the annotations say, either way up",
    "outside": "a box that lies outside its image",
    "point": "a point",
    "several_images": "an entry with several images, or none",
    "too_small": "a side shorter than --min-side",
    "too_thin": "a side that is not one bin long",
    "unknown_class": "a class that has no name",
    "unknown_image": "an annotation of an image that is not listed",
    "unreadable_image": "an image that training would refuse",
    "zero_area": "a width or a height of 0 or below",
}
"""Reason -> what was left out."""

CHANGED = {
    "clipped": "boxes cut at the border of their image",
    "emptied": "images that keep none of their objects: they teach that nothing is there",
    "exif_assumed": "images that EXIF turns and whose size does not tell which way up the boxes are: taken as shown",
    "exif_shown": "images that EXIF turns, with boxes as shown: left as they are",
    "exif_turned": "images that EXIF turns, with boxes as stored: turned with the image",
    "label_missing": "images without a file of labels: nothing is in them",
    "polygon_to_box": "polygons and masks that became their boxes",
}
"""Reason -> what was kept otherwise than it was found."""

Corners = tuple[float, float, float, float]
"""(x1, y1, x2, y2)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceObject:
    """One object as a format has it."""

    name: str
    corners: Corners
    # in the unit of its image
    where: str
    # for the report, e.g. `labels/a.txt:3`
    has_outline: bool = False
    # whether there is a polygon or a mask, of which the box alone is carried over


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceImage:
    """One image as a format has it."""

    paths: tuple[str, ...]
    # where it may be below the folder of images: the first that exists counts
    width: int | None
    height: int | None
    # pixels; None: the format does not say
    unit: Literal["pixel", "fraction"]
    # pixels with 0 at the first one's outer edge, or fractions of the sides
    objects: Sequence[SourceObject]
    where: str
    left_out: int = 0
    # objects that the reader left out
    id: str = ""
    # of the record; empty: its line
    absent: tuple[str, ...] | None = None
    # names that are said not to be there; None: the format says nothing of that
    not_exhaustive: tuple[str, ...] = ()
    # names of which not every object is annotated


@dataclass(slots=True)
class Tally:
    """Counts of what was left out and changed, by reason, with the first places of each."""

    images: Counter[str] = field(default_factory=Counter)
    # left out
    objects: Counter[str] = field(default_factory=Counter)
    # left out
    changed: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def image(self, reason: str, where: str, objects: int = 0) -> None:
        """An image is left out, with so many objects in it."""
        assert reason in LEFT_OUT, reason
        self.images[reason] += 1
        if objects:
            self.objects[reason] += objects
        self._note(reason, where)

    def object(self, reason: str, where: str) -> None:
        """One object is left out."""
        assert reason in LEFT_OUT, reason
        self.objects[reason] += 1
        self._note(reason, where)

    def change(self, reason: str, where: str) -> None:
        """Something is kept, but not as it was found."""
        assert reason in CHANGED, reason
        self.changed[reason] += 1
        self._note(reason, where)

    def _note(self, reason: str, where: str) -> None:
        if len(self.places[reason]) < MAX_PLACES:
            self.places[reason].append(where)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A data set in a foreign format, opened."""

    total: int | None
    # images; None: not known before the end
    images: Iterator[SourceImage]
    classes: Iterable[str]
    # every name that the format declares, in its order; those of objects may be others


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What a reader is told."""

    annotations: Path
    images: Path
    # the folder that image paths start from
    split: str | None
    class_names: Path | None
    keep_crowd: bool
