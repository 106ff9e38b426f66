"""JSONL of the data contract -> checked, quantised records.

One JSON object per line with `images` (one path), `width`, `height`, `objects` and, optionally, `id`;
`prompt` too; `schemas/record.schema.json` describes a line. Everything else is refused, extra keys too: a misspelt key
or a second geometry would otherwise be silently ignored.
"""

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.data.box_forms import FORMS, BoxForm, BoxRefused, shown, to_bins
from ds_stage2ab.data.box_space import SizedBox, other_form
from ds_stage2ab.data.images import Unusable, check_image, check_path, find_image, load_image
from ds_stage2ab.errors import DataError, printable

__all__ = ["check_image", "load_image", "read_records"]

Share = tuple[int, int]
"""(r, n): the records r, r + n, r + 2 n, ... of a file, counted from 0."""

RECORD_KEYS = ("images", "width", "height", "objects", "id", "prompt")
OBJECT_KEYS = ("desc", "bbox_2d")
OPTIONAL_KEYS = ("id", "prompt")
MAX_PROBLEMS = 20  # listed in one error; reading stops there
MAX_LINE_BYTES = 16 * 2**20  # 100,000 objects fit; a file without line ends must not fill the memory
MAX_DESC_BYTES = 3_840  # as JSON: with its box the object stays below the 4,096 bytes that the parser accepts
MAX_SIDE = 100_000  # pixels; images above 64 megapixels are refused anyway
NO_TEXT = re.compile("[\ud800-\udfff\0]")  # half of a surrogate pair, NUL
NO_WORDS = re.compile(
    r"<image>|<\|(im_start|im_end|endoftext|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>"
)
"""What no prompt may hold, as in the schema of data.user_prompt: the chat template adds turns and image."""
BOM = b"\xef\xbb\xbf"


class _Refused(ValueError):
    """One problem of a line, for the user."""

    def __init__(self, why: str, fix: str) -> None:
        super().__init__(why)
        self.why = why
        self.fix = fix


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
            values = _mapping(_parse(line, number), RECORD_KEYS, "the record")
            size = _side(values["width"], "width"), _side(values["height"], "height")
            boxes = [entry["bbox_2d"] for entry in values["objects"]]
        except (_Refused, TypeError, KeyError):
            continue
        yield from ((box, size) for box in boxes if isinstance(box, list) and len(box) == 4)


def _read_line(reader: _Reader, number: int, line: bytes) -> Record | list[_Problem]:
    where = f"{reader.path}:{number}"
    try:
        values = _mapping(_parse(line, number), RECORD_KEYS, "the record")
        width, height = (_side(values[name], name) for name in ("width", "height"))
        sample_id = _sample_id(reader, number, values)
        prompt = _prompt(values["prompt"]) if "prompt" in values else None
        image = _image(reader, number, values["images"])
    except _Refused as error:
        return [_Problem(where, error.why, error.fix)]
    objects, problems = _objects(reader, values["objects"], width, height, where)
    if problems:
        return problems
    return Record(
        id=sample_id, image=image, width=width, height=height, where=where, prompt=prompt,
        objects=tuple(sorted(objects, key=_taught)),
    )  # fmt: skip


def _taught(truth: Truth) -> tuple[int, int]:
    return truth.box[1], truth.box[0]


def _parse(line: bytes, number: int) -> Any:
    """Parse a line as strict JSON: no NaN, no infinities, no key twice."""
    if len(line) > MAX_LINE_BYTES:
        raise _Refused(f"the line is longer than {MAX_LINE_BYTES} bytes", "write one record per line")
    if number == 1 and line.startswith(BOM):
        raise _Refused("the file starts with a byte order mark", "save it as UTF-8 without BOM")
    if b"\0" in line:
        raise _Refused(f"column {line.index(0) + 1}: a NUL byte", "save the file as UTF-8 text")
    if not line.strip():
        raise _Refused("the line is empty", "delete it")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise _Refused(f"byte {error.start + 1} of the line is no UTF-8", "save the file as UTF-8") from None
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise _Refused(f"column {error.colno}: no JSON: {error.msg}", "write one JSON object per line") from None
    except RecursionError:
        raise _Refused("the JSON is nested too deeply", "write a record of the data contract") from None
    except _Refused:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise _Refused(f"no JSON: {error}", "write one JSON object per line") from None


