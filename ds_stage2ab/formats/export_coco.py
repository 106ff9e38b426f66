"""`ds-stage2ab export coco`: predictions as COCO's results, truth as COCO's annotations.

A line of predictions is `{"id", "image", "width", "height", "objects": [{"desc", "bbox_2d", "score"}]}`, with bins and,
where the truth is known, `"truth": [{"desc", "bbox_2d"}]`; a run writes such lines for each evaluation. A JSONL of the
data contract has truth alone. Boxes are of continuous areas: bin k of a side of n pixels lies at k / 999 n.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ds_stage2ab.codec.bins import MAX_BIN, fraction_of
from ds_stage2ab.codec.names import compared
from ds_stage2ab.errors import ConfigError, DataError
from ds_stage2ab.formats.boxes import numbers
from ds_stage2ab.formats.coco import items
from ds_stage2ab.formats.json_lines import read_lines, whole
from ds_stage2ab.runtime.files import write_whole

EVALUATIONS = "evaluations"
"""Folder of a run with a JSONL of predictions for each evaluation."""
BESIDE = "_annotations.json"
UNSCORED = 1.0
"""Score of a box that has none, as in evaluation."""
LINE = 'write {"id", "image", "width", "height", "objects": [{"desc", "bbox_2d", "score"}]}'


@dataclass(frozen=True, slots=True)
class _Box:
    name: str
    xywh: tuple[float, float, float, float]
    # pixels
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Image:
    id: str
    path: str
    width: int
    height: int
    found: list[_Box] | None
    # None: the line has no predictions
    truth: list[_Box] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ids:
    """COCO's ids of images by record id and by file, and of categories by compared name."""

    images: dict[str, object]
    files: dict[str, object]
    # by the name of the image's file, for records that are not called by its id
    categories: dict[str, tuple[object, str]]
    # id and the name as it is written

    def of(self, image: _Image) -> object:
        """None: there is no such image."""
        known = self.images.get(image.id)
        return self.files.get(PurePath(image.path).name) if known is None else known


def export_coco(source: Path, out: Path, annotations: Path | None) -> list[tuple[Path, str]]:
    """Write results to `out`, and beside it the images, categories and truth that they refer to.

    Args:
        annotations: a COCO file whose ids are taken; it then is what the results refer to.

    Returns: (file, what it is) for each file written.

    Raises:
        ConfigError: a file to write exists, or there is nothing to export.
        DataError: a line is none of these forms, or has an image or a name that `annotations` does not have.
        EnvironmentFault: a file cannot be written.
    """
    file = _predictions(source)
    images = [_image(where, values) for where, values in read_lines(file)]
    if not images:
        raise DataError("the file is empty", where=str(file), fix=LINE)
    has_found = any(image.found is not None for image in images)
    ids = _own_ids(images) if annotations is None else _ids_of(annotations)
    unlisted = _unlisted(images, ids) if annotations is not None else ""
    written = []
    beside = out.with_name(f"{out.stem}{BESIDE}") if has_found else out
    if annotations is None:
        written.append((beside, _annotations(images, ids), "images, categories and truth"))
    if has_found:
        written.append((out, _results(images, ids), f"results{unlisted}"))
    elif annotations is not None:
        fix = "leave --annotations out, or name predictions"
        raise ConfigError("has truth alone, and no results to give ids", where=str(file), fix=fix)
    for path, _, _ in written:
        if path.exists():
            raise ConfigError("exists already", where=str(path), fix="give another --out, or move it away")
    for path, values, _ in written:
        write_whole(path, json.dumps(values, ensure_ascii=False))
    return [(path, what) for path, _, what in written]


def _predictions(source: Path) -> Path:
    """The file itself, or the newest evaluation of a run."""
    if not source.is_dir():
        return source
    found = sorted((source / EVALUATIONS).glob("step-*.jsonl"))
    if not found:
        why = f"has no {EVALUATIONS}/step-*.jsonl: no evaluation has ended in it"
        raise ConfigError(why, where=str(source), fix="set data.validation for the run, or name a JSONL of predictions")
    return found[-1]


# -- reading ---------------------------------------------------------------------------------------------------------


def _image(where: str, values: dict[str, Any] | None) -> _Image:
    width, height = (None, None) if values is None else (whole(values.get(key)) for key in ("width", "height"))
    objects = None if values is None else values.get("objects")
    path = None if values is None else _path(values)
    if values is None or not isinstance(path, str) or not width or not height or not isinstance(objects, list):
        raise DataError("is neither a line of predictions nor a record of the data contract", where=where, fix=LINE)
    size = (width, height)
    boxes = [_box(f"{where}: objects[{place}]", one, size) for place, one in enumerate(objects)]
    is_record = "images" in values
    truth = boxes if is_record else None
    if "truth" in values:
        found = values["truth"] if isinstance(values["truth"], list) else [values["truth"]]
        truth = [_box(f"{where}: truth[{place}]", one, size) for place, one in enumerate(found)]
    return _Image(
        id=str(values["id"]) if "id" in values else where.rsplit("/", 1)[-1],
        path=path,
        width=width,
        height=height,
        found=None if is_record else boxes,
        truth=truth,
    )


