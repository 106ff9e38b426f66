"""`ds-stage2ab import`: a data set in a foreign format -> JSONL of the data contract, with its images and a report.

Invariants:
- Every image and every object of the source is written, or counted under a reason.
- What stands under its final name is whole; an import that fails leaves nothing there.
- Whether an image is held out depends on its path alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TextIO

from ds_stage2ab.codec.names import compared
from ds_stage2ab.data.records import MAX_DESC_BYTES
from ds_stage2ab.errors import ConfigError, DataError, unwritable
from ds_stage2ab.formats.boxes import place
from ds_stage2ab.formats.coco import read_coco, read_lvis
from ds_stage2ab.formats.image_files import ImageFile, open_image
from ds_stage2ab.formats.odvg import read_odvg
from ds_stage2ab.formats.report import REPORT, Report, add_to_reports, read_reports
from ds_stage2ab.formats.source import ReadOptions, Source, SourceImage, SourceObject, Tally
from ds_stage2ab.formats.swift import read_swift
from ds_stage2ab.formats.voc import read_voc
from ds_stage2ab.formats.yolo import read_yolo

READERS: dict[str, Callable[[ReadOptions, Tally], Source]] = {
    "coco": read_coco,
    "yolo": read_yolo,
    "voc": read_voc,
    "lvis": read_lvis,
    "odvg": read_odvg,
    "swift": read_swift,
}
HELD_OUT = "validation"
"""Name of the JSONL of held-out images."""
IMAGES = "images"
DIGEST_BYTES = 8
FOLDER_FIX = "name a folder that is there"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where and how a data set is written."""

    out: Path
    name: str
    # of the JSONL, without its ending
    copy: bool
    # copy images; else one link to their folder
    min_side: float
    # pixels
    hold_out: float
    # share of the images that go to `validation.jsonl`

    @property
    def names(self) -> list[str]:
        return [self.name, HELD_OUT] if self.hold_out else [self.name]

    @property
    def staging(self) -> Path:
        """Everything stands here until it is whole."""
        return self.out / f".{self.name}.partial"

    def folder_of(self, images: Path) -> str:
        """Where the records have the images: in a folder of the split's name, or where they are below `out` already."""
        out = self.out.resolve()
        if self.copy or not images.is_relative_to(out):
            return f"{IMAGES}/{self.name}/"
        return "".join(f"{part}/" for part in images.relative_to(out).parts)


@dataclass(slots=True)
class _Written:
    """What one import has written so far."""

    images: Counter[str] = field(default_factory=Counter)
    # by JSONL
    empty: int = 0
    # images without objects
    objects: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    seen: set[Path] = field(default_factory=set)


def import_dataset(
    kind: str,
    options: ReadOptions,
    target: Target,
    progress: Callable[[Iterator[SourceImage], int | None], Iterator[SourceImage]],
) -> Report:
    """Read a data set and write it below `target.out`.

    Args:
        kind: a key of `READERS`.
        progress: passes the images on, and shows how far it is.

    Raises:
        ConfigError: an option does not fit the data, or something of the name is there already.
        DataError: the annotations cannot be read, or nothing of them can be used.
        EnvironmentFault: the folder cannot be written.
    """
    _check(options, target)
    reports = read_reports(target.out)
    tally, written = Tally(), _Written()
    source = READERS[kind](options, tally)
    with _staging(target):
        root = options.images.resolve()
        folder = target.folder_of(root)
        with _open_all(target) as files:
            for image in progress(source.images, source.total):
                _write(image, root, folder, target, files, tally, written)
        _check_written(target, written, tally)
        report = Report(
            kind=kind,
            annotations=str(options.annotations),
            images=str(root),
            written={f"{name}.jsonl": written.images[name] for name in target.names},
            empty=written.empty,
            objects=written.objects,
            classes={name: written.classes[name] for name in dict.fromkeys([*source.classes, *written.classes])},
            tally=tally,
        )
        if not target.copy and folder == f"{IMAGES}/{target.name}/":
            (target.staging / IMAGES).symlink_to(root, target_is_directory=True)
        add_to_reports(target.staging, reports, f"{target.name}.jsonl", report)
        _publish(target)
    return report


def _check(options: ReadOptions, target: Target) -> None:
    if not options.images.is_dir():
        raise ConfigError("the folder of images is not there", where=f"--images {options.images}", fix=FOLDER_FIX)
    if not options.annotations.exists():
        raise DataError("is not there", where=str(options.annotations), fix="correct ANNOTATIONS")
    if not (options.annotations.is_file() or options.annotations.is_dir()):  # a pipe, which is read only once
        fix = "write what comes out of it into a file, and name that as ANNOTATIONS"
        raise DataError("is neither a file nor a folder", where=str(options.annotations), fix=fix)
    if target.hold_out and target.name == HELD_OUT:
        raise ConfigError(
            f"{HELD_OUT}.jsonl would hold both what is held out and the rest",
            where="--hold-out",
            fix="set --split to another name, or leave --hold-out out",
        )
    for path in _final_places(target).values():
        if os.path.lexists(path):
            raise ConfigError("exists already", where=str(path), fix="give another --out or --split, or move it away")


def _final_places(target: Target) -> dict[str, Path]:
    """Name in the staging folder -> where it ends, the report left out; the JSONL comes last."""
    files = {f"{name}.jsonl": target.out / f"{name}.jsonl" for name in reversed(target.names)}
    return {IMAGES: target.out / IMAGES / target.name, **files}


