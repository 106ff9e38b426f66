"""What a set of records holds, as numbers; no file but the images' is looked at.

Invariants:
- Every measure has one value for each image, or one for each object.
- Images of the same content are found whatever their names are.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b, file_digest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ds_stage2ab.carriers import Record
from ds_stage2ab.codec.names import compared
from ds_stage2ab.config.batch import counted

SPREAD = (0.0, 0.05, 0.5, 0.95, 1.0)  # quantiles: the least, 5 % are below, the median, 5 % are above, the most

PER_IMAGE = "objects per image"
BOX_WIDTH, BOX_HEIGHT = "box width, bins", "box height, bins"
ASPECT = "box aspect, width / height"  # in pixels
IMAGE_WIDTH, IMAGE_HEIGHT = "image width, pixels", "image height, pixels"
LOGARITHMIC = (BOX_WIDTH, BOX_HEIGHT, ASPECT)
"""Measures that are drawn over a logarithmic axis."""

Measures = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassCount:
    """One description."""

    name: str
    objects: int
    images: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SetFigures:
    """One JSONL."""

    file: Path
    records: Sequence[Record]
    objects: int
    empty: int
    # images without objects
    measures: Measures
    classes: tuple[ClassCount, ...]
    # by number of objects, most first
    repeated: tuple[str, ...]
    # samples that have an object twice: the same name, the same bins
    spellings: tuple[tuple[str, ...], ...]
    # names that evaluation compares as equal, and that are written in several ways
    unusable: tuple[str, ...]
    # one message for each image that cannot be used


def set_figures(file: Path, records: Sequence[Record], unusable: Sequence[str]) -> SetFigures:
    """The figures of records that were read."""
    names = [{truth.desc for truth in record.objects} for record in records]
    objects = Counter(truth.desc for record in records for truth in record.objects)
    images = Counter(name for found in names for name in found)
    classes = [ClassCount(name=name, objects=count, images=images[name]) for name, count in objects.most_common()]
    return SetFigures(
        file=file,
        records=records,
        objects=objects.total(),
        empty=sum(not record.objects for record in records),
        measures=_measures(records),
        classes=tuple(classes),
        repeated=tuple(record.id for record in records if len(set(record.objects)) < len(record.objects)),
        spellings=tuple(_spellings(objects)),
        unusable=tuple(unusable),
    )


def summary(figures: SetFigures) -> str:
    """`12 images, 3 without objects; 40 objects of 7 descriptions`, and how many have a prompt, if some."""
    images, objects = counted(len(figures.records), "image"), counted(figures.objects, "object")
    own = sum(record.prompt is not None for record in figures.records)
    prompts = f"; {own:,} with a prompt of their own" if own else ""
    names = counted(len(figures.classes), "description")
    return f"{images}, {figures.empty:,} without objects; {objects} of {names}{prompts}"


def spread(values: NDArray[np.float64]) -> list[str]:
    """Where the values of a measure lie, as the cells of a row: its quantiles of `SPREAD`."""
    return [f"{value:,.4g}" for value in np.quantile(values, SPREAD)]


def same_images(records: Sequence[Record]) -> list[list[Record]]:
    """Records whose images have the same content, in groups; only files of one length are read."""
    by_size: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if os.path.isfile(record.image):
            by_size[os.path.getsize(record.image)].append(record)
    groups: dict[bytes, list[Record]] = defaultdict(list)
    for alike in by_size.values():
        if len(alike) > 1:
            for record in alike:
                # an unreadable image is reported as one, not as a duplicate
                with suppress(OSError), record.image.open("rb") as file:
                    groups[file_digest(file, blake2b).digest()].append(record)
    return [group for group in groups.values() if len(group) > 1]


def _measures(records: Sequence[Record]) -> Measures:
    boxes = [(record, truth.box) for record in records for truth in record.objects]
    widths = np.array([x2 - x1 for _, (x1, _, x2, _) in boxes], dtype=float)
    heights = np.array([y2 - y1 for _, (_, y1, _, y2) in boxes], dtype=float)
    sides = np.array([record.width / record.height for record, _ in boxes], dtype=float)
    return {
        PER_IMAGE: np.array([len(record.objects) for record in records], dtype=float),
        BOX_WIDTH: widths,
        BOX_HEIGHT: heights,
        ASPECT: widths / heights * sides,
        IMAGE_WIDTH: np.array([record.width for record in records], dtype=float),
        IMAGE_HEIGHT: np.array([record.height for record in records], dtype=float),
    }


def _spellings(names: Iterable[str]) -> Iterator[tuple[str, ...]]:
    written: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        written[compared(name)].append(name)
    return (tuple(group) for group in written.values() if len(group) > 1)
