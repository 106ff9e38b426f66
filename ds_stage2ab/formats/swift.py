"""ms-swift's grounding lines: `messages` with placeholders, `images`, and `objects` with `ref`, `bbox`, `bbox_type`.

The n-th `<ref-object>` of the messages stands for the n-th ref, the n-th `<bbox>` for the n-th box. As many refs as
boxes are pairs; otherwise a box has the ref that stands last before it, or the only one that there is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ds_stage2ab.formats.boxes import numbers
from ds_stage2ab.formats.class_names import ClassNames, read_class_names
from ds_stage2ab.formats.json_lines import read_lines
from ds_stage2ab.formats.source import ReadOptions, Source, SourceImage, SourceObject, Tally

PLACEHOLDER = re.compile(r"<ref-object>|<bbox>")
UNITS = {"real": "pixel", "norm1": "fraction"}
DEFAULT_TYPE = "real"


def read_swift(options: ReadOptions, tally: Tally) -> Source:
    """A file of lines. `--class-names` gives refs other names, and leaves out those that it does not have."""
    names = None if options.class_names is None else read_class_names(options.class_names)
    classes = dict.fromkeys(names.names.values()) if names else ()
    return Source(total=None, images=_images(options, names, tally), classes=classes)


def _images(options: ReadOptions, names: ClassNames | None, tally: Tally) -> Iterator[SourceImage]:
    for where, values in read_lines(options.annotations):
        objects = (values or {}).get("objects")
        boxes = objects.get("bbox") if isinstance(objects, dict) else None
        if values is None or not isinstance(boxes or [], list):
            tally.image("bad_annotation", where)
            continue
        path = _only_image(values.get("images"))
        if path is None:
            tally.image("several_images", where, len(boxes or []))
            continue
        unit = UNITS.get(str(objects["bbox_type"]) if boxes and "bbox_type" in objects else DEFAULT_TYPE)
        if unit is None:
            tally.image("bad_annotation", where, len(boxes))
            continue
        found = list(_objects(values, boxes or [], names, where, tally))
        if not found:
            tally.image("not_grounding", where)
            continue
        yield SourceImage(
            paths=(path,),
            width=None,
            height=None,
            unit=unit,
            objects=found,
            where=where,
            left_out=len(boxes) - len(found),
        )


def _only_image(images: object) -> str | None:
    """The path of a line's one image: text, or a mapping with `path`."""
    found = images[0] if isinstance(images, list) and len(images) == 1 else images
    path = found.get("path") if isinstance(found, dict) else found
    return path if isinstance(path, str) else None


def _objects(
    values: dict[str, Any], boxes: list[Any], names: ClassNames | None, line: str, tally: Tally
) -> Iterator[SourceObject]:
    refs = _refs(values, len(boxes))
    for number, (written, ref) in enumerate(zip(boxes, refs, strict=True)):
        where = f"{line}: bbox[{number}]"
        box = numbers(written, 4)
        name = ref if names is None or ref is None else names.of(ref)
        if numbers(written, 2) is not None:
            tally.object("point", where)
        elif box is None:
            tally.object("bad_box", where)
        elif ref is None:
            tally.object("no_name", where)
        elif name is None:
            tally.object("unknown_class", where)
        else:
            yield SourceObject(name=name, corners=tuple(box), where=where)


def _refs(values: dict[str, Any], count: int) -> list[str | None]:
    """The ref of each box."""
    found = values["objects"].get("ref") if count else None
    refs = [ref if isinstance(ref, str) else None for ref in found] if isinstance(found, list) else []
    if len(refs) == count:
        return refs
    if len(refs) == 1:
        return refs * count
    before = _refs_before(values, refs)
    return [*before, *[None] * count][:count]


def _refs_before(values: dict[str, Any], refs: list[str | None]) -> Iterator[str | None]:
    """For each `<bbox>` the ref of the last `<ref-object>` before it."""
    last, place = None, 0
    for message in values["messages"] if isinstance(values.get("messages"), list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for match in PLACEHOLDER.finditer(content if isinstance(content, str) else ""):
            if match.group() == "<bbox>":
                yield last
            else:
                last = refs[place] if place < len(refs) else None
                place += 1