@contextmanager
def _staging(target: Target) -> Iterator[None]:
    if target.staging.exists():
        why = "another import of this name is writing there, or was killed"
        raise ConfigError(why, where=str(target.staging), fix="wait for it, or delete that folder")
    try:
        target.staging.mkdir(parents=True)
    except OSError as error:
        raise unwritable(target.out, error) from None
    try:
        yield
    except OSError as error:
        raise unwritable(error.filename or target.out, error) from None
    finally:
        shutil.rmtree(target.staging, ignore_errors=True)


@contextmanager
def _open_all(target: Target) -> Iterator[dict[str, TextIO]]:
    files = {name: (target.staging / f"{name}.jsonl").open("x", encoding="utf-8") for name in target.names}
    try:
        yield files
    finally:
        for file in files.values():
            file.close()


def _publish(target: Target) -> None:
    os.replace(target.staging / REPORT, target.out / REPORT)
    for name, path in _final_places(target).items():
        if os.path.lexists(target.staging / name):
            path.parent.mkdir(exist_ok=True)
            os.rename(target.staging / name, path)


def _check_written(target: Target, written: _Written, tally: Tally) -> None:
    if not written.images.total():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in tally.images.most_common())
        first = next((places[0] for reason, places in tally.places.items() if reason in tally.images), "")
        why = f"no image is left: {reasons or 'there was none'}{f'; the first, {first}' if first else ''}"
        raise DataError(why, where=str(target.out), fix="look at ANNOTATIONS and --images: do they belong together?")
    for name in target.names:
        if not written.images[name]:
            why = f"{target.hold_out:g} of {written.images.total():,} images left none for {name}.jsonl"
            raise DataError(why, where="--hold-out", fix="give another share")


# -- one image -------------------------------------------------------------------------------------------------------


def _write(
    image: SourceImage,
    root: Path,
    folder: str,
    target: Target,
    files: dict[str, TextIO],
    tally: Tally,
    written: _Written,
) -> None:
    """Add one image to its JSONL.

    Args:
        root: the folder of images.
        folder: the same as the records have it, with "/" at its end.
    """
    found = open_image(root, image)
    if not isinstance(found, str) and found.file in written.seen:
        found = "duplicate_image"
    if isinstance(found, str):
        tally.image(found, image.where, len(image.objects))
        return
    written.seen.add(found.file)
    if found.change:
        tally.change(found.change, image.where)
    objects = _objects(image, found, target.min_side, tally)
    if not objects and (image.objects or image.left_out):
        tally.change("emptied", image.where)
    name = HELD_OUT if _is_held_out(found.path, target.hold_out) else target.name
    record = {
        "images": [f"{folder}{found.path}"],
        "width": found.width,
        "height": found.height,
        "objects": objects,
        **({"id": image.id} if image.id else {}),
        **_said_of_the_rest(image, objects),
    }
    files[name].write(json.dumps(record, ensure_ascii=False) + "\n")
    if target.copy:
        copied = target.staging / IMAGES / found.path
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found.file, copied)
    written.images[name] += 1
    written.empty += not objects
    written.objects += len(objects)
    written.classes.update(one["desc"] for one in objects)


def _objects(image: SourceImage, found: ImageFile, min_side: float, tally: Tally) -> list[dict]:
    size = (found.width, found.height)
    stored = (found.height, found.width) if found.orientation >= 5 else size
    sides = stored * 2 if image.unit == "pixel" else (1, 1, 1, 1)
    kept: dict[tuple, SourceObject] = {}
    for one in image.objects:
        x1, y1, x2, y2 = (value / side for value, side in zip(one.corners, sides, strict=True))
        placed = _unnameable(one.name) or place((x1, y1, x2, y2), found.orientation, size, min_side)
        if isinstance(placed, str):
            tally.object(placed, one.where)
        elif (one.name, placed.box) in kept:
            tally.object("duplicate", one.where)
        else:
            kept[one.name, placed.box] = one
            if placed.clipped:
                tally.change("clipped", one.where)
            if one.has_outline:
                tally.change("polygon_to_box", one.where)
    return [{"desc": name, "bbox_2d": list(box)} for name, box in kept]


def _said_of_the_rest(image: SourceImage, objects: list[dict]) -> dict[str, list[str]]:
    """What a record says of descriptions beside its objects; a name with objects is not absent."""
    there = {compared(one["desc"]) for one in objects}
    absent = [name for name in image.absent or () if not _unnameable(name) and compared(name) not in there]
    partly = [name for name in image.not_exhaustive if not _unnameable(name)]
    said = {} if image.absent is None else {"absent": absent}
    return said | ({"not_exhaustive": partly} if partly else {})


def _unnameable(name: str) -> str:
    """Why a name is none for the reader of the data contract; empty if it is one."""
    if not name.strip() or "\0" in name or any(0xD800 <= ord(character) <= 0xDFFF for character in name):
        return "no_name"
    return "long_name" if len(json.dumps(name, ensure_ascii=False).encode()) > MAX_DESC_BYTES else ""


def _is_held_out(path: str, share: float) -> bool:
    digest = blake2b(path.encode(), digest_size=DIGEST_BYTES).digest()
    return int.from_bytes(digest, "big") < share * 256**DIGEST_BYTES
