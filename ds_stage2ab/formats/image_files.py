"""The file of a foreign image, and which way up its boxes are."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ds_stage2ab.data.images import Header, Unusable, find_image, read_header
from ds_stage2ab.errors import DataError
from ds_stage2ab.formats.source import SourceImage

UPRIGHT = 1
"""EXIF's orientation of an image that is shown as it is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFile:
    """An image that training accepts."""

    path: str
    # below the folder of images, "/" between its parts
    file: Path
    # resolved
    width: int
    height: int
    # pixels, as it is shown
    orientation: int
    # by which the boxes have to be turned; 1: they are of the shown image
    change: str
    # what to count about it, of `source.CHANGED`; empty: nothing


def open_image(root: Path, source: SourceImage) -> ImageFile | str:
    """The file behind an image, its header checked; else the reason to leave it out.

    Args:
        root: the folder of images, resolved.
    """
    found = _find(root, source.paths)
    if isinstance(found, str):
        return found
    path, file = found
    try:
        header = read_header(file, source.where)
    except DataError:
        return "unreadable_image"
    decided = _way_up(header, source.width, source.height)
    if decided is None:
        return "other_size"
    orientation, change = decided
    width, height = header.shown
    return ImageFile(path=path, file=file, width=width, height=height, orientation=orientation, change=change)


def _find(root: Path, paths: tuple[str, ...]) -> tuple[str, Path] | str:
    """The first of the paths that exists below the folder, then the first by its file name alone."""
    plain = [_relative(root, path) for path in paths]
    reason = "missing_image"
    for path in dict.fromkeys([*plain, *(path.rsplit("/", 1)[-1] for path in plain)]):
        try:
            path.encode()  # a name that is no UTF-8 has no place in a JSONL
            return path, find_image(root, path)
        except Unusable:
            continue
        except (DataError, ValueError):
            reason = "bad_path"
    return reason


def _relative(root: Path, path: str) -> str:
    """An absolute path inside the folder as a relative one; a Windows path with "/"."""
    if "\\" in path and not os.path.exists(root / path):
        path = path.replace("\\", "/")
    start = f"{root}{os.sep}"
    return path.removeprefix(start) if path.startswith(start) else path.removeprefix("./")


def _way_up(header: Header, width: int | None, height: int | None) -> tuple[int, str] | None:
    """(orientation to turn the boxes by, what to count); None: the sizes differ.

    Annotations are made on the image as tools show it, or on its pixels as they are stored; where the two differ in
    size, the size that stands beside the boxes tells which.
    """
    said = None if width is None or height is None else (width, height)
    stored = (header.width, header.height)
    if said not in (None, stored, header.shown):
        return None
    if header.orientation == UPRIGHT:
        return UPRIGHT, ""
    if said is None or stored == header.shown:
        return UPRIGHT, "exif_assumed"
    return (UPRIGHT, "exif_shown") if said == header.shown else (header.orientation, "exif_turned")
