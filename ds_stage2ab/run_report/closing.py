"""What stands below the closing table: what the run took, where its result is, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ds_stage2ab.engine.run_folder import ENVIRONMENT_FILE, LATEST, best_name
from ds_stage2ab.errors import printable
from ds_stage2ab.metrics.journal import FILE_NAME, History, read_history
from ds_stage2ab.metrics.sinks import duration
from ds_stage2ab.run_report.runs import attempts_of, mapping_of

CHECKPOINTS = "checkpoints"


def closing_lines(folder: Path) -> list[str]:
    """The lines that the folder has something for."""
    took = f"wall time {duration(wall_seconds(read_history(folder / FILE_NAME), attempts_of(folder)))}"
    if (peak := mapping_of(folder / ENVIRONMENT_FILE).get("peak_memory_gib")) is not None:
        took += f", peak memory {peak:g} GiB on the rank that took most"
    return [took, *_checkpoints(folder / CHECKPOINTS), f"next: ds-stage2ab report {printable(str(folder))} --html"]


def _checkpoints(folder: Path) -> list[str]:
    if not (folder / LATEST).exists():
        return []
    newest, best = (folder / LATEST).read_text(encoding="utf-8").strip(), best_name(folder)
    said = f"checkpoint: {printable(str(folder / newest / 'hf'))}"
    return [f"{said} (the best: {printable(best)})" if best and best != newest else said]


def wall_seconds(history: History, attempts: Sequence[dict[str, Any]]) -> float:
    """From each start to its last record; where starts are not known, from the first record to the last."""
    records = (*history.steps, *history.evaluations)
    if not records:
        return 0.0
    begun = {one["attempt"]: one["wall_time"] for one in attempts if "wall_time" in one}
    if not begun:
        return max(one.wall_time for one in records) - min(one.wall_time for one in records)
    ends = {key: max((one.wall_time for one in records if one.attempt == key), default=begun[key]) for key in begun}
    return sum(ends[key] - begun[key] for key in begun)
