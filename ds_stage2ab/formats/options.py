"""The words of `ds-stage2ab import` and `ds-stage2ab export`; what they need is loaded when they run."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path

from ds_stage2ab.errors import ConfigError

FORMATS = ("coco", "yolo", "voc", "lvis", "odvg", "swift")
DEFAULT_NAME = "train"
MAPPINGS = (".yaml", ".yml")  # endings
_NAME = re.compile(r"[\w][\w.-]*")


def add_import_options(parser: argparse.ArgumentParser) -> None:
    """`import FORMAT ANNOTATIONS --images DIR --out DIR`"""
    parser.add_argument("format", choices=FORMATS, help="of the annotations; docs/import.md says what is read of each")
    parser.add_argument("annotations", type=Path, metavar="ANNOTATIONS", help="a file, or a folder (yolo, voc)")
    parser.add_argument("--images", required=True, type=Path, metavar="DIR", help="where the image paths start")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="JSONL, images and report go here")
    parser.add_argument("--copy", action="store_true", help="copy the images (default: one link to their folder)")
    parser.add_argument("--split", metavar="NAME", help="the split to read (yolo, voc), and the JSONL's name")
    parser.add_argument("--hold-out", type=_share, default=0.0, metavar="SHARE", help="of the images, for validation")
    what = "names of the classes: a text file, or YAML with a list or a mapping from id or name"
    parser.add_argument("--class-names", type=Path, metavar="FILE", help=what)
    what = "leave out objects with a shorter side"
    parser.add_argument("--min-side", type=_pixels, default=0.0, metavar="PIXELS", help=what)
    what = "keep crowds (coco) and difficult objects (voc) as ordinary ones"
    parser.add_argument("--keep-crowd", action="store_true", help=what)


def add_export_options(parser: argparse.ArgumentParser) -> None:
    """`export coco RUN|PREDICTIONS --out FILE`"""
    parser.add_argument("format", choices=("coco",), help="to write")
    what = "a run (its newest evaluation), a JSONL of predictions, or one of the data contract"
    parser.add_argument("source", type=Path, metavar="RUN|PREDICTIONS", help=what)
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="COCO's results or annotations, JSON")
    what = "take the ids of images and categories from here (default: new ones, in a file beside it)"
    parser.add_argument("--annotations", type=Path, metavar="FILE", help=what)


def output_name(format_name: str, annotations: Path, split: str | None) -> str:
    """The name of the JSONL: the split's, else that of the annotations.

    Raises:
        ConfigError: it is no name of a file.
    """
    of_mapping = format_name == "yolo" and annotations.suffix.lower() in MAPPINGS
    name = split or (DEFAULT_NAME if of_mapping else annotations.resolve().stem)
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a file", where="--split", fix="use letters, digits, - _ and .")
    return name


def _share(text: str) -> float:
    value = _pixels(text)
    if value >= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 up to, but not including, 1")
    return value


def _pixels(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 up")
    return value
