"""ODVG, the JSON lines of Grounding DINO's trainers: `detection.instances` with classes, `grounding.regions` with
phrases; corners in pixels, both kinds in one line or either.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ds_stage2ab.formats.boxes import numbers
from ds_stage2ab.formats.class_names import ClassNames, read_class_names
from ds_stage2ab.formats.json_lines import read_lines, whole
from ds_stage2ab.formats.source import ReadOptions, Source, SourceImage, SourceObject, Tally


def read_odvg(options: ReadOptions, tally: Tally) -> Source:
    """A file of lines with `filename`, `width`, `height`. `--class-names` takes the label map of that format too."""
    names = None if options.class_names is None else read_class_names(options.class_names)
    classes = dict.fromkeys(names.names.values()) if names else ()
    return Source(total=None, images=_images(options, names, tally), classes=classes)


def _images(options: ReadOptions, names: ClassNames | None, tally: Tally) -> Iterator[SourceImage]:
    for where, values in read_lines(options.annotations):
        path = values.get("filename") if values else None
        if not isinstance(path, str):
            tally.image("bad_annotation", where)
            continue
        if not {"detection", "grounding"} & values.keys():
            tally.image("bad_annotation", where)
            continue
        before = tally.objects.total()
        objects = [*_instances(values, names, where, tally), *_regions(values, where, tally)]
        yield SourceImage(
            paths=(path,),
            width=whole(values.get("width")),
            height=whole(values.get("height")),
            unit="pixel",
            objects=objects,
            where=where,
            left_out=tally.objects.total() - before,
        )


def _entries(values: dict[str, Any], part: str, key: str) -> list[Any]:
    section = values.get(part)
    found = section.get(key) if isinstance(section, dict) else None
    return found if isinstance(found, list) else []


def _instances(
    values: dict[str, Any], names: ClassNames | None, line: str, tally: Tally
) -> Iterator[SourceObject]:
    for number, one in enumerate(_entries(values, "detection", "instances")):
        where = f"{line}: instances[{number}]"
        if not isinstance(one, dict):
            tally.object("bad_annotation", where)
            continue
        name = one.get("category") if names is None else names.of(one.get("label"), one.get("category"))
        box = numbers(one.get("bbox"), 4)
        if not isinstance(name, str):
            tally.object("unknown_class", where)
        elif box is None:
            tally.object("bad_box" if one.get("bbox") else "no_box", where)
        else:
            yield SourceObject(name=name, corners=tuple(box), where=where)


def _regions(values: dict[str, Any], line: str, tally: Tally) -> Iterator[SourceObject]:
    """A region has one box, or a list of boxes of one phrase."""
    for number, one in enumerate(_entries(values, "grounding", "regions")):
        where = f"{line}: regions[{number}]"
        if not isinstance(one, dict):
            tally.object("bad_annotation", where)
            continue
        name, found = one.get("phrase"), one.get("bbox")
        several = isinstance(found, list) and found and all(isinstance(box, list) for box in found)
        for written in found if several else [found]:
            box = numbers(written, 4)
            if not isinstance(name, str):
                tally.object("no_name", where)
            elif box is None:
                tally.object("bad_box" if written else "no_box", where)
            else:
                yield SourceObject(name=name, corners=tuple(box), where=where)
