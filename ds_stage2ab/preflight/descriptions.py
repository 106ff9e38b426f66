"""Descriptions against the added tokens of the checkpoint, as far as that goes without its tokenizer."""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unicodedata import normalize

from ds_stage2ab.codec.added_tokens import check_descriptions, refused_texts
from ds_stage2ab.codec.names import IN_LINES
from ds_stage2ab.model_folder.read import ModelFolder


def check_files(files: list[Path], folder: ModelFolder, codec: str) -> None:
    """Refuse what the run would refuse; records that are not as they should be are left to it.

    Raises:
        DataError: no answer can hold a description.
    """
    # Of few checkpoints with JSON: the added tokens of the release all have a "<".
    if codec in IN_LINES or refused_texts(folder.added_tokens, codec):
        for file in files:
            check_descriptions(_described(file), folder.added_tokens, partial(normalize, "NFC"), codec)


def _described(file: Path) -> Iterator[tuple[str, str]]:
    if os.path.isfile(file):
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                yield from ((f"{file}:{number}", desc) for desc in _descriptions(line))


def _descriptions(line: bytes) -> list[str]:
    try:
        return [one["desc"] for one in json.loads(line)["objects"] if isinstance(one["desc"], str)]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []
