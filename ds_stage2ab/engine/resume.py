"""Which checkpoint a run goes on from, and what has changed since it was written. No torch.

    --resume auto      the newest complete checkpoint; without one the run starts at step 0
    --resume latest    the newest complete checkpoint, or none is there: an error
    --resume 4000      the one after 4,000 steps
    --resume PATH      a checkpoint of this run or of another one, which a new run then forks
"""

import argparse
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ds_stage2ab.config.resolved import flat
from ds_stage2ab.engine.manifest import damaged, incomplete
from ds_stage2ab.engine.run_folder import BEST, LATEST, best_name, explained, replace_file
from ds_stage2ab.errors import ConfigError, EnvironmentFault, printable

EXPORT, ADAPTER, TRAINING = "hf", "adapter", "training"
RANDOM, STATE = "random.safetensors", "state.json"
AUTO = "auto"
"""As `latest`, a word of `--resume`."""
FORMAT = 2
"""Of `state.json`; the first had DeepSpeed's own files beside it."""
FREE_KEYS = (
    "logging.",
    "checkpoint.",
    "data.workers",
    "evaluation.num_pictures",
    "training.max_hours",
    "deepspeed.collective_timeout_s",
    "custom.extra.rollout_matching.vllm.",
)
"""Keys that change no result: nothing is asked when they have other values than before."""
CONFIG = "config."
"""Start of the keys of the config among the facts of a run."""
SHOWN = 12
"""Changes that a message lists; it counts the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint to go on from."""

    folder: Path
    finished_steps: int
    updates: int
    # that the optimizer counts
    progress: Mapping[str, Any]
    # what `Checkpoints.save` was given: counters of the loop, and `facts` of the run

    def is_of(self, checkpoints: Path) -> bool:
        """Whether it is the checkpoint of its step in this folder: one of another run is not, nor one put aside."""
        return self.folder.resolve() == (checkpoints / step_name(self.finished_steps)).resolve()


def add_resume_options(parser: argparse.ArgumentParser) -> None:
    meaning = "go on from a checkpoint; auto starts a run that has none"
    parser.add_argument("--resume", metavar="auto|latest|STEP|PATH", help=meaning)
    meaning = "go on although config, records, versions or the number of ranks have changed"
    parser.add_argument("--allow-change", action="store_true", help=meaning)


def check_resume_options(options: argparse.Namespace) -> None:
    """Raise ConfigError if one of them would say nothing."""
    if options.allow_change and options.resume is None:
        fix = "write --resume auto beside it, or leave it out"
        raise ConfigError("--allow-change says nothing without --resume", where="command line", fix=fix)


def resume_words(options: argparse.Namespace) -> list[str]:
    """The same on another command line."""
    words = [] if options.resume is None else ["--resume", options.resume]
    return [*words, "--allow-change"] if options.allow_change else words


def step_name(finished_steps: int) -> str:
    """The name of a checkpoint's folder."""
    return f"step-{finished_steps:06d}"


def saved_steps(folder: Path) -> list[int]:
    """The finished steps of the published checkpoints, ascending; other names are passed over."""
    steps = []
    for path in folder.iterdir() if folder.is_dir() else ():
        found = re.fullmatch(r"step-([0-9]{6,})", path.name)
        if found and path.name == step_name(int(found[1])) and path.is_dir() and not path.is_symlink():
            steps.append(int(found[1]))
    return sorted(steps)


def choose(wanted: str, checkpoints: Path, *, digests: bool = True) -> tuple[Saved | None, list[str]]:
    """(the checkpoint that `--resume` means, why newer ones are passed over); None: start at step 0.

    Args:
        digests: read every file and compare its digest; without, its name and size.

    Raises:
        EnvironmentFault: it is not there, or not as it was written.
        ConfigError: `wanted` means nothing.
    """
    if wanted not in (AUTO, LATEST):
        return _read(_place(wanted, checkpoints, digests=digests)), []
    passed_over = []
    for steps in reversed(saved_steps(checkpoints)):
        folder = checkpoints / step_name(steps)
        fault = unusable(folder, digests=digests)
        if not fault:
            return _read(folder), passed_over
        passed_over.append(f"{folder.name} is passed over: {fault}")
    if wanted == LATEST:
        said = "".join(f"; {line}" for line in passed_over)
        fix = "write --resume auto, which starts such a run at its first step"
        raise EnvironmentFault(f"there is no complete checkpoint{said}", where=str(checkpoints), fix=fix)
    return None, passed_over


