"""Weights & Biases. Its own variables hold: WANDB_PROJECT, WANDB_MODE=offline, WANDB_API_KEY, ..."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import wandb

from ds_stage2ab.metrics.trackers import PROJECT, TrackedRun

STEP = "step"
"""The axis of its charts: its own step counts calls, and refuses those of steps that are made again."""


class Tracker:
    """One run there; offline, each attempt leaves a folder for `wandb sync`, all of one id."""

    faults = (wandb.errors.Error, OSError)

    def __init__(self, run: TrackedRun) -> None:
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run.id_at("wandb", lambda: uuid4().hex[:8]),
            resume="allow",
            name=run.name,
            dir=run.folder,
            config=run.config,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric=STEP)

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        self._run.log({**values, STEP: step})

    def pictures(self, files: Sequence[Path], step: int) -> None:
        shown = {f"pictures/{file.stem}": wandb.Image(str(file), caption=f"step {step}") for file in files}
        self._run.log({**shown, STEP: step})

    def close(self) -> None:
        self._run.finish()
