"""JSONL of the data contract -> checked, quantised records.

One JSON object per line with `images` (one path), `width`, `height`, `objects` and, optionally, `id`, `prompt`,
`absent` and `not_exhaustive`; `schemas/record.schema.json` describes a line. Everything else is refused, extra keys
too: a misspelt key or a second geometry would otherwise be silently ignored.
"""

import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.codec.names import compared
from ds_stage2ab.data.box_forms import FORMS, BoxForm, BoxRefused, Refused, shown, to_bins
from ds_stage2ab.data.box_space import SizedBox, other_form
from ds_stage2ab.data.images import Unusable, check_image, check_path, find_image, load_image
from ds_stage2ab.data.record_line import MAX_LINE_BYTES, mapping, names_of, parse, prompt_of, side_of, text_of
from ds_stage2ab.errors import DataError, printable

__all__ = ["check_image", "load_image", "read_records"]

Share = tuple[int, int]
"""(r, n): the records r, r + n, r + 2 n, ... of a file, counted from 0."""

RECORD_KEYS = ("images", "width", "height", "objects", "id", "prompt", "absent", "not_exhaustive")
OBJECT_KEYS = ("desc", "bbox_2d")
MAX_PROBLEMS = 20  # listed in one error; reading stops there
MAX_DESC_BYTES = 3_840  # as JSON: with its box the object stays below the 4,096 bytes that the parser accepts


@dataclass(frozen=True, slots=True)
class _Problem:
    where: str
    why: str
    fix: str
    about_box: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Settings for all lines of a file, and the ids seen so far."""

    path: Path
    root: Path
    form: BoxForm
    keep_unusable: bool
    share: Share
    line_of_id: dict[str, int] = field(default_factory=dict)


def read_records(
    path: Path,
    *,
    image_root: Path | None,
    box_format: str,
    keep_unusable: bool = False,
    share: Share = (0, 1),
) -> list[Record]:
    """Read a whole file; images are not opened, but must exist.

    Args:
        path: the JSONL file.
        image_root: the folder that image paths start from; None: the file's own folder.
        box_format: `data.box_format`.
        share: the records whose images are looked for, which takes most of the time on a network's file system; the
            others' are taken to be there.
        keep_unusable: keep a record whose image is missing or empty; loading the image raises then.

    Returns: one record per line, in file order; the objects of each sorted by (y1, x1), stable.

    Raises:
        DataError: the file is missing, is no regular file or is empty, or lines are wrong: up to
            `MAX_PROBLEMS` of them are listed, each with "file:line" and the object's index from 0.
    """
    _check_file(path)
    root = path.parent if image_root is None else image_root
    if not os.path.isdir(root):
        raise DataError("the image root is no folder", where=str(root), fix="correct data.image_root")
    reader = _Reader(
        path=path, root=root.resolve(), form=FORMS[box_format], keep_unusable=keep_unusable, share=share
    )
    records: list[Record] = []
    problems: list[_Problem] = []
    for number, line in _lines(path):
        found = _read_line(reader, number, line)
        if isinstance(found, Record):
            records.append(found)
        else:
            problems += found
        if len(problems) >= MAX_PROBLEMS:
            break
    if problems:
        raise _as_error(problems[:MAX_PROBLEMS], _other_form(path, box_format, problems))
    if not records:
        raise DataError("the file is empty", where=str(path), fix="write one JSON object per line")
    return records


def _check_file(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(path), fix="correct data.train or data.validation") from None
    except OSError as error:
        fix = "correct the path"
        raise DataError(f"the file cannot be reached: {error.strerror}", where=str(path), fix=fix) from None
    if not stat.S_ISREG(mode):
        raise DataError("this is no regular file", where=str(path), fix="name a JSONL file")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, bytes without the line end); a line that is too long is cut, and is the last."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                yield number, line.removesuffix(b"\n").removesuffix(b"\r")
                if len(line) > MAX_LINE_BYTES:
                    return
    except OSError as error:
        fix = "make the file readable"
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path), fix=fix) from None


def _as_error(problems: list[_Problem], form: str) -> DataError:
    """All problems as one error.

    Args:
        form: what comes before the remedy of every one that is about a box; empty: nothing.
    """
    if form:
        problems = [replace(one, fix=f"{form}; else {one.fix}") if one.about_box else one for one in problems]
    first = problems[0]
    if len(problems) == 1:
        return DataError(first.why, where=first.where, fix=first.fix)
    one = bool(form) and len({problem.fix for problem in problems}) == 1
    others = "".join(
        f"\n{printable(problem.where)}: {problem.why}{'' if one else f'; {problem.fix}'}" for problem in problems[1:]
    )
    reached = f"; reading stopped after {MAX_PROBLEMS} problems" if len(problems) == MAX_PROBLEMS else ""
    fix = first.fix if one else f"correct these {len(problems)} places"
    return DataError(f"{first.why}{'' if one else f'; {first.fix}'}{others}", where=first.where, fix=f"{fix}{reached}")


def _other_form(path: Path, box_format: str, problems: list[_Problem]) -> str:
    """A remedy if another form reads every box of the file: to correct the boxes one by one may be wrong then.

    Left out are forms in which the set would look like one of yet another form, or, but for the refused boxes, like one
    of the declared form.
    """
    if not any(problem.about_box for problem in problems):
        return ""
    boxes = list(_raw_boxes(path))
    accepted = [one is not None for one in _read_all(boxes, box_format)]
    likely = []
    for name in (name for name in FORMS if name != box_format):
        found = _read_all(boxes, name)
        if None not in found and not other_form(found, name):
            likely += [] if other_form(list(compress(found, accepted)), name) else [name]
    if not likely:
        return ""
    told = "; ".join(f"if they are {FORMS[name].called}, set data.box_format: {name}" for name in likely)
    return f"{told} (all {len(boxes):,} boxes of the file can be read so)"


def _read_all(boxes: list[tuple[list[Any], tuple[int, int]]], box_format: str) -> list[SizedBox | None]:
    """Each box in a form; None: it is refused."""
    found: list[SizedBox | None] = []
    for values, size in boxes:
        try:
            found.append(SizedBox(to_bins(values, FORMS[box_format], *size), *size))
        except BoxRefused:
            found.append(None)
    return found


def _raw_boxes(path: Path) -> Iterator[tuple[list[Any], tuple[int, int]]]:
    """Everything that may be a box in some form, with its image's size in pixels; other problems are passed over."""
    for number, line in _lines(path):
        try:
            values = mapping(parse(line, number), RECORD_KEYS, "the record")
            size = side_of(values["width"], "width"), side_of(values["height"], "height")
            boxes = [entry["bbox_2d"] for entry in values["objects"]]
        except (Refused, TypeError, KeyError):
            continue
        yield from ((box, size) for box in boxes if isinstance(box, list) and len(box) == 4)


