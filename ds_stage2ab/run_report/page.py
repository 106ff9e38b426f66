"""One self-contained HTML file of a run, or of several side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ds_stage2ab.config.resolved import flat
from ds_stage2ab.metrics.best_watch import value_of
from ds_stage2ab.metrics.health_watch import FIGURES, KEY
from ds_stage2ab.metrics.registry import METRICS
from ds_stage2ab.metrics.report import SummaryRow, shown_value, summary_rows
from ds_stage2ab.metrics.sinks import duration
from ds_stage2ab.pages.frame import document, table, text
from ds_stage2ab.run_report.answers import answer_sections
from ds_stage2ab.run_report.charts import HEALTH, Chart, curves
from ds_stage2ab.run_report.closing import wall_seconds
from ds_stage2ab.run_report.gallery import Gallery
from ds_stage2ab.run_report.runs import RunFiles
from ds_stage2ab.run_report.script import elements, place_of
from ds_stage2ab.run_report.style import KEYS, STYLE

MAX_WARNINGS = 40  # of a run; the newest
HEADLINES = ("eval/ap", "eval/f1", "eval/precision", "eval/recall", "eval/predicted_per_true")
CURVES = (
    "<p class=note>Over the optimizer step. Solid lines are A steps and evaluations, dashed ones B steps; faint: before"
    " smoothing. Drag to zoom, double-click to go back, click in the legend to hide.</p>"
)


def report_page(runs: Sequence[RunFiles]) -> str:
    """The page of one run or of several."""
    gallery, charts = Gallery(), []
    sections = [
        ("figures", "figures before and after", _figures(runs)),
        ("curves", "curves", CURVES + _charts(curves(runs), charts)),
        *answer_sections(runs, gallery, lambda found: _charts(found, charts)),
        ("health", "health of Channel B", _health(runs, charts)),
        ("config", "config", _config(runs)),
        ("environment", "environment", _environment(runs)),
    ]
    shown = [(key, title, body) for key, title, body in sections if body]
    nav = "".join(f"<a href='#{key}'>{title}</a>" for key, title, _ in shown)
    body = "".join(f"<h2 id={key}>{title}</h2>{KEYS if key == 'pictures' else ''}{body}" for key, title, body in shown)
    title = ", ".join(run.name for run in runs)
    page = f"<nav>{nav}</nav>{_headlines(runs)}{body}"
    return document(title, page, style=STYLE + gallery.style(), script=elements(charts))


def _charts(found: Sequence[Chart], charts: list[Chart]) -> str:
    """The places of further charts, which are added to the page's."""
    first = len(charts)
    charts += found
    places = "".join(place_of(first + place, chart) for place, chart in enumerate(found))
    return f"<div class=charts>{places}</div>" if found else ""


def _headlines(runs: Sequence[RunFiles]) -> str:
    """A line for each run: what a person asks for first."""
    rows = []
    for run in runs:
        first, last = (run.history.evaluations[place] if run.history.evaluations else None for place in (0, -1))
        cells = [text(run.name)]
        for name in HEADLINES:
            after = None if last is None else value_of(name, last.metrics)
            before = None if first is last else value_of(name, first.metrics)
            cells.append("" if after is None else f"<b>{after:.3f}</b>{_from(before)}")
        records = (*run.history.steps, *run.history.evaluations)
        steps = max((one.step for one in records), default=0)
        cells += [f"{steps:,}", duration(wall_seconds(run.history, run.attempts))]
        rows.append(cells)
    names = ["AP" if name == "eval/ap" else name.removeprefix("eval/").replace("_", " ") for name in HEADLINES]
    return table(["run", *names, "steps", "wall time"], rows)


def _from(before: float | None) -> str:
    return "" if before is None else f" <span class=note>from {before:.3f}</span>"


def _figures(runs: Sequence[RunFiles]) -> str:
    """The rows of the closing tables, section by section."""
    found = [_rows(run, alone=len(runs) == 1) for run in runs]
    head = ["", *(cell for run in runs for cell in _column_heads(run, alone=len(runs) == 1))]
    body = []
    for section in dict.fromkeys(section for rows in found for section, _ in rows):
        body.append([f"<b>{text(section)}</b>", *[""] * (len(head) - 1)])
        for key in dict.fromkeys(key for rows in found for key in rows if key[0] == section):
            cells = [cell for rows in found for cell in (_cells(rows[key]) if key in rows else [""] * 3)]
            body.append([text(key[1]), *cells])
    return table(head, body)


def _rows(run: RunFiles, *, alone: bool) -> dict[tuple[str, str], SummaryRow]:
    """(section, metric) -> row. Beside other runs the metric names its channel where a run of both would name it."""
    channels = {record.channel for record in run.history.steps}
    rows = {}
    for row in summary_rows(run.history):
        shared = row.metric in METRICS and METRICS[row.metric].channel == "both"
        name = f"{row.metric} ({', '.join(channels)})" if shared and not alone else row.metric
        rows[row.section.split(",")[0], name] = row
    return rows


