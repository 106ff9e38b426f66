"""The words of `ds-stage2ab predict`; what it needs is loaded when it runs."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

OUT = Path("predictions")
BATCH = 8


def add_predict_options(parser: argparse.ArgumentParser) -> None:
    """`predict CHECKPOINT IMAGE...`"""
    what = "a run (its newest checkpoint), a checkpoint, a Hugging Face folder, or the address of a vLLM server"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=what)
    what = "a file, a folder (with those below it), or a pattern with * in quotes"
    parser.add_argument("images", nargs="+", metavar="IMAGE", help=what)
    what = f"pictures, JSONL and COCO's results go here (default: {OUT})"
    parser.add_argument("--out", type=Path, default=OUT, metavar="DIR", help=what)
    what = "leave out objects with a lower score (default: 0)"
    parser.add_argument("--threshold", type=_probability, default=0.0, metavar="SCORE", help=what)
    what = f"images that are answered at once (default: {BATCH})"
    parser.add_argument("--batch", type=_count, default=BATCH, metavar="N", help=what)
    parser.add_argument("--prompt", metavar="TEXT", help="of the user (default: the checkpoint's own)")
    what = "names to ask for, with commas between them, where the prompt says {classes}"
    parser.add_argument("--classes", type=_names, default=(), metavar="NAMES", help=what)
    what = "prompts, answer format and limits are those of this config (default: the checkpoint's own)"
    parser.add_argument("--config", type=Path, metavar="FILE", help=what)
    what = "of a server: the folder that it serves (default: what it names, if that is on this machine)"
    parser.add_argument("--model", type=Path, metavar="DIR", help=what)
    what = "of a server: the environment variable that holds its key"
    parser.add_argument("--api-key-env", metavar="NAME", help=what)
    parser.add_argument("--no-pictures", action="store_true", help="write JSONL and COCO's results alone")
    parser.add_argument("--resume", action="store_true", help="go on in DIR: leave out the images that are finished")
    parser.add_argument("--skip-bad", action="store_true", help="exit with 0 although images cannot be read")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in map(str.strip, text.split(",")) if name)


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
