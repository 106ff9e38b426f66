"""What a complete checkpoint holds: its files with sizes and digests. No torch.

    manifest.json    {"files": {"hf/model.safetensors": {"bytes": 5123, "blake2b": "9f..."}, ...}}

The manifest is written last: a checkpoint without one was cut off, or is of another package.
"""

import json
from functools import partial
from hashlib import blake2b, file_digest
from pathlib import Path

MANIFEST = "manifest.json"
DIGEST_BYTES = 32


def digest(path: Path) -> str:
    """blake2b of a file, 32 bytes in hex."""
    with path.open("rb") as file:
        return file_digest(file, partial(blake2b, digest_size=DIGEST_BYTES)).hexdigest()


def manifest_text(folder: Path) -> str:
    """The manifest of everything that is in a folder now."""
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "blake2b": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    return json.dumps({"files": files}, indent=2) + "\n"


def incomplete(folder: Path) -> str:
    """Why a checkpoint is not what its manifest says, by the names and sizes of its files; empty if it is."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        sizes = {str(name): int(file["bytes"]) for name, file in files.items()}
    except FileNotFoundError:
        return f"it has no {MANIFEST}: it was cut off, or another version wrote it"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"its {MANIFEST} cannot be read: {error}"
    for name, size in sizes.items():
        try:
            found = (folder / name).stat().st_size
        except OSError as error:
            return f"{name} is missing: {error.strerror}"
        if found != size:
            return f"{name} has {found:,} bytes, written were {size:,}"
    return ""


def damaged(folder: Path) -> str:
    """Why files of a complete checkpoint have other contents than when they were written; empty if they have not."""
    files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    for name, file in files.items():
        try:
            if digest(folder / name) != file.get("blake2b"):
                return f"{name} has changed since it was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
    return ""
