"""Files, folders and patterns -> the images that they name, each once, in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path

from ds_stage2ab.carriers import Record
from ds_stage2ab.data.images import SUFFIXES, read_header
from ds_stage2ab.errors import ConfigError


def find_images(words: Sequence[str]) -> list[Path]:
    """The files, in the order of the words, those of a folder or a pattern by name.

    Raises:
        ConfigError: a word names nothing, or a folder without images.
    """
    found: dict[str, Path] = {}
    for word in words:
        files = list(_named_by(os.path.expanduser(word)))
        if not files:
            is_folder = os.path.isdir(os.path.expanduser(word))
            why = f"there is no image in it ({', '.join(SUFFIXES)})" if is_folder else "there is no such file"
            raise ConfigError(why, where=word, fix="name image files, a folder that holds some, or a pattern in quotes")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _named_by(word: str) -> Iterator[Path]:
    if os.path.isdir(word):
        yield from _below(Path(word))
    elif os.path.lexists(word):  # before patterns: a name may hold brackets
        yield Path(word)
    elif has_magic(word):
        for path in map(Path, sorted(glob(word, recursive=True))):
            yield from _below(path) if path.is_dir() and word.endswith(os.sep) else [path] if path.is_file() else []


def _below(folder: Path) -> Iterator[Path]:
    """By name; hidden files and folders are left out."""
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _below(entry)
        elif entry.suffix.lower() in SUFFIXES:
            yield entry


def as_record(path: Path) -> Record:
    """An image that nothing is known of.

    Raises:
        DataError: it is missing, no image, too large or thin, or 16 bits deep.
    """
    width, height = read_header(path, "").shown
    return Record(id=str(path), image=path, width=width, height=height, objects=(), where="")
