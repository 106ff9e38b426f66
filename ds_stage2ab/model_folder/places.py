"""Where a checkpoint is, in a folder of a run."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

EXPORT = "hf"
"""Folder of a run's checkpoint that holds the plain Hugging Face files."""
CHECKPOINTS, NEWEST = "checkpoints", "latest"


def export_in(path: Path) -> Path | None:
    """The Hugging Face folder that is meant by a folder of a run: the newest checkpoint's; None if there is none.

    Args:
        path: `runs/NAME`, its `checkpoints`, the file `latest` in that, or a checkpoint.
    """
    newest = path if path.name == NEWEST else path / NEWEST
    for file in (newest, path / CHECKPOINTS / NEWEST):
        with suppress(OSError):  # it is not there, or cannot be read
            path = file.parent / file.read_text(encoding="utf-8", errors="replace").strip()
            break
    export = path / EXPORT
    return export if os.path.isfile(export / "config.json") else None
