"""Curves and tables of numbers as plotly's own figures: lists of traces, ready to be written as JSON.

Of one run a chart has a line for each metric and channel, of several a chart for each metric, with a line for each run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any

from ds_stage2ab.metrics.best_watch import AVERAGE_PRECISION
from ds_stage2ab.metrics.curves import (
    COLOURS,
    EVALUATION_CURVES,
    MATCH_CURVES,
    MIN_HALF_LIFE,
    SMOOTHING_SHARE,
    resumptions,
    smoothed,
)
from ds_stage2ab.metrics.health_watch import FIGURES
from ds_stage2ab.metrics.journal import EVALUATION_CHANNEL, History
from ds_stage2ab.pages.frame import text
from ds_stage2ab.run_report.figures import Thresholds
from ds_stage2ab.run_report.runs import RunFiles

MAX_POINTS = 400
"""Of one metric and channel, in the lines of all runs together: more cannot be told apart on a screen, and the file
would grow with the runs."""
STEP = "step"
DIGITS = 5  # significant ones of a value
DASHES = {"A": "solid", "B": "dash", EVALUATION_CHANNEL: "solid"}
MAX_NAMES = 24
"""Of a confusion matrix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One figure."""

    title: str
    traces: list[dict[str, Any]]
    across: str = STEP
    up: str = ""
    # what the axes show, with units
    logarithmic: bool = False
    # across
    has_legend: bool = False
    # even of one entry
    marks: list[int] = field(default_factory=list)
    # steps after which a run went on


@dataclass(frozen=True, slots=True)
class Panel:
    """What one chart of a single run shows."""

    title: str
    unit: str
    metrics: tuple[str, ...] | Callable[[History], Sequence[str]]
    channels: tuple[str, ...] = tuple(DASHES)
    is_exact: bool = False
    # without noise to be smoothed


def _terms(history: History) -> list[str]:
    names = {name: None for record in history.steps for name in record.metrics if name.startswith("loss/")}
    return [name for name in names if name != "loss/total"]


PANELS = (
    Panel("loss", "nats", ("loss/total",)),
    Panel("loss terms, before their weights", "value of the term", _terms),
    Panel("evaluation on held-out images", "fraction", (*AVERAGE_PRECISION, *EVALUATION_CURVES)),
    Panel("coordinates", "bins", ("coord/mean_abs_error_bins",)),
    Panel("matches of B steps, on training images", "fraction", MATCH_CURVES),
    Panel("learning rate", "", ("train/learning_rate",), is_exact=True),
    Panel("gradient norm", "", ("train/grad_norm",)),
    Panel("speed", "tokens/s", ("train/tokens_per_second", "rollout/tokens_per_second")),
    Panel("wall time", "s", ("time/step_s", "time/rollout_s")),
)
SHARES = tuple(one.step for one in FIGURES if one.key != "predicted_per_true")
HEALTH = (
    Panel("shares of rollouts, values and probability", "fraction", SHARES, ("B",)),
    Panel("objects answered for each true one", "", ("match/predicted_per_true",), ("B",)),
)
"""Of B steps; a metric is a sum where a figure of the watch is one."""


def curves(runs: Sequence[RunFiles], panels: Sequence[Panel] = PANELS) -> list[Chart]:
    """The charts that have a line."""
    found = [chart for panel in panels for chart in _panel(runs, panel)]
    return [chart for chart in found if chart.traces]


def _panel(runs: Sequence[RunFiles], panel: Panel) -> Iterator[Chart]:
    listed = [panel.metrics(run.history) if callable(panel.metrics) else panel.metrics for run in runs]
    names = list(dict.fromkeys(name for found in listed for name in found))
    marks = sorted({step for run in runs for step in resumptions(run.history)})
    if len(runs) == 1:
        coloured = zip(names, cycle(COLOURS), strict=False)
        lines = (_lines(runs[0], panel, name, (name.split("/")[1], colour), MAX_POINTS) for name, colour in coloured)
        traces = [trace for found in lines for trace in found]
        yield Chart(title=panel.title, traces=traces, up=panel.unit, marks=marks)
        return
    most = MAX_POINTS // len(runs)
    for name in names:
        coloured = zip(runs, cycle(COLOURS), strict=False)
        traces = [trace for run, colour in coloured for trace in _lines(run, panel, name, (run.name, colour), most)]
        yield Chart(title=name, traces=traces, up=panel.unit, marks=marks, has_legend=True)


def _lines(run: RunFiles, panel: Panel, metric: str, look: tuple[str, str], most: int) -> Iterator[dict[str, Any]]:
    """A line for each channel that has the metric; those of one metric and run share an entry of the legend.

    Args:
        look: name and colour.
        most: points of a line.
    """
    label, colour = look
    found = {channel: points for channel in panel.channels if (points := _points(run.history, metric, channel))}
    for place, (channel, points) in enumerate(found.items()):
        steps, values = zip(*points, strict=True)
        line = {"color": colour, "dash": DASHES[channel], "width": 2}
        shown = {"name": text(label), "legendgroup": text(label), "showlegend": place == 0}
        common = {**shown, "line": line, "mode": "lines"}
        if panel.is_exact or channel == EVALUATION_CHANNEL:
            yield _trace(steps, values, most, common | ({} if panel.is_exact else {"mode": "lines+markers"}))
            continue
        unsmoothed = {"opacity": 0.25, "showlegend": False, "hoverinfo": "skip", "line": line | {"width": 1}}
        yield _trace(steps, values, most, common | unsmoothed)
        yield _trace(steps, smoothed(steps, values, max(MIN_HALF_LIFE, SMOOTHING_SHARE * steps[-1])), most, common)


def _points(history: History, metric: str, channel: str) -> list[tuple[int, float]]:
    parts = metric.split(" + ")
    records = history.evaluations if channel == EVALUATION_CHANNEL else history.steps
    mine = [one for one in records if channel == EVALUATION_CHANNEL or one.channel == channel]
    having = [one for one in mine if all(part in one.metrics for part in parts)]
    return [(one.step, sum(one.metrics[part] for part in parts)) for one in having]


def _trace(across: Sequence[float], up: Sequence[float | None], most: int, look: dict[str, Any]) -> dict[str, Any]:
    """A line of at most so many points, evenly chosen, its end among them."""
    stride = math.ceil(len(across) / most)
    kept = range((len(across) - 1) % stride, len(across), stride) if stride else ()
    return {**look, "x": [across[place] for place in kept], "y": [_short(up[place]) for place in kept]}


def _short(value: float | None) -> float | None:
    """JSON has no other numbers than finite ones."""
    return float(f"{value:.{DIGITS}g}") if value is not None and math.isfinite(value) else None


def threshold_charts(found: Sequence[tuple[str, Thresholds]]) -> list[Chart]:
    """Precision, recall and F1 over the threshold, and precision over recall.

    Args:
        found: name of a run and its figures.
    """
    over, against = [], []
    for place, (name, one) in enumerate(found):
        for what, values in (("precision", one.precision), ("recall", one.recall), ("F1", one.f1)):
            colour = COLOURS[("precision", "recall", "F1").index(what) if len(found) == 1 else place % len(COLOURS)]
            dash = "solid" if len(found) == 1 else {"precision": "solid", "recall": "dash", "F1": "dot"}[what]
            label = text(what if len(found) == 1 else f"{name}: {what}")
            look = {"name": label, "mode": "lines", "line": {"color": colour, "dash": dash, "width": 2}}
            over.append(_trace(one.threshold, values, MAX_POINTS, look))
        look = {"name": text(name), "mode": "lines+markers", "line": {"color": COLOURS[place % len(COLOURS)]}}
        cuts = zip(one.threshold, one.kept, strict=True)
        said = [f"score at least {cut:.2g}, {share:.0%} kept" for cut, share in cuts]
        against.append(_trace(one.recall, one.precision, MAX_POINTS, look) | {"text": said})
    return [
        Chart(
            title="over the score's threshold",
            traces=over,
            across="score of an object, at least",
            up="fraction",
            logarithmic=True,
        ),
        Chart(title="precision over recall", traces=against, across="recall", up="precision"),
    ]


def confusion_chart(title: str, found: Counter[tuple[str, str]]) -> Chart | None:
    """Counts of matched boxes by true (down) and answered (across) name; None where nothing is matched."""
    totals: dict[str, int] = {}
    for (true, _), count in found.items():
        totals[true] = totals.get(true, 0) + count
    rows = sorted(totals, key=lambda name: -totals[name])[:MAX_NAMES]
    others = [name for true, name in found if true in rows and name not in rows]
    columns = [*rows, *list(dict.fromkeys(others))[: MAX_NAMES - len(rows)]]
    counts = [[found.get((true, name)) for name in columns] for true in rows]
    trace = {
        "type": "heatmap",
        "x": [text(name) for name in columns],
        "y": [text(name) for name in rows],
        "z": counts,
        "texttemplate": "%{z}",
        "hovertemplate": "%{y} answered as %{x}: %{z}<extra></extra>",
        "colorscale": [[0, "#eef3f8"], [1, "#1f6fb4"]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
    }
    return Chart(title=title, traces=[trace], across="answered name", up="true name") if rows else None
