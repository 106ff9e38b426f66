"""Files that a killed process leaves whole, or is found to have left a half line of."""

import os
from pathlib import Path

from ds_stage2ab.errors import unwritable


def write_whole(path: Path, text: str) -> None:
    """Write a file under another name, then give it its own; its folder is made if it is missing.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path, error) from None


def drop_half_line(path: Path) -> None:
    """Cut off a last line without an end: the process was killed while it wrote. Without a file there is none.

    Raises:
        OSError: it cannot be read or written.
    """
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("r+b") as file:
        whole = sum(len(line) for line in file if line.endswith(b"\n"))
        if whole < file.tell():
            file.truncate(whole)
