"""One picture of a run: loss and its terms, evaluation, coordinates, learning rate, speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ds_stage2ab.metrics.journal import EvaluationRecord, History, StepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CHANNEL_COLOURS = {"A": "#1f6fb4", "B": "#e0631b"}
COLOURS = ("#1f6fb4", "#e0631b", "#1b9e8f", "#b4436c", "#8a6fbf", "#a08a00", "#5b6770", "#d58fb5", "#5fb3e6", "#7a4b2a")
GRID_COLOUR = "#e3e6e9"
INK_COLOUR = "#2b3238"
SMOOTHING_SHARE = 0.03  # of the run: half-life of the smoothed line, long enough to see through the noise
MIN_HALF_LIFE = 0.1  # steps: a run of a few steps is shown as it is
RAW_ALPHA = 0.25
LEGEND_COLUMNS = 4
MAX_LOG_SPAN = 50.0  # a panel whose values span more than this factor is logarithmic

EVALUATION_CURVES = ("eval/f1", "eval/f1_boxes", "eval/precision", "eval/recall", "eval/parse_ok_rate")


def draw_curves(history: History, path: Path, title: str) -> None:
    """Write the curves of a run as one PNG of 2 x 3 panels.

    Args:
        history: at least one step or one evaluation.
        path: the PNG, replaced if it exists.
        title: the heading, usually the name of the run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 9), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=15, color=INK_COLOUR, x=0.01, ha="left")
    panels: Sequence[tuple[str, Callable[[Axes, History], None]]] = (
        ("loss", _draw_loss),
        ("loss terms, before their weights", _draw_terms),
        ("evaluation on held-out images", _draw_evaluation),
        ("coordinates", _draw_coordinates),
        ("learning rate and gradient norm", _draw_optimizer),
        ("speed", _draw_speed),
    )
    last_step = max(entry.step for entry in (*history.steps, *history.evaluations))
    for axes, (name, draw) in zip(figure.subplots(2, 3).flat, panels, strict=True):
        _prepare(axes, name, last_step)
        draw(axes, history)
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color="#9aa3aa")
            axes.set_yticks([])
    figure.savefig(path)


def smoothed(steps: Sequence[int], values: Sequence[float], half_life: float) -> list[float]:
    """Exponential moving average over steps (not over points), unbiased at its start; non-finite values are passed by.

    With decay d = 0.5^((s_i - s_(i-1)) / half_life): mean_i = (d w_(i-1) mean_(i-1) + v_i) / (d w_(i-1) + 1).
    """
    means: list[float] = []
    weight = mean = 0.0
    last = steps[0] if steps else 0
    for step, value in zip(steps, values, strict=True):
        weight *= 0.5 ** ((step - last) / half_life)
        last = step
        if math.isfinite(value):
            mean = (weight * mean + value) / (weight + 1)
            weight += 1
        means.append(mean if weight else math.nan)
    return means


def _draw_loss(axes: Axes, history: History) -> None:
    for channel, colour in CHANNEL_COLOURS.items():
        steps = [record for record in history.steps if record.channel == channel]
        _line(axes, steps, "loss/total", f"channel {channel}", colour)
    refused = [record.step for record in history.steps if not record.applied]
    for index, step in enumerate(refused):
        axes.axvline(step, color="#c0392b", linewidth=1, label="step not applied" if index == 0 else None)
    _finish(axes, "nats")


def _draw_terms(axes: Axes, history: History) -> None:
    names = {name: None for record in history.steps for name in record.metrics if name.startswith("loss/")}
    shown = [name for name in names if name != "loss/total"]
    for index, name in enumerate(shown):
        label = name.removeprefix("loss/")
        _line(axes, history.steps, name, label, COLOURS[index % len(COLOURS)], raw=False, dashed=index >= len(COLOURS))
    _finish(axes, "value of the term")


def _draw_evaluation(axes: Axes, history: History) -> None:
    for name, colour in zip(EVALUATION_CURVES, COLOURS, strict=False):
        points = [(record.step, record.metrics[name]) for record in history.evaluations if name in record.metrics]
        if points:
            steps, values = zip(*points, strict=True)
            line = {"linewidth": 2.4 if name == "eval/f1" else 1.3, "marker": "o", "markersize": 4, "clip_on": False}
            axes.plot(steps, values, color=colour, label=name.removeprefix("eval/"), **line)
    if axes.lines:
        axes.set_ylim(0, 1.02)
    _finish(axes, "fraction", logarithmic=False)


