"""JSON lines of others: read one at a time; a line that is no object is reported, and skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ds_stage2ab.errors import DataError


def read_lines(file: Path) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """(`file:line`, the line's object, or None if it is none); empty lines are left out.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield f"{file}:{number}", _object(line)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(file), fix="correct the path") from None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def whole(value: object) -> int | None:
    """A number of pixels; None if it is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
