"""Where a run begins: at its first step, or after the last step of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ds_stage2ab.engine.resume import RANDOM, TRAINING, Saved, changes, choose, refuse_changes
from ds_stage2ab.engine.run_folder import RunFolder
from ds_stage2ab.engine.shards import StoredTensors
from ds_stage2ab.runtime.ranks import World


@dataclass(frozen=True, kw_only=True)
class Start:
    """What the command line's `--resume` means for this run.

    Args:
        resumes: whether the run folder may hold a run.
        saved: the checkpoint to go on from, if any.
        allow_change: whether the run may be another one than that which wrote it.
        notes: why other checkpoints were passed over, and what has changed.
    """

    resumes: bool = False
    saved: Saved | None = None
    allow_change: bool = False
    notes: tuple[str, ...] = ()

    @property
    def finished_steps(self) -> int:
        return self.saved.finished_steps if self.saved else 0

    def newest_in(self, checkpoints: Path) -> int:
        """Finished steps of the checkpoint, if it lies in this folder: a fork's own has none yet."""
        return self.saved.finished_steps if self.saved and self.saved.is_of(checkpoints) else 0

    def words(self, total_steps: int) -> str:
        """Where the run begins, for its opening lines; empty for a run that resumes nothing."""
        if not self.resumes:
            return ""
        if not self.saved:
            return "no checkpoint is there yet: from the first step"
        done = f"all {total_steps:,} steps are done" if self.finished_steps >= total_steps else "goes on"
        return f"{done} after step {self.finished_steps:,}, from {self.saved.folder}"

    @cached_property
    def tensors(self) -> StoredTensors:
        """Of a start from a checkpoint."""
        return StoredTensors(self.saved.folder / TRAINING)

    def random(self, rank: int) -> dict[str, Tensor]:
        """The random state of a rank; of a rank that was not there, none."""
        with safe_open(self.saved.folder / RANDOM, framework="pt") as file:
            own = [name for name in file.keys() if name.startswith(f"{rank}/")]
            return {name.partition("/")[2]: file.get_tensor(name) for name in own}

    def compared(self, facts: Mapping[str, Any], places: Mapping[str, str]) -> "Start":
        """With a note of everything that has changed since the checkpoint was written; see `changes`.

        Raises:
            ConfigError: something has, and the command line does not allow it.
        """
        found = changes(self.saved.progress["facts"], facts, places) if self.saved else []
        if not self.allow_change:
            refuse_changes(found, self.saved)
        return replace(self, notes=(*self.notes, *(f"changed since the checkpoint: {line}" for line in found)))


def find_start(wanted: str | None, folder: RunFolder, world: World, *, allow_change: bool) -> Start:
    """The start that `--resume` means; rank 0 looks, and every rank gets the same.

    Args:
        wanted: `auto`, `latest`, a number of steps or a path; None: the run folder must hold no run.
    """
    found = Start()
    with world.raise_together("looking for the checkpoint to go on from"):
        if wanted is not None and world.rank == 0:
            saved, notes = choose(wanted, folder.checkpoints)
            found = Start(resumes=True, saved=saved, allow_change=allow_change, notes=tuple(notes))
    return world.broadcast_object(found)
