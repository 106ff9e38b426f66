"""`logging.trackers`: the experiment trackers that a run reports to, each an optional package behind one class.

A tracker sees every metric under its own name; those that steps of both channels report end in the channel
(`loss/total/A`), so that no line runs through both. A run that goes on reports under the id that it had.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.metrics.journal import Entry, EvaluationRecord, StepRecord
from ds_stage2ab.metrics.registry import METRICS
from ds_stage2ab.metrics.sinks import Sink

PROJECT = "ds_stage2ab"
"""Where a tracker has projects and its own variable of the environment names none."""
IDS_FILE = "tracker_ids.json"
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
"""Tracker -> what it imports; the class `Tracker` of `metrics/<name>_tracker.py` uses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a tracker gets to know about a run."""

    name: str
    folder: Path
    config: dict[str, Any]
    # resolved
    finished_steps: int
    # 0, or those of the checkpoint that it goes on from
    attempt: int
    # which start of the run this is, from 1

    def id_at(self, tracker: str, new: Callable[[], str]) -> str:
        """The id that the run has there: a new one, or the one that its folder remembers."""
        file = self.folder / IDS_FILE
        ids = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if tracker not in ids:
            ids[tracker] = new()
            file.write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
        return ids[tracker]


class Tracker(Protocol):
    """One of them."""

    faults: tuple[type[Exception], ...]
    # what it raises when it cannot be reached

    def scalars(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Report values after `step` finished steps, at a time in Unix seconds."""

    def pictures(self, files: Sequence[Path], step: int) -> None:
        """Report PNG files; of one image the names are the same each time."""

    def close(self) -> None:
        """Send what waits."""


class TrackerSink(Sink):
    """A tracker as a sink. One that fails says so once, and the run goes on without it.

    Args:
        warn: takes the warning.
    """

    def __init__(self, name: str, tracker: Tracker, warn: Callable[[str], None]) -> None:
        self._name = name
        self._tracker = tracker
        self._warn = warn
        self._is_lost = False

    def step(self, record: StepRecord) -> None:
        self._entry(record)

    def evaluation(self, record: EvaluationRecord) -> None:
        self._entry(record)

    def pictures(self, step: int, files: Sequence[Path]) -> None:
        self._try(lambda: self._tracker.pictures(files, step))

    def close(self) -> None:
        self._try(self._tracker.close)

    def _entry(self, entry: Entry) -> None:
        self._try(lambda: self._tracker.scalars(tracked_values(entry), entry.step, entry.wall_time))

    def _try(self, report: Callable[[], None]) -> None:
        if self._is_lost:
            return
        try:
            report()
        except self._tracker.faults as error:
            self._is_lost = True
            self._warn(f"{self._name} gets nothing more of this run: {error}; metrics.jsonl has everything")


def tracked_values(entry: Entry) -> dict[str, float]:
    """The metrics of a record under the names that trackers see."""
    if isinstance(entry, EvaluationRecord):
        return dict(entry.metrics)
    both = {name for name in entry.metrics if METRICS[name].channel == "both"}
    return {f"{name}/{entry.channel}" if name in both else name: value for name, value in entry.metrics.items()}


def check_trackers(names: Sequence[str]) -> None:
    """Raises EnvironmentFault if the package of one is missing; nothing is imported."""
    for name in names:
        if find_spec(PACKAGES[name]) is None:
            fix = f"pip install 'ds_stage2ab[{name}]', or take it out of logging.trackers"
            raise EnvironmentFault(f"names {name}, which is not installed", where="logging.trackers", fix=fix)


def open_trackers(names: Sequence[str], run: TrackedRun, warn: Callable[[str], None]) -> list[TrackerSink]:
    """The sinks of these trackers.

    Raises:
        EnvironmentFault: one cannot be imported, or refuses the run.
    """
    sinks = []
    for name in names:
        fix = f"repair that package or its settings, or take {name} out of logging.trackers"
        try:
            kind = import_module(f"ds_stage2ab.metrics.{name}_tracker").Tracker
        except ImportError as error:
            raise EnvironmentFault(f"{name} cannot be imported: {error}", where="logging.trackers", fix=fix) from error
        try:
            sinks.append(TrackerSink(name, kind(run), warn))
        except kind.faults as error:
            raise EnvironmentFault(f"{name}: {error}", where="logging.trackers", fix=fix) from error
    return sinks
