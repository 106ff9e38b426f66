"""Strict JSON of one line of records, and the checked values in it; every function here raises `Refused`."""

import json
import re
from typing import Any

from ds_stage2ab.data.box_forms import Refused, shown

OPTIONAL_KEYS = ("id", "prompt", "absent", "not_exhaustive")
MAX_LINE_BYTES = 16 * 2**20  # 100,000 objects fit; a file without line ends must not fill the memory
MAX_SIDE = 100_000  # pixels; images above 64 megapixels are refused anyway
NO_TEXT = re.compile("[\ud800-\udfff\0]")  # half of a surrogate pair, NUL
NO_WORDS = re.compile(
    r"<image>|<\|(im_start|im_end|endoftext|vision_start|vision_end|vision_pad|image_pad|video_pad)\|>"
)
"""What no prompt may hold, as in the schema of data.user_prompt: the chat template adds turns and image."""
BOM = b"\xef\xbb\xbf"


def parse(line: bytes, number: int) -> Any:
    """Parse a line as strict JSON: no NaN, no infinities, no key twice."""
    if len(line) > MAX_LINE_BYTES:
        raise Refused(f"the line is longer than {MAX_LINE_BYTES} bytes", "write one record per line")
    if number == 1 and line.startswith(BOM):
        raise Refused("the file starts with a byte order mark", "save it as UTF-8 without BOM")
    if b"\0" in line:
        raise Refused(f"column {line.index(0) + 1}: a NUL byte", "save the file as UTF-8 text")
    if not line.strip():
        raise Refused("the line is empty", "delete it")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise Refused(f"byte {error.start + 1} of the line is no UTF-8", "save the file as UTF-8") from None
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise Refused(f"column {error.colno}: no JSON: {error.msg}", "write one JSON object per line") from None
    except RecursionError:
        raise Refused("the JSON is nested too deeply", "write a record of the data contract") from None
    except Refused:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise Refused(f"no JSON: {error}", "write one JSON object per line") from None


def _refuse_constant(name: str) -> None:
    raise Refused(f"{name} is no JSON number", "write a finite number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
        raise Refused(f"the key {twice!r} stands twice in one object", "delete one of the two")
    return values


def mapping(value: Any, allowed: tuple[str, ...], what: str) -> dict[str, Any]:
    """An object with all of these keys but optional ones, and with no other."""
    if not isinstance(value, dict):
        raise Refused(f"{what} is {shown(value)}, not an object", f"write an object with {', '.join(allowed)}")
    unknown = [name for name in value if name not in allowed]
    if unknown:
        raise Refused(f"{what} has the unknown key {unknown[0]!r}", f"only these are read: {', '.join(allowed)}")
    missing = [name for name in allowed if name not in value and name not in OPTIONAL_KEYS]
    if missing:
        raise Refused(f"{what} has no {missing[0]!r}", f"add {missing[0]!r}")
    return value


def text_of(value: Any, name: str) -> str:
    """A text that is not blank, and that can be written as UTF-8."""
    if not isinstance(value, str) or not value.strip():
        raise Refused(f"{name} is {shown(value)}, not a non-blank string", f"write {name} as text")
    if NO_TEXT.search(value):
        raise Refused(f"{name} is {shown(value)}: half a surrogate pair or a NUL in it", f"write {name} as text")
    return value


def side_of(value: Any, name: str) -> int:
    """Width or height in pixels."""
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
        raise Refused(f"{name} is {shown(value)}, not a whole number from 1 to {MAX_SIDE}", "write the image's size")
    return value


def prompt_of(value: Any) -> str:
    """The words of a user, without any token of the chat template."""
    text = text_of(value, "prompt")
    if NO_WORDS.search(text):
        raise Refused(f"prompt is {shown(text)}, with a token of the chat template", "write the words alone")
    return text


def names_of(values: dict[str, Any], key: str) -> tuple[str, ...] | None:
    """The descriptions of a list; None where the record has no such key."""
    if key not in values:
        return None
    value = values[key]
    if not isinstance(value, list):
        raise Refused(f"{key} is {shown(value)}, not a list", "write a list of descriptions")
    return tuple(text_of(name, f"{key}[{place}]") for place, name in enumerate(value))
