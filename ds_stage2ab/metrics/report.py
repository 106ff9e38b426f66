"""What a person reads after a run: the closing table, and the picture of the curves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rich.table import Table
from rich.text import Text

from ds_stage2ab.errors import ConfigError, EnvironmentFault, printable
from ds_stage2ab.metrics.curves import draw_curves
from ds_stage2ab.metrics.journal import FILE_NAME, EvaluationRecord, History, StepRecord, read_history
from ds_stage2ab.metrics.registry import METRICS, Better
from ds_stage2ab.metrics.sinks import number

CURVES_NAME = "curves.png"
WINDOW = 10  # logging steps averaged at each end of the run: a single step is noise
WINDOW_SHARE = 4  # at most a quarter of a short run, so the ends do not overlap
DROP_REASONS = "eval/drop_"
TRAINING_ROWS = (
    *("loss/total", "coord/mean_abs_error_bins", "coord/mass"),
    *("match/f1", "match/predicted_per_true", "rollout/truncation_rate"),
    *("train/tokens_per_second", "rollout/tokens_per_second", "time/step_s", "time/rollout_s"),
)
"""Those of Channel B appear only if it ran."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SummaryRow:
    """One line of the closing table."""

    section: str
    metric: str
    # a declared name, with the channel in brackets where several channels emit it
    before: float | None
    # None: there is nothing to compare with
    after: float
    unit: str
    better: Better

    @property
    def difference(self) -> float | None:
        """after - before."""
        return None if self.before is None else self.after - self.before

    @property
    def helped(self) -> bool | None:
        """Whether the value is better than before; None where neither is better, or nothing is known."""
        change = self.difference
        if change is None or self.better == "neither" or change == 0 or math.isnan(change):
            return None
        return change > 0 if self.better == "higher" else change < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Result of `write_report`."""

    run: str
    # name of the run folder
    curves: Path
    # the PNG
    rows: tuple[SummaryRow, ...]


def write_report(run_dir: Path) -> Report:
    """(Re)create `curves.png` in a run folder from its `metrics.jsonl`, and summarise the run.

    Raises:
        ConfigError: the folder holds no journal, or an empty one.
        DataError: the journal is damaged.
        EnvironmentFault: the picture cannot be written.
    """
    journal = run_dir / FILE_NAME
    if not journal.is_file():
        raise ConfigError(f"no {FILE_NAME} in it", where=str(run_dir), fix="name the folder of a run that has started")
    history = read_history(journal)
    if not history.steps and not history.evaluations:
        raise ConfigError("nothing is recorded yet", where=str(journal), fix="wait for the first logging step")
    run = run_dir.resolve().name
    curves = run_dir / CURVES_NAME
    try:
        draw_curves(history, curves, title=run)
    except OSError as error:
        fix = f"free space there; then: ds-stage2ab report {run_dir}"
        raise EnvironmentFault(f"the curves cannot be written: {error.strerror}", where=str(curves), fix=fix) from error
    return Report(run=run, curves=curves, rows=summary_rows(history))


def summary_rows(history: History) -> tuple[SummaryRow, ...]:
    """Rows for the first and last evaluation, both ends of the training, and what went wrong.

    The ends of the training are means over the first and the last logging steps of a channel: `WINDOW` of
    them, or a quarter of a short run. Values that are not finite are left out of a mean.
    """
    evaluations, steps = history.evaluations, history.steps
    return (*_evaluation_rows(evaluations), *_training_rows(steps), *_run_rows(steps, evaluations))


def _evaluation_rows(evaluations: Sequence[EvaluationRecord]) -> list[SummaryRow]:
    if not evaluations:
        return []
    first, last = evaluations[0], evaluations[-1]
    before = first.metrics if len(evaluations) > 1 else {}
    section = f"evaluation, step {first.step} and {last.step}" if before else f"evaluation, step {last.step}"
    return [
        SummaryRow(
            section=section,
            metric=name,
            before=before.get(name),
            after=last.metrics[name],
            unit=metric.unit,
            better=metric.better,
        )
        for name, metric in METRICS.items()
        if name in last.metrics and not _is_an_empty_reason(name, first, last)
    ]


def _is_an_empty_reason(name: str, *evaluations: EvaluationRecord) -> bool:
    """Whether this is a reason to drop a value that dropped none."""
    return name.startswith(DROP_REASONS) and not any(record.metrics.get(name) for record in evaluations)


def _training_rows(steps: Sequence[StepRecord]) -> list[SummaryRow]:
    rows = []
    channels = sorted({record.channel for record in steps})
    for name in TRAINING_ROWS:
        for channel in channels:
            found = [record.metrics.get(name, math.nan) for record in steps if record.channel == channel]
            values = [value for value in found if math.isfinite(value)]
            if values:
                shared = len(channels) > 1 and METRICS[name].channel == "both"
                rows.append(_training_row(name, channel if shared else "", values))
    return rows


def _training_row(name: str, channel: str, values: Sequence[float]) -> SummaryRow:
    window = max(1, min(WINDOW, len(values) // WINDOW_SHARE))
    return SummaryRow(
        section="training, first and last steps",
        metric=f"{name} ({channel})" if channel else name,
        before=fmean(values[:window]) if len(values) > 1 else None,
        after=fmean(values[-window:]),
        unit=METRICS[name].unit,
        better=METRICS[name].better,
    )


def _run_rows(steps: Sequence[StepRecord], evaluations: Sequence[EvaluationRecord]) -> list[SummaryRow]:
    """Counts over the whole run; steps with trouble are always logged, so these are complete."""
    if not steps:
        return []
    counts = (
        ("last step reported", "steps", max(record.step for record in (steps[-1], *evaluations))),
        ("steps not applied", "steps", sum(not record.applied for record in steps)),
        ("samples skipped", "samples", sum(len(record.skipped) for record in steps)),
    )
    return [
        SummaryRow(section="whole run", metric=what, before=None, after=count, unit=unit, better="neither")
        for what, unit, count in counts
    ]


def summary_table(rows: Sequence[SummaryRow], title: str) -> Table:
    """The closing table: metric, before, after, difference; green for better, red for worse."""
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold", header_style="dim")
    table.add_column("metric")
    for column in ("before", "after", "difference"):
        table.add_column(column, justify="right")
    section = None
    for row in rows:
        if row.section != section:
            table.add_section()
            table.add_row(Text(row.section, style="bold"))
            section = row.section
        before = "" if row.before is None else shown_value(row.before, row.unit)
        table.add_row(f"  {row.metric}", before, shown_value(row.after, row.unit), _difference(row))
    return table


def shown_value(value: float, unit: str) -> str:
    """A value of this unit as the table shows it."""
    return f"{value:.4f}" if unit == "fraction" else number(value)


def _difference(row: SummaryRow) -> Text:
    if row.difference is None:
        return Text("")
    sign = "+" if row.difference > 0 else ""
    style = {True: "green", False: "red", None: ""}[row.helped]
    return Text(f"{sign}{shown_value(row.difference, row.unit)}", style=style)
