"""COCO's instances JSON, and LVIS's: streamed, in any order of its keys.

The file is read three times, since images and categories may stand behind the annotations. Of an annotation a row of
numbers is kept (about 50 bytes), never its polygons, so memory does not grow with those.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

import ijson
import numpy as np

from ds_stage2ab.errors import DataError
from ds_stage2ab.formats.boxes import numbers, polygon_corners
from ds_stage2ab.formats.class_names import ClassNames, read_class_names
from ds_stage2ab.formats.json_lines import whole
from ds_stage2ab.formats.source import Corners, ReadOptions, Source, SourceImage, SourceObject, Tally

BOM = b"\xef\xbb\xbf"
BUFFER = 2**20  # bytes read at a time
NEGATIVE, NOT_EXHAUSTIVE = "neg_category_ids", "not_exhaustive_category_ids"
"""LVIS's lists of an image's classes that are absent, and of those that are not all annotated."""


@dataclass(frozen=True, slots=True)
class _Image:
    id: object
    paths: tuple[str, ...]
    width: int | None
    height: int | None
    absent: tuple[object, ...] | None
    not_exhaustive: tuple[object, ...]
    # ids of categories


@dataclass(slots=True)
class _Rows:
    """Annotations that are kept, by columns."""

    image: array = field(default_factory=lambda: array("l"))
    # its place in the list of images
    name: array = field(default_factory=lambda: array("l"))
    # its place in the list of names
    number: array = field(default_factory=lambda: array("l"))
    # of the annotation in the file, from 0
    corners: array = field(default_factory=lambda: array("d"))
    # four each, pixels
    has_outline: array = field(default_factory=lambda: array("b"))
    left_out: Counter[int] = field(default_factory=Counter)
    # annotations of an image, by its place

    def add(self, image: int, name: int, number: int, corners: Corners, has_outline: bool) -> None:
        self.image.append(image)
        self.name.append(name)
        self.number.append(number)
        self.corners.extend(corners)
        self.has_outline.append(has_outline)


def read_coco(options: ReadOptions, tally: Tally) -> Source:
    """An instances file.

    Raises:
        DataError: it cannot be read, is no JSON, or has no list of images.
    """
    return _read(options, tally, _coco_paths)


def read_lvis(options: ReadOptions, tally: Tally) -> Source:
    """LVIS v1: as COCO's, but an image is named by the URL that it was fetched from.

    Raises:
        DataError: as for `read_coco`.
    """
    return _read(options, tally, _lvis_paths)


def _read(options: ReadOptions, tally: Tally, paths_of: Any) -> Source:
    file = options.annotations
    images, place_of = _images(file, tally, paths_of)
    if not images:
        raise DataError(
            "has no list `images`",
            where=str(file),
            fix="name an instances file: an object with images, annotations and categories",
        )
    given = None if options.class_names is None else read_class_names(options.class_names)
    names = _names(file, given)
    rows, listed = _rows(options, tally, names, place_of)
    return Source(
        total=len(images), images=_grouped(file, images, rows, listed, names), classes=dict.fromkeys(names.values())
    )


def items(file: Path, prefix: str) -> Iterator[Any]:
    """The values at a prefix of a JSON file, one after the other.

    Raises:
        DataError: the file cannot be read, or is no JSON.
    """
    try:
        with file.open("rb") as stream:
            yield from ijson.items(_without_bom(stream), prefix, use_float=True, buf_size=BUFFER)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(file), fix="correct the path") from None
    except (ijson.JSONError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())
        fix = "write it again as JSON (a NaN or an Infinity is no JSON number), or fetch it again if it ends too early"
        raise DataError(f"is no JSON: {why}", where=str(file), fix=fix) from None


def _without_bom(stream: BinaryIO) -> BinaryIO:
    if stream.read(len(BOM)) != BOM:
        stream.seek(0)
    return stream


def _images(file: Path, tally: Tally, paths_of: Any) -> tuple[list[_Image], dict[object, int]]:
    """The images, and the place of each by its id."""
    images: list[_Image] = []
    place_of: dict[object, int] = {}
    for number, values in enumerate(items(file, "images.item")):
        where = f"{file}: images[{number}]"
        key = _key(values["id"]) if isinstance(values, dict) and "id" in values else None
        paths = () if key is None else paths_of(values)
        if not paths:
            tally.image("bad_annotation", where)
        elif key in place_of:
            tally.image("duplicate_image", where)
        else:
            place_of[key] = len(images)
            sizes = whole(values.get("width")), whole(values.get("height"))
            absent = _ids(values[NEGATIVE]) if NEGATIVE in values else None
            images.append(_Image(values["id"], paths, *sizes, absent, _ids(values.get(NOT_EXHAUSTIVE))))
    return images, place_of


def _key(value: object) -> object | None:
    """An id that can be looked up; None: it is none."""
    return value if isinstance(value, int | str) and not isinstance(value, bool) else None


def _ids(value: object) -> tuple[object, ...]:
    """The ids in a list of them; anything else says nothing."""
    return tuple(one for one in value if _key(one) is not None) if isinstance(value, list) else ()


def _coco_paths(values: dict[str, Any]) -> tuple[str, ...]:
    name = values.get("file_name")
    return (name,) if isinstance(name, str) else ()


def _lvis_paths(values: dict[str, Any]) -> tuple[str, ...]:
    """`.../train2017/000000391895.jpg` is looked for below the folder, and in it; some copies have a `file_name`."""
    url = values.get("coco_url")
    parts = unquote(urlsplit(url).path).split("/") if isinstance(url, str) else []
    return (*_coco_paths(values), *filter(None, ("/".join(parts[-2:]), "/".join(parts[-1:]))))


def _names(file: Path, given: ClassNames | None) -> dict[object, str]:
    """The name of each category id; with a list of names only those that it has."""
    names: dict[object, str] = {}
    for values in items(file, "categories.item"):
        if not isinstance(values, dict) or _key(values.get("id")) is None:
            continue
        name = values.get("name") if given is None else given.of(values["id"], values.get("name"))
        if isinstance(name, str):
            names[values["id"]] = name
    return names


def _rows(
    options: ReadOptions, tally: Tally, names: dict[object, str], place_of: dict[object, int]
) -> tuple[_Rows, list[str]]:
    """The rows, and the list of names that they point into."""
    rows, listed = _Rows(), list(dict.fromkeys(names.values()))
    place_of_name = {name: place for place, name in enumerate(listed)}
    for number, values in enumerate(items(options.annotations, "annotations.item")):
        found = _corners(values, names, place_of, options)
        if isinstance(found, str):
            tally.object(found, f"{options.annotations}: annotations[{number}]")
            if found not in ("bad_annotation", "unknown_image"):
                rows.left_out[place_of[values["image_id"]]] += 1
            continue
        name = place_of_name[names[values["category_id"]]]
        rows.add(place_of[values["image_id"]], name, number, found, bool(values.get("segmentation")))
    return rows, listed


def _corners(
    values: Any, names: dict[object, str], place_of: dict[object, int], options: ReadOptions
) -> Corners | str:
    """The corners of an annotation that is kept; else the reason."""
    if not isinstance(values, dict):
        return "bad_annotation"
    if _key(values.get("image_id")) not in place_of:
        return "unknown_image"
    if values.get("iscrowd") and not options.keep_crowd:
        return "crowd"
    if _key(values.get("category_id")) not in names:
        return "unknown_class"
    if values.get("bbox") is None:
        return _outline(values.get("segmentation")) or "no_box"
    box = numbers(values["bbox"], 4)
    if box is None:
        return "bad_box"
    x, y, width, height = box
    return x, y, x + width, y + height


def _outline(segmentation: object) -> Corners | None:
    """The box around all polygons of an annotation; None for a mask in run lengths, or for nothing."""
    polygons = segmentation if isinstance(segmentation, list) else []
    points = [numbers(polygon, len(polygon)) for polygon in polygons if isinstance(polygon, list)]
    boxes = [box for one in points if one and (box := polygon_corners(one))]
    if not boxes:
        return None
    x1, y1, x2, y2 = zip(*boxes, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _grouped(
    file: Path, images: list[_Image], rows: _Rows, listed: list[str], names: dict[object, str]
) -> Iterator[SourceImage]:
    """The images in their order, each with its rows in theirs."""

    def named(ids: Iterable[object]) -> tuple[str, ...]:
        return tuple(names[one] for one in ids if one in names)

    order = np.argsort(np.frombuffer(rows.image, dtype=np.int_), kind="stable") if rows.image else np.zeros(0, int)
    ends = np.cumsum(np.bincount(np.asarray(rows.image, dtype=np.int_), minlength=len(images)))
    first = 0
    for place, (image, end) in enumerate(zip(images, ends.tolist(), strict=True)):
        chosen: Iterable[int] = order[first:end].tolist()
        first = end
        yield SourceImage(
            paths=image.paths,
            width=image.width,
            height=image.height,
            unit="pixel",
            objects=[_object(file, rows, listed, row) for row in chosen],
            where=f"{file}: image {image.id}",
            left_out=rows.left_out[place],
            id=str(image.id),
            absent=None if image.absent is None else named(image.absent),
            not_exhaustive=named(image.not_exhaustive),
        )


def _object(file: Path, rows: _Rows, names: list[str], row: int) -> SourceObject:
    x1, y1, x2, y2 = rows.corners[4 * row : 4 * row + 4]
    where = f"{file}: annotations[{rows.number[row]}]"
    return SourceObject(
        name=names[rows.name[row]], corners=(x1, y1, x2, y2), where=where, has_outline=bool(rows.has_outline[row])
    )