def _column_heads(run: RunFiles, *, alone: bool) -> list[str]:
    name = "" if alone else f"{text(run.name)}<br>"
    return [f"{name}before", f"{name}after", f"{name}difference"]


def _cells(row: SummaryRow) -> list[str]:
    before = "" if row.before is None else shown_value(row.before, row.unit)
    if row.difference is None:
        return [before, shown_value(row.after, row.unit), ""]
    colour = {True: "good", False: "bad", None: ""}[row.helped]
    sign = "+" if row.difference > 0 else ""
    difference = f"<span class='{colour}'>{sign}{shown_value(row.difference, row.unit)}</span>"
    return [before, shown_value(row.after, row.unit), difference]


def _health(runs: Sequence[RunFiles], charts: list[Chart]) -> str:
    parts = []
    for run in runs:
        steps = [record for record in run.history.steps if record.channel == "B"]
        if steps:
            parts.append(f"<h3>{text(run.name)}</h3>" if len(runs) > 1 else "")
            rows = [row for figure in FIGURES if (row := _health_row(run, figure.key, figure.step, figure.above))]
            parts.append(table(["figure of B steps", "first", "last", "worst", "warn", "stop"], rows))
        if run.warnings:
            kept = run.warnings[-MAX_WARNINGS:]
            what = f"{text(run.name)}: the newest {len(kept)} of {len(run.warnings)} lines of warnings.log"
            parts.append(f"<details><summary>{what}</summary><pre>{'<br>'.join(map(text, kept))}</pre></details>")
    drawn = _charts(curves(runs, HEALTH), charts)
    return drawn + "".join(parts)


def _health_row(run: RunFiles, key: str, metric: str, above: bool) -> list[str]:
    parts = metric.split(" + ")
    values = [
        sum(record.metrics[part] for part in parts)
        for record in run.history.steps
        if record.channel == "B" and all(part in record.metrics for part in parts)
    ]
    if not values:
        return []
    limits = run.config
    for name in (*KEY.split("."), key):
        limits = limits[name] if isinstance(limits, dict) and name in limits else {}
    shown = [limits.get(name) for name in ("warn", "stop")]
    worst = max(values) if above else min(values)
    side = "above" if above else "below"
    told = ["" if limit is None else f"{side} {limit:g}" for limit in shown]
    return [text(metric), f"{values[0]:.3f}", f"{values[-1]:.3f}", f"{worst:.3f}", *told]


def _config(runs: Sequence[RunFiles]) -> str:
    """Every key, those that differ between the runs first, with the place that its value came from."""
    configs = [dict(flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for values in configs for key in values))
    differing = [key for key in keys if len({_shown(values, key) for values in configs}) > 1]
    head = ["key", *(text(run.name) + cell for run in runs for cell in (": value", ": from"))]
    if len(runs) == 1:
        head = ["key", "value", "from"]
    written = [key for key in keys if key not in differing and any(_origin(run, key) != "default" for run in runs)]
    defaults = [key for key in keys if key not in differing and key not in written]
    parts = []
    for title, chosen, is_open in (
        ("what differs between the runs", differing, True),
        ("what was set", written, len(runs) == 1),
        ("defaults", defaults, False),
    ):
        if chosen:
            rows = [_config_row(key, runs, configs) for key in chosen]
            opened = " open" if is_open else ""
            parts.append(f"<details{opened}><summary>{title} ({len(chosen)})</summary>{table(head, rows)}</details>")
    return "".join(parts)


def _config_row(key: str, runs: Sequence[RunFiles], configs: Sequence[dict[str, object]]) -> list[str]:
    cells = [text(key)]
    for run, values in zip(runs, configs, strict=True):
        cells += [text(_shown(values, key)), f"<span class=note>{text(_origin(run, key))}</span>"]
    return cells


def _shown(values: dict[str, object], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else ""


def _origin(run: RunFiles, key: str) -> str:
    return run.origins.get(key) or ""


def _environment(runs: Sequence[RunFiles]) -> str:
    keys = dict.fromkeys(key for run in runs for key in run.environment)
    rows = [
        [text(key), *(text(run.environment[key]) if key in run.environment else "" for run in runs)]
        for key in keys
        if any(key in run.environment and run.environment[key] is not None for run in runs)
    ]
    parts = [table(["", *(text(run.name) for run in runs)], rows)] if rows else []
    for run in runs:
        starts = [[text(one.get(key)) for key in ("attempt", "host", "pid", "finished_steps")] for one in run.attempts]
        if starts:
            name = f"<h3>starts of {text(run.name)}</h3>"
            parts.append(name + table(["start", "host", "process", "after step"], starts))
    return "".join(parts)