def _read_line(reader: _Reader, number: int, line: bytes) -> Record | list[_Problem]:
    where = f"{reader.path}:{number}"
    try:
        values = mapping(parse(line, number), RECORD_KEYS, "the record")
        width, height = (side_of(values[name], name) for name in ("width", "height"))
        sample_id = _sample_id(reader, number, values)
        prompt = prompt_of(values["prompt"]) if "prompt" in values else None
        image = _image(reader, number, values["images"])
        absent, not_exhaustive = (names_of(values, name) for name in ("absent", "not_exhaustive"))
    except Refused as error:
        return [_Problem(where, error.why, error.fix)]
    objects, problems = _objects(reader, values["objects"], width, height, where)
    there = {compared(truth.desc) for truth in objects}
    both = next((name for name in absent or () if compared(name) in there), None)
    if both is not None:
        problems.append(_Problem(where, f"{both!r} stands in absent and under objects", "delete it from one of them"))
    if problems:
        return problems
    return Record(
        id=sample_id, image=image, width=width, height=height, where=where, prompt=prompt,
        objects=tuple(sorted(objects, key=_taught)), absent=absent, not_exhaustive=not_exhaustive or (),
    )  # fmt: skip


def _taught(truth: Truth) -> tuple[int, int]:
    return truth.box[1], truth.box[0]


def _sample_id(reader: _Reader, number: int, values: dict[str, Any]) -> str:
    sample_id = text_of(values["id"], "id") if "id" in values else f"{reader.path.name}:{number}"
    if sample_id in reader.line_of_id:
        raise Refused(f"id {sample_id!r} is that of line {reader.line_of_id[sample_id]} too", "make ids unique")
    reader.line_of_id[sample_id] = number
    return sample_id


def _image(reader: _Reader, number: int, value: Any) -> Path:
    """Below the root, not resolved: the same at every rank, whichever looks for it."""
    if not isinstance(value, list) or len(value) != 1:
        raise Refused(f"images is {shown(value)}, not a list of exactly one path", "write one image per record")
    text, (first, every) = text_of(value[0], "images[0]"), reader.share
    try:
        if (number - 1) % every == first:
            find_image(reader.root, text)
        else:
            check_path(text)
    except DataError as error:
        if not (isinstance(error, Unusable) and reader.keep_unusable):
            raise Refused(error.why, error.fix) from None
    return reader.root / text


def _objects(reader: _Reader, values: Any, width: int, height: int, where: str) -> tuple[list[Truth], list[_Problem]]:
    if not isinstance(values, list):
        return [], [_Problem(where, f"objects is {shown(values)}, not a list", "write [] if there are none")]
    objects, problems = list[Truth](), list[_Problem]()
    for place, value in enumerate(values):
        try:
            objects.append(_truth(reader, value, width, height))
        except Refused as error:
            problems.append(_Problem(where, f"objects[{place}]: {error.why}", error.fix, isinstance(error, BoxRefused)))
    return objects, problems


def _truth(reader: _Reader, value: Any, width: int, height: int) -> Truth:
    values = mapping(value, OBJECT_KEYS, "it")
    desc = text_of(values["desc"], "desc")
    if len(json.dumps(desc, ensure_ascii=False).encode()) > MAX_DESC_BYTES:
        raise Refused(f"desc is {shown(desc)}, longer than {MAX_DESC_BYTES} bytes", "describe the object shortly")
    box = values["bbox_2d"]
    if not isinstance(box, list) or len(box) != 4:
        raise Refused(f"bbox_2d is {shown(box)}, not a list of four", "write [x1, y1, x2, y2]")
    return Truth(desc=desc, box=to_bins(box, reader.form, width, height))
