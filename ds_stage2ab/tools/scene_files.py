"""What the scene tools share: boxes in bins, a data set that is there whole or not at all, its progress.

A scene is written by a function of its index, `write(index, folder=...)`, which saves a picture below
`folder / "images"` and returns its line of the JSONL.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ds_stage2ab.errors import DataError, Stage2Error, exit_code, unwritable

SPLITS = ("train", "validation")
PLAIN_LINES = 4  # lines about progress where no terminal shows one line that changes
LEAST_TO_SHARE = 1000  # scenes: below, more processes take longer to start than they save
PER_TASK = 200  # scenes that a process composes at a time
SCENES_PER_UPDATE = 100  # of that line: about a tenth of a second

Advance = Callable[[], None]


class ScenesProgress:
    """Says how many scenes are composed: on a terminal one line that is written over, elsewhere `PLAIN_LINES` lines.

    Args:
        stream: where to write.
        total: scenes of all splits together.
    """

    def __init__(self, stream: TextIO, total: int) -> None:
        self.stream = stream
        self.total = total
        self.done = 0
        self.on_terminal = stream.isatty()
        self.every = SCENES_PER_UPDATE if self.on_terminal else -(-total // PLAIN_LINES)

    def advance(self) -> None:
        """One more scene is written."""
        self.done += 1
        if self.done % self.every and self.done < self.total:
            return
        line = f"composing scenes {self.done:,}/{self.total:,}"
        is_last = self.done == self.total
        self.stream.write(f"\r{line}" + "\n" * is_last if self.on_terminal else f"{line}\n")
        self.stream.flush()


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2), the first and last column and row (inclusive, pixels) with a True in `mask` [height, width]."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def to_bins(box: tuple[int, int, int, int], width: int, height: int) -> list[int]:
    """Pixel box to bins 0..999: k = floor(999 x / max(1, side - 1) + 0.5), clamped (in integers, so exact)."""
    bins = []
    for value, side in zip(box, (width, height, width, height), strict=True):
        span = max(1, side - 1)
        bins.append(min(999, max(0, (2 * 999 * value + span) // (2 * span))))
    return bins


def scene_rng(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of one scene's random numbers."""
    return np.random.default_rng([seed, SPLITS.index(split), index])


def write_split(folder: Path, split: str, num_scenes: int, write: Callable[[int], str], advance: Advance) -> None:
    """Write the JSONL of `num_scenes` scenes into `folder`; `advance` is called after each line."""
    with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as lines, _processes(num_scenes) as pool:
        for line in pool.imap(write, range(num_scenes), PER_TASK) if pool else map(write, range(num_scenes)):
            lines.write(line)
            advance()


def _processes(num_scenes: int) -> AbstractContextManager[Pool | None]:
    """One for each core where there is enough to do; ended with the block. Ctrl-C is the caller's to answer."""
    cores = len(os.sched_getaffinity(0))
    if num_scenes < LEAST_TO_SHARE or cores == 1:
        return nullcontext()
    return multiprocessing.get_context("fork").Pool(cores, signal.signal, (signal.SIGINT, signal.SIG_IGN))


def _already_there(out: Path, name: str, manifest: Mapping[str, Any]) -> bool:
    """True if `out` holds the data set that `manifest` describes; raises DataError if it holds anything else."""
    if not out.exists():
        return False
    fix = "give --out a folder that does not exist yet, or delete this one"
    if not out.is_dir():
        raise DataError("is a file, not a folder", where=str(out), fix=fix)
    if not any(out.iterdir()):
        return False
    described = out / name
    if not described.is_file():
        raise DataError(f"holds files but no {name}", where=str(out), fix=fix)
    found = described.read_text(encoding="utf-8").strip()
    if found == json.dumps(manifest):
        return True
    why = f"holds scenes made with other settings: {found}, not {json.dumps(manifest)}"
    raise DataError(why, where=str(out), fix=fix)


def write_data_set(
    out: Path,
    name: str,
    manifest: Mapping[str, Any],
    counts: Mapping[str, int],
    writers: Mapping[str, Callable[..., str]],
    advance: Advance,
) -> bool:
    """Make the data set in `out`, whole or not at all. False: exactly this data set was there already.

    Args:
        name: the file that holds `manifest`, by which the data set is known again.
        counts: split -> scenes.
        writers: split -> `write(index, folder=...)`.
        advance: called after each scene that is written.
    """
    if _already_there(out, name, manifest):
        return False
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        (building / "images").mkdir()
        for split, num_scenes in counts.items():
            write_split(building, split, num_scenes, partial(writers[split], folder=building), advance)
        (building / name).write_text(json.dumps(manifest) + "\n", encoding="utf-8")
        building.chmod(0o755)
        building.replace(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return True


def scene_options(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options of a scene tool: its own, which the parser has, and those that all of them share."""
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-scenes", type=int, default=16000)
    parser.add_argument("--validation-scenes", type=int, default=300)
    options = parser.parse_args(arguments)
    if min(options.seed, options.train_scenes - 1, options.validation_scenes - 1) < 0:
        parser.error("--seed must be 0 or more, --train-scenes and --validation-scenes 1 or more")
    return options


def make_scenes(options: argparse.Namespace, generate: Callable[..., bool]) -> int:
    """Call `generate(out, seed=..., train_scenes=..., validation_scenes=..., advance=...)` and say what was done.

    Returns:
        The exit code.
    """
    counts = {"train_scenes": options.train_scenes, "validation_scenes": options.validation_scenes}
    progress = ScenesProgress(sys.stdout, sum(counts.values()))
    try:
        made = generate(options.out, seed=options.seed, **counts, advance=progress.advance)
    except (Stage2Error, OSError) as error:
        fault = error if isinstance(error, Stage2Error) else unwritable(options.out, error)
        sys.stderr.write(f"{fault}\n")
        return exit_code(fault)
    written = f"{options.train_scenes} training and {options.validation_scenes} validation scenes"
    sys.stdout.write(f"{options.out}: {written} {'written' if made else 'were there already'}\n")
    return 0