def unusable(folder: Path, *, digests: bool = True) -> str:
    """Why a run cannot go on from a checkpoint; empty if it can. See `choose`."""
    return incomplete(folder) or (damaged(folder) if digests else "") or no_state(folder)


def set_aside(checkpoints: Path, saved: Saved | None) -> list[str]:
    """Rename the checkpoints of the steps that the run will save itself. Returns their new names.

    `latest` names the newest of the others, what an earlier attempt did not finish writing is deleted, and so is `best`
    if it names one of the renamed.

    Args:
        saved: the checkpoint to go on from; None: the run starts at step 0.

    Raises:
        EnvironmentFault: the folder cannot be written.
    """
    with explained(checkpoints):
        return _set_aside(checkpoints, saved)


def _set_aside(checkpoints: Path, saved: Saved | None) -> list[str]:
    done = saved.finished_steps if saved else 0
    first = done + 1 if saved and saved.is_of(checkpoints) else done
    steps = saved_steps(checkpoints)
    renamed = [put_aside(checkpoints / step_name(one)).name for one in steps if one >= first]
    left = [step_name(one) for one in steps if one < first]
    if left:
        replace_file(checkpoints / LATEST, left[-1] + "\n")
    else:
        (checkpoints / LATEST).unlink(missing_ok=True)
    best = best_name(checkpoints)
    if best and not (checkpoints / best).is_dir():
        (checkpoints / BEST).unlink()
    for partial in checkpoints.glob(".step-*.partial") if checkpoints.is_dir() else ():
        shutil.rmtree(partial)
    return renamed


def put_aside(folder: Path) -> Path:
    """Give a checkpoint a name that no run takes for one; returns its new place."""
    others = (folder.with_name(f"{folder.name}.superseded-{number}") for number in count(1))
    return folder.rename(next(other for other in others if not other.exists()))


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], places: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """`key: old -> new (place)` of every difference that may change a result, config keys by their full names.

    Args:
        before, now: nested mappings of plain values.
        places: where values of the config are written now: `LoadedConfig.origins`.
    """
    old, new = dict(flat(before)), dict(flat(now))
    different = [key for key in sorted(old.keys() | new.keys()) if old.get(key, ...) != new.get(key, ...)]
    names = {key: key.removeprefix(CONFIG) for key in different}
    return [
        f"{key}: {_shown(old, key)} -> {_shown(new, key)}"
        + (f" ({printable(places[name])})" if name != key and name in places else "")
        for key, name in names.items()
        if not name.startswith(FREE_KEYS)
    ]


def refuse_changes(found: list[str], saved: Saved) -> None:
    """Raise ConfigError if anything has changed."""
    if found:
        more = f"\n  and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        listed = "".join(f"\n  {line}" for line in found[:SHOWN])
        raise ConfigError(
            f"this is not the run that wrote the checkpoint; it would end elsewhere (old -> new):{listed}{more}",
            where=str(saved.folder),
            fix="start it as it was, or write --allow-change if you mean this",
        )


def _place(wanted: str, checkpoints: Path, *, digests: bool) -> Path:
    folder = checkpoints / step_name(int(wanted)) if wanted.isdecimal() else Path(os.path.expanduser(wanted))
    if not folder.is_dir():
        there = ", ".join(map(str, saved_steps(checkpoints))) or "none"
        raise EnvironmentFault(
            "there is no such checkpoint",
            where=printable(str(folder)),
            fix=f"this run has checkpoints after these steps: {there}; write --resume auto, latest, one of them, or the"
            " folder of a checkpoint",
        )
    fault = unusable(folder, digests=digests)
    if fault:
        fix = "take another checkpoint; --resume latest takes the newest that is complete"
        raise EnvironmentFault(f"this checkpoint cannot be gone on from: {fault}", where=str(folder), fix=fix)
    return folder


def no_state(folder: Path) -> str:
    """Why a complete checkpoint holds nothing that a run could go on from; empty if it does."""
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            return f"it is of format {state['format']}, and this version reads format {FORMAT}"
        if state.get("engine_state") is False:
            return "it holds the weights alone (checkpoint.engine_state: false); its hf folder is a model to start from"
        int(state["finished_steps"]), int(state["updates"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        return f"its {STATE} cannot be read: {type(error).__name__}: {error}"
    return ""


def _read(folder: Path) -> Saved:
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return Saved(folder=folder, finished_steps=state["finished_steps"], updates=state["updates"], progress=state)


def _shown(values: Mapping[str, Any], key: str) -> str:
    return printable(json.dumps(values[key], ensure_ascii=False)) if key in values else "(not there)"
