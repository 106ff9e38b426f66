"""TensorBoard events in `tensorboard/` of the run folder."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from ds_stage2ab.metrics.trackers import TrackedRun

FOLDER = "tensorboard"


class Tracker:
    """Events after the steps that the run goes on from, of an earlier attempt, are hidden."""

    faults = (OSError,)

    def __init__(self, run: TrackedRun) -> None:
        purged = run.finished_steps + 1 if run.finished_steps else 0  # 0: also the evaluation before the first step
        suffix = f".attempt-{run.attempt}"
        self._writer = SummaryWriter(log_dir=str(run.folder / FOLDER), purge_step=purged, filename_suffix=suffix)
        _show_no_trace_of_its_thread()

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, global_step=step, walltime=wall_time)

    def pictures(self, files: Sequence[Path], step: int) -> None:
        for file in files:
            with Image.open(file) as image:
                pixels_HWC = np.asarray(image.convert("RGB"))
            self._writer.add_image(f"pictures/{file.stem}", pixels_HWC, global_step=step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _show_no_trace_of_its_thread() -> None:
    """The thread that writes the events dies of a full disk, and its next call raises the same error in this one."""
    shown = threading.excepthook

    def hook(died: threading.ExceptHookArgs) -> None:
        if not (isinstance(died.exc_value, OSError) and type(died.thread).__module__.startswith("tensorboard.")):
            shown(died)

    threading.excepthook = hook
