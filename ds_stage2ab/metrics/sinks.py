"""Where records go: a JSONL journal, the console, and warnings to a file as well; trackers are in `trackers.py`."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ds_stage2ab.errors import EnvironmentFault, printable
from ds_stage2ab.metrics.journal import Entry, EvaluationRecord, StepRecord, to_line
from ds_stage2ab.runtime.files import drop_half_line

PACE_RECORDS = 20  # logging steps over which the speed of the ETA is measured: recent, but not jumpy
SHOWN_SKIPPED = 3  # sample ids named in one console line; the journal names all
EVALUATION_SHOWN = ("eval/f1", "eval/f1_boxes", "eval/precision", "eval/recall", "eval/parse_ok_rate", "eval/seconds")


class Sink:
    """Receives each record once, in order; does nothing with what it does not override."""

    def step(self, record: StepRecord) -> None:
        """Take the record of a logging step."""

    def evaluation(self, record: EvaluationRecord) -> None:
        """Take the record of an evaluation."""

    def pictures(self, step: int, files: Sequence[Path]) -> None:
        """Take the pictures of an evaluation after `step` finished steps, PNG files of the run folder."""

    def warning(self, text: str) -> None:
        """Show a warning to the user."""

    def close(self) -> None:
        """Release files and the terminal; nothing follows."""


class JsonlSink(Sink):
    """Appends to `metrics.jsonl`: each line is one unbuffered append.

    Args:
        path: the journal. A torn last line, left by a process that died, is cut off.

    Raises:
        EnvironmentFault: a line cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        drop_half_line(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def step(self, record: StepRecord) -> None:
        self._write(record)

    def evaluation(self, record: EvaluationRecord) -> None:
        self._write(record)

    def close(self) -> None:
        os.close(self._file)

    def _write(self, entry: Entry) -> None:
        rest = to_line(entry).encode()
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            why = f"the metrics of step {entry.step} cannot be written: {error.strerror}"
            fix = "free space on that disk, then start again"
            raise EnvironmentFault(why, where=str(self._path), fix=fix) from error


class WarningsSink(Sink):
    """Appends each warning to `warnings.log` with its time (UTC), so that it outlives the terminal.

    Args:
        path: made with the first warning.
        earlier: those of the start of the run, which were printed before there was a run folder.

    Raises:
        EnvironmentFault: a line cannot be written.
    """

    def __init__(self, path: Path, earlier: Sequence[str] = ()) -> None:
        self._path = path
        for text in earlier:
            self.warning(text)

    def step(self, record: StepRecord) -> None:
        """Keep what went wrong in a step."""
        if trouble := trouble_line(record):
            self.warning(trouble)

    def warning(self, text: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
        try:
            with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(f"{now} {printable(text)}\n")
        except OSError as error:
            fix = "free space on that disk, then start again"
            why = f"a warning cannot be written: {error.strerror}"
            raise EnvironmentFault(why, where=str(self._path), fix=fix) from error


class ConsoleSink(Sink):
    """A progress bar on a terminal, one plain line per record elsewhere.

    Args:
        stream: where to write; whether it is a terminal decides the form.
        total_steps: steps of the whole run.
    """

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        self._stream = stream
        self._total_steps = total_steps
        self._pace = Pace()
        self._bar = _Bar(stream, total_steps) if stream.isatty() else None

    def step(self, record: StepRecord) -> None:
        """Show progress; a step that was refused or that skipped samples also leaves a line on a terminal."""
        eta = self._pace.eta_seconds(record, self._total_steps)
        if self._bar is None:
            self._say(step_line(record, self._total_steps, eta))
        else:
            self._bar.update(record, eta)
        trouble = trouble_line(record)
        if trouble:
            self._say(trouble)

    def evaluation(self, record: EvaluationRecord) -> None:
        self._say(evaluation_line(record, self._total_steps))

    def warning(self, text: str) -> None:
        self._say(f"warning: {text}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _say(self, line: str) -> None:
        line = printable(line, keep_lines=True)
        if self._bar is not None:
            self._bar.say(line)
        else:
            self._stream.write(line + "\n")
            self._stream.flush()


class Pace:
    """The speed of the run: the last logging steps and their wall times (evaluations in between included)."""

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque(maxlen=PACE_RECORDS)

    def eta_seconds(self, record: StepRecord, total_steps: int) -> float:
        """Seconds until `total_steps`, including this record; the first record has only its own duration."""
        self._marks.append((record.step, record.wall_time))
        first_step, first_time = self._marks[0]
        steps = record.step - first_step
        per_step = (record.wall_time - first_time) / steps if steps > 0 else record.metrics["time/step_s"]
        return per_step * (total_steps - record.step)


class _Bar:
    """The rich progress bar: step, channel, loss, tokens/s, ETA."""

    def __init__(self, stream: TextIO, total_steps: int) -> None:
        self._progress = Progress(
            TextColumn("[bold]train"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[channel]}"),
            TextColumn("loss [bold]{task.fields[loss]}"),
            TextColumn("[dim]{task.fields[speed]} tokens/s"),
            TimeElapsedColumn(),
            TextColumn("eta [bold]{task.fields[eta]}"),
            console=Console(file=stream),
        )
        self._task: TaskID = self._progress.add_task(
            "train", total=total_steps, channel="-", loss="-", speed="-", eta="-"
        )

    def update(self, record: StepRecord, eta: float) -> None:
        # Not before the first step: an earlier failure must leave the terminal as it was.
        self._progress.start()
        self._progress.update(
            self._task,
            completed=record.step,
            channel=record.channel,
            loss=number(record.metrics["loss/total"]),
            speed=_speed(record),
            eta=duration(eta),
        )

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._progress.stop()


def step_line(record: StepRecord, total_steps: int, eta_seconds: float) -> str:
    """`step  12/300  B  loss 3.451  lr 1e-04  812 tokens/s  eta 0:04:12  match f1 0.8293`; A steps end with the ETA."""
    place = f"step {record.step:>{len(str(total_steps))}}/{total_steps}"
    loss = f"loss {number(record.metrics['loss/total'])}"
    rate = f"lr {record.metrics['train/learning_rate']:.3g}"
    words = [place, record.channel, loss, rate, f"{_speed(record)} tokens/s", f"eta {duration(eta_seconds)}"]
    if "match/f1" in record.metrics:  # at the end, so that lines of A and B align
        words.append(f"match f1 {number(record.metrics['match/f1'])}")
    return "  ".join(words)


def trouble_line(record: StepRecord) -> str:
    """What went wrong in a step, or an empty string."""
    parts = []
    if not record.applied:
        parts.append("not applied, no weight changed")
    if record.skipped:
        shown = ", ".join(map(printable, record.skipped[:SHOWN_SKIPPED]))
        more = f" and {len(record.skipped) - SHOWN_SKIPPED} more" if len(record.skipped) > SHOWN_SKIPPED else ""
        parts.append(f"{len(record.skipped)} samples skipped ({shown}{more})")
    return f"step {record.step}: {'; '.join(parts)}" if parts else ""


def evaluation_line(record: EvaluationRecord, total_steps: int) -> str:
    """`step   0/300  eval  f1 0.512  f1_boxes 0.634  precision 0.55  recall 0.48  parse_ok_rate 0.97  seconds 31.2`"""
    place = f"step {record.step:>{len(str(total_steps))}}/{total_steps}"
    shown = [name for name in EVALUATION_SHOWN if name in record.metrics]
    values = [f"{name.removeprefix('eval/')} {number(record.metrics[name])}" for name in shown]
    return "  ".join([place, "eval", *values])


def number(value: float) -> str:
    """A value for people: four significant digits, integers whole, thousands separated."""
    if isinstance(value, int) or (math.isfinite(value) and abs(value) >= 1000):
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """`h:mm:ss`"""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _speed(record: StepRecord) -> str:
    speed = record.metrics.get("train/tokens_per_second")
    return "-" if speed is None else number(speed)
