"""Pascal VOC: one XML file per image, with corners in pixels counted from 1, both ends inside the box.

What is read is a folder of XML files, or the folder above it with `Annotations/` and `ImageSets/Main/`; `--split` takes
the images that `ImageSets/Main/<split>.txt` lists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from ds_stage2ab.errors import ConfigError, DataError
from ds_stage2ab.formats.boxes import polygon_corners
from ds_stage2ab.formats.class_names import ClassNames, read_class_names
from ds_stage2ab.formats.source import Corners, ReadOptions, Source, SourceImage, SourceObject, Tally

ANNOTATIONS = "Annotations"
SPLITS = "ImageSets/Main"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(options: ReadOptions, tally: Tally) -> Source:
    """A folder of XML files, or a split of it.

    Raises:
        ConfigError: the split is not there.
        DataError: there is no such folder, or no XML file in it.
    """
    files = _files(options)
    names = None if options.class_names is None else read_class_names(options.class_names)
    images = (image for file in files if (image := _image(file, names, options.keep_crowd, tally)))
    return Source(total=len(files), images=images, classes=dict.fromkeys(names.names.values()) if names else ())


def _files(options: ReadOptions) -> list[Path]:
    root = options.annotations
    folder = root / ANNOTATIONS if (root / ANNOTATIONS).is_dir() else root
    files = sorted(folder.rglob("*.xml")) if options.split is None else _listed(options.split, folder)
    if not files:
        raise DataError("holds no XML file", where=str(folder), fix=f"name the folder {ANNOTATIONS}, or the one above")
    return files


def _listed(split: str, folder: Path) -> list[Path]:
    """`ImageSets/Main/<split>.txt`: a name per line; lists of one class have 1, 0 or -1 behind it, and -1 is absent."""
    file = folder.parent / SPLITS / f"{split}.txt"
    try:
        lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        fix = "set --split to a list that is there, or leave it out"
        raise ConfigError(f"cannot be read: {error}", where=str(file), fix=fix) from None
    return [folder / f"{words[0]}.xml" for words in lines if words and words[1:] != ["-1"]]


def _image(file: Path, names: ClassNames | None, keep_difficult: bool, tally: Tally) -> SourceImage | None:
    try:
        root = parse(file).getroot()
    except (OSError, ParseError, DefusedXmlException, ValueError, LookupError):  # expat: ValueError, of an encoding
        tally.image("bad_annotation", str(file))
        return None
    found = list(root.iter("object"))
    named = (root.findtext("filename") or "").strip()
    suffix = Path(named).suffix or ".jpg"
    objects = list(_objects(file, found, names, keep_difficult, tally))
    return SourceImage(
        paths=tuple(dict.fromkeys(filter(None, (named, f"{file.stem}{suffix}")))),
        width=_whole(root.findtext("size/width")),
        height=_whole(root.findtext("size/height")),
        unit="pixel",
        objects=objects,
        where=str(file),
        left_out=len(found) - len(objects),
    )


def _objects(
    file: Path, found: list[Element], names: ClassNames | None, keep_difficult: bool, tally: Tally
) -> Iterator[SourceObject]:
    for number, one in enumerate(found, start=1):
        where = f"{file}: object {number}"
        written = (one.findtext("name") or "").strip()
        name = written if names is None else names.of(written)
        corners = _box(one) or _polygon(one)
        if (one.findtext("difficult") or "").strip() == "1" and not keep_difficult:
            tally.object("crowd", where)
        elif name is None:
            tally.object("unknown_class", where)
        elif corners is None:
            tally.object("no_box" if one.find("bndbox") is None else "bad_box", where)
        else:
            yield SourceObject(name=name, corners=corners, where=where, has_outline=one.find("polygon") is not None)


def _box(one: Element) -> Corners | None:
    """The outer edges: of pixels x1..x2 counted from 1 these are x1 - 1 and x2."""
    values = [_number(one.findtext(f"bndbox/{key}")) for key in CORNERS]
    if None in values:
        return None
    x1, y1, x2, y2 = values
    return x1 - 1, y1 - 1, x2, y2


def _polygon(one: Element) -> Corners | None:
    """The box around a polygon x1, y1, x2, y2, ..., as exports write it where there is no `bndbox`."""
    outline = one.find("polygon")
    if outline is None or one.find("bndbox") is not None:
        return None
    values = [_number(point.text) for point in outline if point.tag[:1] in "xy"]
    return None if None in values else polygon_corners(values)


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _whole(text: str | None) -> int | None:
    value = _number(text)
    return int(value) if value and 0 < value < math.inf and value == int(value) else None
