"""YOLO's text files, one per image: `class cx cy w h`, or `class x y x y x y ...`, as fractions of the image.

What is read is a folder of labels, or the `data.yaml` of Ultralytics: then `--images` is the folder that the paths in
it start from, and the labels of `a/images/b/c.jpg` are `a/labels/b/c.txt`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ds_stage2ab.data.images import SUFFIXES
from ds_stage2ab.errors import ConfigError, DataError
from ds_stage2ab.formats.boxes import polygon_corners
from ds_stage2ab.formats.class_names import ClassNames, read_class_names, yaml_values
from ds_stage2ab.formats.options import MAPPINGS
from ds_stage2ab.formats.source import Corners, ReadOptions, Source, SourceImage, SourceObject, Tally

DEFAULT_SPLIT = "train"
BOX_FIELDS = 5
LEAST_POLYGON = 7  # fields: a class and three points


@dataclass(frozen=True, slots=True)
class _Pair:
    image: str
    # below the folder of images
    labels: Path


def read_yolo(options: ReadOptions, tally: Tally) -> Source:
    """A folder of labels, or one split of a `data.yaml`.

    Raises:
        ConfigError: the classes have no names, or the split is not there.
        DataError: the folder cannot be read.
    """
    is_mapping = options.annotations.suffix.lower() in MAPPINGS
    given = options.class_names or (options.annotations if is_mapping else None)
    if given is None:
        raise ConfigError(
            "labels have ids alone, and no file gives them names",
            where=str(options.annotations),
            fix="add --class-names data.yaml, or name data.yaml itself as ANNOTATIONS",
        )
    names = read_class_names(given)
    pairs = _split_pairs(options) if is_mapping else _folder_pairs(options, tally)
    images = (image for pair in pairs if (image := _image(pair, names, tally)))
    return Source(total=len(pairs), images=images, classes=dict.fromkeys(names.names.values()))


def _folder_pairs(options: ReadOptions, tally: Tally) -> list[_Pair]:
    pairs = [
        _Pair(image, options.annotations / PurePosixPath(image).with_suffix(".txt"))
        for image in _images_below(options.images, "")
    ]
    known = {pair.labels for pair in pairs}
    if not options.annotations.is_dir():
        raise DataError("is no folder", where=str(options.annotations), fix="name the folder of labels, or data.yaml")
    for labels in sorted(options.annotations.rglob("*.txt")):
        if labels not in known and labels.name != "classes.txt":
            tally.image("missing_image", str(labels))
    return pairs


def _split_pairs(options: ReadOptions) -> list[_Pair]:
    """The images of a split: a folder, a list of paths in a file, or several of these."""
    file, split = options.annotations, options.split or DEFAULT_SPLIT
    values = yaml_values(file, file.read_text(encoding="utf-8-sig"))  # it was read before, for the names
    entry = values.get(split) if isinstance(values, dict) else None
    entries = entry if isinstance(entry, list) else [entry]
    if not entries or not all(isinstance(one, str) and one for one in entries):
        raise ConfigError(f"has no split {split!r}", where=str(file), fix="set --split to one that it has")
    found = [image for one in entries for image in _listed(options, _below(one))]
    return [_Pair(image, options.images / _labels_of(image)) for image in dict.fromkeys(found)]


def _below(entry: str) -> str:
    """`../train/images`, as some exports write, and `./images/train` mean the folder below."""
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part not in ("..", ".", "/")]
    return "/".join(parts)


def _listed(options: ReadOptions, entry: str) -> list[str]:
    path = options.images / entry
    if path.is_dir():
        return _images_below(options.images, entry)
    if path.is_file():
        return [_below(line) for line in _lines(path)]
    fix = "set --images to the folder that the paths in data.yaml start from"
    raise ConfigError(f"{entry!r} is not there", where=str(options.images), fix=fix)


def _images_below(root: Path, folder: str) -> list[str]:
    files = sorted((root / folder).rglob("*"))
    return [path.relative_to(root).as_posix() for path in files if path.suffix.lower() in SUFFIXES]


def _labels_of(image: str) -> str:
    """The last folder `images` becomes `labels`, as Ultralytics has it."""
    parts = list(PurePosixPath(image).with_suffix(".txt").parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return "/".join(parts)


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", where=str(file), fix="write it as UTF-8 text") from None


def _image(pair: _Pair, names: ClassNames, tally: Tally) -> SourceImage | None:
    if not pair.labels.is_file():
        tally.change("label_missing", pair.image)
    try:
        lines = _lines(pair.labels) if pair.labels.is_file() else []
    except DataError:
        tally.image("bad_annotation", str(pair.labels))
        return None
    objects = list(_objects(pair.labels, lines, names, tally))
    return SourceImage(
        paths=(pair.image,),
        width=None,
        height=None,
        unit="fraction",
        objects=objects,
        where=str(pair.labels if lines else pair.image),
        left_out=len(lines) - len(objects),
    )


def _objects(file: Path, lines: list[str], names: ClassNames, tally: Tally) -> Iterator[SourceObject]:
    for number, line in enumerate(lines, start=1):
        where = f"{file}:{number}"
        words = line.split()
        corners = _corners(words[1:])
        name = names.of(_class_id(words[0]))
        if corners is None:
            tally.object("bad_annotation", where)
        elif name is None:
            tally.object("unknown_class", where)
        else:
            has_outline = len(words) > BOX_FIELDS
            yield SourceObject(name=name, corners=corners, where=where, has_outline=has_outline)


def _class_id(word: str) -> object:
    """`3`, also written `3.0`."""
    return word.removesuffix(".0")


def _corners(words: list[str]) -> Corners | None:
    """A box or the box around a polygon; None for anything else, such as six fields (a box with a confidence)."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        return None
    if len(values) + 1 == BOX_FIELDS:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(values) + 1 >= LEAST_POLYGON and all(map(math.isfinite, values)):
        return polygon_corners(values)
    return None