def _draw_coordinates(axes: Axes, history: History) -> None:
    _line(axes, history.steps, "coord/mean_abs_error_bins", "mean absolute error", COLOURS[0])
    right = _right_axis(axes)
    _line(right, history.steps, "coord/mass", "mass on coordinate tokens (right)", COLOURS[1])
    right.set_ylim(0, 1.02)
    _finish(axes, "bins", right, "fraction")


def _draw_optimizer(axes: Axes, history: History) -> None:
    _line(axes, history.steps, "train/learning_rate", "learning rate", COLOURS[0], smooth=False)
    right = _right_axis(axes)
    _line(right, history.steps, "train/grad_norm", "gradient norm (right)", COLOURS[1])
    _finish(axes, "learning rate", right, "L2 norm", logarithmic=False)


def _draw_speed(axes: Axes, history: History) -> None:
    _line(axes, history.steps, "train/tokens_per_second", "tokens per second", COLOURS[0])
    right = _right_axis(axes)
    _line(right, history.steps, "time/step_s", "seconds per step (right)", COLOURS[1])
    right.set_ylim(bottom=0)
    _finish(axes, "tokens/s", right, "s", logarithmic=False)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _line(
    axes: Axes,
    records: Sequence[StepRecord | EvaluationRecord],
    name: str,
    label: str,
    colour: str,
    *,
    raw: bool = True,
    smooth: bool = True,
    dashed: bool = False,
) -> None:
    """A metric over steps: faint as recorded, strong and smoothed."""
    points = [(record.step, record.metrics[name]) for record in records if name in record.metrics]
    if not points:
        return
    steps = [step for step, _ in points]
    values = [value if math.isfinite(value) else math.nan for _, value in points]
    if raw and smooth and len(points) > 1:
        axes.plot(steps, values, color=colour, alpha=RAW_ALPHA, linewidth=0.9)
    half_life = max(MIN_HALF_LIFE, SMOOTHING_SHARE * (steps[-1] - steps[0]))
    shown = smoothed(steps, values, half_life) if smooth else values
    marker = "o" if len(points) == 1 else None
    axes.plot(steps, shown, color=colour, linewidth=1.8, label=label, marker=marker, linestyle="--" if dashed else "-")


def _prepare(axes: Axes, name: str, last_step: int) -> None:
    axes.set_title(name, loc="left", fontsize=11, color=INK_COLOUR)
    axes.set_xlabel("step", color=INK_COLOUR)
    axes.set_xlim(0, max(1, last_step))
    axes.grid(color=GRID_COLOUR, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK_COLOUR)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter("{x:.4g}")


def _right_axis(axes: Axes) -> Axes:
    right = axes.twinx()
    right.spines["top"].set_visible(False)
    right.tick_params(colors=INK_COLOUR)
    right.yaxis.set_major_formatter("{x:.4g}")
    return right


def _finish(
    axes: Axes, unit: str, right: Axes | None = None, right_unit: str = "", *, logarithmic: bool = True
) -> None:
    """Units, a logarithmic left axis where values span orders of magnitude, one legend for both axes."""
    axes.set_ylabel(unit, color=INK_COLOUR)
    values = [float(y) for line in axes.lines for y in line.get_ydata() if math.isfinite(y) and y > 0]
    if logarithmic and values and max(values) > MAX_LOG_SPAN * min(values):
        axes.set_yscale("log")
    handles, labels = axes.get_legend_handles_labels()
    if right is not None:
        right.set_ylabel(right_unit, color=INK_COLOUR)
        more_handles, more_labels = right.get_legend_handles_labels()
        handles, labels = handles + more_handles, labels + more_labels
    if handles:
        columns = min(LEGEND_COLUMNS, len(handles))
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.13), "ncols": columns}
        axes.legend(handles, labels, fontsize=8.5, frameon=False, columnspacing=1.1, handlelength=1.3, **place)
