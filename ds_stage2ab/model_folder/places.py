"""Where a checkpoint is, in a folder of a run."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.model_folder.read import CONFIG

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
    return export if os.path.isfile(export / CONFIG) else None


def weights_folder(checkpoint: Path) -> Path:
    """The Hugging Face folder inside a run or a run's checkpoint, the newest one; else the given folder itself."""
    checkpoint = Path(os.path.expanduser(checkpoint))  # pathlib's own raises where there is no such home
    folder = export_in(checkpoint) or checkpoint
    if os.path.isfile(folder / CONFIG):
        return folder
    raise EnvironmentFault(
        f"no checkpoint here: neither {CONFIG} nor {EXPORT}/{CONFIG}",
        where=str(checkpoint),
        fix="name a Hugging Face folder, a folder runs/<name> with a checkpoint, or one of its checkpoints",
    )