def _refuse_constant(name: str) -> None:
    raise _Refused(f"{name} is no JSON number", "write a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise _Refused(f"the key {twice!r} stands twice in one object", "delete one of the two")
    return values


def _mapping(value: Any, allowed: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Refused(f"{what} is {shown(value)}, not an object", f"write an object with {', '.join(allowed)}")
    unknown = [name for name in value if name not in allowed]
    if unknown:
        raise _Refused(f"{what} has the unknown key {unknown[0]!r}", f"only these are read: {', '.join(allowed)}")
    missing = [name for name in allowed if name not in value and name not in OPTIONAL_KEYS]
    if missing:
        raise _Refused(f"{what} has no {missing[0]!r}", f"add {missing[0]!r}")
    return value


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Refused(f"{name} is {shown(value)}, not a non-blank string", f"write {name} as text")
    if NO_TEXT.search(value):
        raise _Refused(f"{name} is {shown(value)}: half a surrogate pair or a NUL in it", f"write {name} as text")
    return value


def _side(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
        raise _Refused(f"{name} is {shown(value)}, not a whole number from 1 to {MAX_SIDE}", "write the image's size")
    return value


def _sample_id(reader: _Reader, number: int, values: dict[str, Any]) -> str:
    sample_id = _text(values["id"], "id") if "id" in values else f"{reader.path.name}:{number}"
    if sample_id in reader.line_of_id:
        raise _Refused(f"id {sample_id!r} is that of line {reader.line_of_id[sample_id]} too", "make ids unique")
    reader.line_of_id[sample_id] = number
    return sample_id


def _prompt(value: Any) -> str:
    text = _text(value, "prompt")
    if NO_WORDS.search(text):
        raise _Refused(f"prompt is {shown(text)}, with a token of the chat template", "write the words alone")
    return text


def _image(reader: _Reader, number: int, value: Any) -> Path:
    """Below the root, not resolved: the same at every rank, whichever looks for it."""
    if not isinstance(value, list) or len(value) != 1:
        raise _Refused(f"images is {shown(value)}, not a list of exactly one path", "write one image per record")
    text, (first, every) = _text(value[0], "images[0]"), reader.share
    try:
        if (number - 1) % every == first:
            find_image(reader.root, text)
        else:
            check_path(text)
    except DataError as error:
        if not (isinstance(error, Unusable) and reader.keep_unusable):
            raise _Refused(error.why, error.fix) from None
    return reader.root / text


def _objects(reader: _Reader, values: Any, width: int, height: int, where: str) -> tuple[list[Truth], list[_Problem]]:
    if not isinstance(values, list):
        return [], [_Problem(where, f"objects is {shown(values)}, not a list", "write [] if there are none")]
    objects, problems = list[Truth](), list[_Problem]()
    for place, value in enumerate(values):
        try:
            objects.append(_truth(reader, value, width, height))
        except (_Refused, BoxRefused) as error:
            problems.append(_Problem(where, f"objects[{place}]: {error.why}", error.fix, isinstance(error, BoxRefused)))
    return objects, problems


def _truth(reader: _Reader, value: Any, width: int, height: int) -> Truth:
    values = _mapping(value, OBJECT_KEYS, "it")
    desc = _text(values["desc"], "desc")
    if len(json.dumps(desc, ensure_ascii=False).encode()) > MAX_DESC_BYTES:
        raise _Refused(f"desc is {shown(desc)}, longer than {MAX_DESC_BYTES} bytes", "describe the object shortly")
    box = values["bbox_2d"]
    if not isinstance(box, list) or len(box) != 4:
        raise _Refused(f"bbox_2d is {shown(box)}, not a list of four", "write [x1, y1, x2, y2]")
    return Truth(desc=desc, box=to_bins(box, reader.form, width, height))
