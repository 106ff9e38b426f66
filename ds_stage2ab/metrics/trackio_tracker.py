"""Trackio. Its own variables hold: TRACKIO_DIR, TRACKIO_SERVER_URL, ..."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import trackio

from ds_stage2ab.metrics.trackers import PROJECT, TrackedRun


class Tracker:
    """One run of the project; it is known by its name, so that holds the id."""

    faults = (OSError, ValueError, RuntimeError)

    def __init__(self, run: TrackedRun) -> None:
        key = run.id_at("trackio", lambda: uuid4().hex[:8])
        self._run = trackio.init(
            project=PROJECT,
            name=f"{run.name}-{key}",
            resume="allow",
            config=run.config,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        self._run.log(dict(values), step=step)

    def pictures(self, files: Sequence[Path], step: int) -> None:
        shown = {f"pictures/{file.stem}": trackio.Image(file, caption=f"step {step}") for file in files}
        self._run.log(shown, step=step)

    def close(self) -> None:
        self._run.finish()
