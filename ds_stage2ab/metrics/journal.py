"""`metrics.jsonl`: one JSON object per logging step or evaluation, written once and read back exactly.

    {"step": 1, "channel": "A", "applied": 1, "metrics": {"loss/total": 3.25, ...}, "skipped": [], "wall_time": ...,
     "attempt": 1}
    {"step": 0, "channel": "eval", "metrics": {"eval/f1": 0.5, ...}, "wall_time": ..., "attempt": 1}

`step` is the number of finished steps: the first step writes step 1, an evaluation before it step 0. `attempt` counts
the starts of the run: 1, and one more each time it goes on.
Floats are written by repr, so they round-trip bit for bit. JSON has no literal for non-finite numbers:
they are the strings "NaN", "Infinity" and "-Infinity" (protobuf's JSON mapping; Python's float() reads them).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ds_stage2ab.errors import DataError

FILE_NAME = "metrics.jsonl"
EVALUATION_CHANNEL = "eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What one optimizer step reports."""

    step: int
    # finished steps, this one included
    channel: str
    # "A" or "B"
    applied: bool
    metrics: dict[str, float]
    skipped: tuple[str, ...]
    # ids of samples that contributed nothing
    wall_time: float
    # Unix seconds at the end of the step
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRecord:
    """What one evaluation of the held-out set reports."""

    step: int
    # finished steps of the weights that were evaluated; 0 = the start
    metrics: dict[str, float]
    wall_time: float
    # Unix seconds at its end
    attempt: int = 1


Entry = StepRecord | EvaluationRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """The records of a run, in order of steps."""

    steps: tuple[StepRecord, ...]
    evaluations: tuple[EvaluationRecord, ...]


def to_line(entry: Entry) -> str:
    """One line of `metrics.jsonl`, with its line end."""
    metrics = {name: _to_json(value) for name, value in entry.metrics.items()}
    if isinstance(entry, StepRecord):
        fields = {
            "step": entry.step,
            "channel": entry.channel,
            "applied": int(entry.applied),
            "metrics": metrics,
            "skipped": list(entry.skipped),
        }
    else:
        fields = {"step": entry.step, "channel": EVALUATION_CHANNEL, "metrics": metrics}
    return json.dumps(fields | {"wall_time": entry.wall_time, "attempt": entry.attempt}, allow_nan=False) + "\n"


def from_line(line: str) -> Entry:
    """The inverse of `to_line`. Raises ValueError, KeyError, TypeError or AttributeError on any other line."""
    fields = json.loads(line)
    step, wall_time, attempt = int(fields["step"]), float(fields["wall_time"]), int(fields.get("attempt") or 1)
    metrics = {name: float(value) for name, value in fields["metrics"].items()}
    if fields["channel"] == EVALUATION_CHANNEL:
        return EvaluationRecord(step=step, metrics=metrics, wall_time=wall_time, attempt=attempt)
    return StepRecord(
        step=step,
        channel=fields["channel"],
        applied=bool(fields["applied"]),
        metrics=metrics,
        skipped=tuple(fields["skipped"]),
        wall_time=wall_time,
        attempt=attempt,
    )


def read_history(path: Path) -> History:
    """Read `metrics.jsonl`.

    A line replaces every earlier line at or after its own step, as where journals were put together. A last line
    without a line end (its process died while writing) is left out.

    Raises:
        DataError: a complete line is not one that `to_line` writes, or the file cannot be read.
    """
    entries: list[Entry] = []
    for number, line in enumerate(_lines(path), start=1):
        if not line.endswith(b"\n"):
            break
        entry = _read(line, where=f"{path}:{number}")
        while entries and _place(entries[-1]) >= _place(entry):
            entries.pop()
        entries.append(entry)
    return History(
        steps=tuple(entry for entry in entries if isinstance(entry, StepRecord)),
        evaluations=tuple(entry for entry in entries if isinstance(entry, EvaluationRecord)),
    )


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=str(path), fix="make the file readable") from error


def _read(line: bytes, where: str) -> Entry:
    try:
        return from_line(line.decode())
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(
            f"not a line of a metrics journal ({type(error).__name__}: {error})",
            where=where,
            fix="delete the line; the rest of the file stays readable",
        ) from error


def _place(entry: Entry) -> tuple[int, bool]:
    """Order of lines: the evaluation of some weights follows the step that made them."""
    return entry.step, isinstance(entry, EvaluationRecord)


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