def _path(values: dict[str, Any]) -> object:
    images = values.get("images")
    return images[0] if isinstance(images, list) and len(images) == 1 else values.get("image")


def _box(where: str, one: object, size: tuple[int, int]) -> _Box:
    bins = numbers(one.get("bbox_2d"), 4) if isinstance(one, dict) else None
    name = one.get("desc") if isinstance(one, dict) else None
    if bins is None or not isinstance(name, str) or not all(0 <= k <= MAX_BIN for k in bins):
        raise DataError("is no object with desc and bbox_2d in bins 0..999", where=where, fix=LINE)
    x1, y1, x2, y2 = (fraction_of(k) * side for k, side in zip(bins, size * 2, strict=True))
    score = numbers([one.get("score")], 1)
    if score is None and one.get("score") is not None:
        raise DataError("has a score that is no number", where=where, fix=LINE)
    return _Box(name, (x1, y1, x2 - x1, y2 - y1), UNSCORED if score is None else score[0])


# -- ids -------------------------------------------------------------------------------------------------------------


def _own_ids(images: list[_Image]) -> _Ids:
    """Image ids are those of the records where all are whole numbers, else 1, 2, ...; categories by name from 1."""
    are_numbers = all(image.id.isascii() and image.id.isdecimal() for image in images)
    numbered = {image.id: int(image.id) if are_numbers else place for place, image in enumerate(images, start=1)}
    if len(numbered) < len(images):
        raise DataError("two lines have the same id", where=images[-1].path, fix="make ids unique")
    names: dict[str, str] = {}
    for box in (box for image in images for box in _boxes(image)):
        names.setdefault(compared(box.name), box.name.strip())
    categories = {key: (place, names[key]) for place, key in enumerate(sorted(names), start=1)}
    return _Ids(images=dict(numbered), files={}, categories=categories)


def _boxes(image: _Image) -> Iterator[_Box]:
    yield from image.truth or ()
    yield from image.found or ()


def _ids_of(annotations: Path) -> _Ids:
    listed = list(_with_keys(annotations, "images", "id"))
    images = {str(one["id"]): one["id"] for one in listed}
    names = Counter(PurePath(str(one.get("file_name"))).name for one in listed)
    files = {PurePath(str(one.get("file_name"))).name: one["id"] for one in listed}
    categories = {
        compared(str(one["name"])): (one["id"], one["name"])
        for one in _with_keys(annotations, "categories", "id", "name")
    }
    if not images or not categories:
        raise DataError("has no images or no categories", where=str(annotations), fix="name a COCO instances file")
    alone = {name: key for name, key in files.items() if names[name] == 1}
    return _Ids(images=images, files=alone, categories=categories)


def _with_keys(file: Path, name: str, *keys: str) -> Iterator[dict[str, Any]]:
    """The mappings of a list that have these keys."""
    found = items(file, f"{name}.item")
    return (values for values in found if isinstance(values, dict) and all(key in values for key in keys))


def _unlisted(images: list[_Image], ids: _Ids) -> str:
    """How many boxes have a name that the annotations do not have: COCO's results cannot hold them.

    Raises:
        DataError: an image is not in the annotations.
    """
    for image in images:
        if ids.of(image) is None:
            fix = "export without --annotations, or name the file that the records were imported from"
            raise DataError(f"image {image.id} is not in the annotations", where=image.path, fix=fix)
    count = sum(compared(box.name) not in ids.categories for image in images for box in image.found or ())
    return f"; {count:,} boxes left out, whose names are no category there" if count else ""


# -- writing ---------------------------------------------------------------------------------------------------------


def _results(images: list[_Image], ids: _Ids) -> list[dict]:
    return [
        {
            "image_id": ids.of(image),
            "category_id": ids.categories[compared(box.name)][0],
            "bbox": list(box.xywh),
            "score": box.score,
        }
        for image in images
        for box in image.found or ()
        if compared(box.name) in ids.categories
    ]


def _annotations(images: list[_Image], ids: _Ids) -> dict:
    entries = [
        {
            "image_id": ids.of(image),
            "category_id": ids.categories[compared(box.name)][0],
            "bbox": list(box.xywh),
            "area": box.xywh[2] * box.xywh[3],
            "iscrowd": 0,
        }
        for image in images
        for box in image.truth or ()
    ]
    return {
        "info": {"description": "written by ds_stage2ab"},
        "images": [
            {"id": ids.of(image), "file_name": image.path, "width": image.width, "height": image.height}
            for image in images
        ],
        "categories": [{"id": key, "name": name} for key, name in ids.categories.values()],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(entries, start=1)],
    }
