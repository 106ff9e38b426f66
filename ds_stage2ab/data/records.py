"""JSONL of the data contract -> checked, quantised records.

One JSON object per line with `images` (one path), `width`, `height`, `objects` and, optionally, `id`;
`schemas/record.schema.json` describes a line. Everything else is refused, extra keys too: a misspelt key
or a second geometry would otherwise be silently ignored.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ds_stage2ab.carriers import Box, Record, Truth
from ds_stage2ab.codec.bins import MAX_BIN, bin_of_token, pixel_to_bin
from ds_stage2ab.data.images import Unusable, check_image, find_image, load_image
from ds_stage2ab.errors import DataError, printable

__all__ = ["BoxFormat", "check_image", "load_image", "read_records"]

BoxFormat = Literal["bins", "pixel"]

RECORD_KEYS = ("images", "width", "height", "objects", "id")
OBJECT_KEYS = ("desc", "bbox_2d")
OPTIONAL_KEYS = ("id",)
MAX_PROBLEMS = 20  # listed in one error; reading stops there
MAX_LINE_BYTES = 16 * 2**20  # 100,000 objects fit; a file without line ends must not fill the memory
MAX_DESC_BYTES = 3_840  # as JSON: with its box the object stays below the 4,096 bytes that the parser accepts
MAX_SIDE = 100_000  # pixels; images above 64 megapixels are refused anyway
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reader:
    """Settings for all lines of a file, and the ids seen so far."""

    path: Path
    root: Path
    box_format: BoxFormat
    keep_unusable: bool
    line_of_id: dict[str, int] = field(default_factory=dict)


def read_records(
    path: Path, *, image_root: Path | None, box_format: BoxFormat, keep_unusable: bool = False
) -> list[Record]:
    """Read a whole file; images are not opened, but must exist.

    Args:
        path: the JSONL file.
        image_root: the folder that image paths start from and never leave; None: the file's own folder.
        box_format: `bins` (0..999, whole numbers or `<|coord_k|>`) or `pixel`.
        keep_unusable: keep a record whose image is missing or empty; loading the image raises then.

    Returns: one record per line, in file order; the objects of each sorted by (y1, x1), stable.

    Raises:
        DataError: the file is missing, is no regular file or is empty, or lines are wrong: up to
            `MAX_PROBLEMS` of them are listed, each with "file:line" and the object's index from 0.
    """
    _check_file(path)
    root = path.parent if image_root is None else image_root
    if not root.is_dir():
        raise DataError("the image root is no folder", where=str(root), fix="correct data.image_root")
    reader = _Reader(path=path, root=root.resolve(), box_format=box_format, keep_unusable=keep_unusable)
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
        raise _as_error(problems[:MAX_PROBLEMS])
    if not records:
        raise DataError("the file is empty", where=str(path), fix="write one JSON object per line")
    return records


def _check_file(path: Path) -> None:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise DataError("there is no such file", where=str(path), fix="correct data.train or data.validation") from None
    except OSError as error:
        raise DataError(f"the file cannot be reached: {error.strerror}", where=str(path)) from None
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
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(path)) from None


def _as_error(problems: list[_Problem]) -> DataError:
    first = problems[0]
    if len(problems) == 1:
        return DataError(first.why, where=first.where, fix=first.fix)
    others = "".join(f"\n{printable(problem.where)}: {problem.why}; {problem.fix}" for problem in problems[1:])
    reached = f"; reading stopped after {MAX_PROBLEMS} problems" if len(problems) == MAX_PROBLEMS else ""
    return DataError(
        f"{first.why}; {first.fix}{others}", where=first.where, fix=f"correct these {len(problems)} places{reached}"
    )


def _read_line(reader: _Reader, number: int, line: bytes) -> Record | list[_Problem]:
    where = f"{reader.path}:{number}"
    try:
        values = _mapping(_parse(line, number), RECORD_KEYS, "the record")
        width, height = (_side(values[name], name) for name in ("width", "height"))
        sample_id = _sample_id(reader, number, values)
        image = _image(reader, values["images"])
    except _Refused as error:
        return [_Problem(where, error.why, error.fix)]
    objects, problems = _objects(reader, values["objects"], width, height, where)
    if problems:
        return problems
    return Record(
        id=sample_id, image=image, width=width, height=height, objects=tuple(sorted(objects, key=_taught)), where=where
    )


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
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _Refused(f"the key {twice!r} stands twice in one object", "delete one of the two")
    return values


def _mapping(value: Any, allowed: tuple[str, ...], what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Refused(f"{what} is {_seen(value)}, not an object", f"write an object with {', '.join(allowed)}")
    unknown = [name for name in value if name not in allowed]
    if unknown:
        raise _Refused(f"{what} has the unknown key {unknown[0]!r}", f"only these are read: {', '.join(allowed)}")
    missing = [name for name in allowed if name not in value and name not in OPTIONAL_KEYS]
    if missing:
        raise _Refused(f"{what} has no {missing[0]!r}", f"add {missing[0]!r}")
    return value


def _seen(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise _Refused(f"{name} is {_seen(value)}, not a non-blank string", f"write {name} as text")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in value) or "\0" in value:
        raise _Refused(f"{name} is {_seen(value)}: half a surrogate pair or a NUL in it", f"write {name} as text")
    return value


def _side(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
        raise _Refused(f"{name} is {_seen(value)}, not a whole number from 1 to {MAX_SIDE}", "write the image's size")
    return value


def _sample_id(reader: _Reader, number: int, values: dict[str, Any]) -> str:
    sample_id = _text(values["id"], "id") if "id" in values else f"{reader.path.name}:{number}"
    if sample_id in reader.line_of_id:
        raise _Refused(f"id {sample_id!r} is that of line {reader.line_of_id[sample_id]} too", "make ids unique")
    reader.line_of_id[sample_id] = number
    return sample_id


def _image(reader: _Reader, value: Any) -> Path:
    if not isinstance(value, list) or len(value) != 1:
        raise _Refused(f"images is {_seen(value)}, not a list of exactly one path", "write one image per record")
    try:
        return find_image(reader.root, _text(value[0], "images[0]"))
    except DataError as error:
        if isinstance(error, Unusable) and reader.keep_unusable:
            return reader.root / value[0]
        raise _Refused(error.why, error.fix) from None


def _objects(reader: _Reader, values: Any, width: int, height: int, where: str) -> tuple[list[Truth], list[_Problem]]:
    if not isinstance(values, list):
        return [], [_Problem(where, f"objects is {_seen(values)}, not a list", "write [] if there are none")]
    objects: list[Truth] = []
    problems: list[_Problem] = []
    for place, value in enumerate(values):
        try:
            objects.append(_truth(reader, value, width, height))
        except _Refused as error:
            problems.append(_Problem(where, f"objects[{place}]: {error.why}", error.fix))
    return objects, problems


def _truth(reader: _Reader, value: Any, width: int, height: int) -> Truth:
    values = _mapping(value, OBJECT_KEYS, "it")
    desc = _text(values["desc"], "desc")
    if len(json.dumps(desc, ensure_ascii=False).encode()) > MAX_DESC_BYTES:
        raise _Refused(f"desc is {_seen(desc)}, longer than {MAX_DESC_BYTES} bytes", "describe the object shortly")
    box = values["bbox_2d"]
    if not isinstance(box, list) or len(box) != 4:
        raise _Refused(f"bbox_2d is {_seen(box)}, not a list of four", "write [x1, y1, x2, y2]")
    if reader.box_format == "pixel":
        return Truth(desc=desc, box=_pixel_box(box, width, height))
    return Truth(desc=desc, box=_bins_box(box))


def _bins_box(values: list[Any]) -> Box:
    bins = [bin_of_token(value) if isinstance(value, str) else value for value in values]
    if not all(isinstance(k, int) and not isinstance(k, bool) and 0 <= k <= MAX_BIN for k in bins):
        raise _Refused(
            f"bbox_2d is {_seen(values)}, not four bins (whole numbers from 0 to {MAX_BIN}, or <|coord_k|>)",
            _other_unit(values),
        )
    _check_order(values, bins)
    return tuple(bins)


def _other_unit(values: list[Any]) -> str:
    """A remedy that names the unit that the numbers seem to have."""
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == 4 and all(0 <= value <= 1 for value in numbers):
        return "these look like fractions of the image: multiply by 999 and round"
    if len(numbers) == 4 and min(numbers) >= 0:
        return "if these are pixels, set data.box_format: pixel"
    return "correct the box"


def _pixel_box(values: list[Any], width: int, height: int) -> Box:
    for value, size in zip(values, (width, height, width, height), strict=True):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or not 0 <= value <= size:
            raise _Refused(
                f"bbox_2d is {_seen(values)}, outside the image of {width} x {height} pixels or no numbers",
                "correct the box, or set data.box_format: bins if these are bins",
            )
    _check_order(values, values)
    box = tuple(pixel_to_bin(value, size) for value, size in zip(values, (width, height, width, height), strict=True))
    if box[2] <= box[0] or box[3] <= box[1]:
        raise _Refused(
            f"bbox_2d is {_seen(values)}, thinner than one of the 1,000 bins of {width} x {height} pixels",
            "leave this object out, or cut the image into parts",
        )
    return box


def _check_order(shown: list[Any], box: list[Any]) -> None:
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise _Refused(f"bbox_2d is {_seen(shown)}, but x2 > x1 and y2 > y1 must hold", "write [x1, y1, x2, y2]")
