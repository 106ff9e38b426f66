"""One picture of a run: loss and its terms, evaluation, coordinates, learning rate, speed, matches and rollouts.

Steps of Channel B have other targets than those of Channel A, so no line runs through both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from ds_stage2ab.errors import printable
from ds_stage2ab.metrics.journal import EvaluationRecord, History, StepRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

LineStyle = str | tuple[float, tuple[float, float]]
CHANNEL_COLOURS = {"A": "#1f6fb4", "B": "#e0631b"}
CHANNEL_STYLES: dict[str, LineStyle] = {"A": "-", "B": (0, (2.6, 1.1))}  # the second: dashes of 2.6 line widths
COLOURS = (
    *("#1f6fb4", "#e0631b", "#1b9e8f", "#b4436c", "#8a6fbf", "#a08a00"),
    *("#5b6770", "#d58fb5", "#5fb3e6", "#7a4b2a", "#2f7d32", "#c23b3b"),
)
"""One for each term of the loss."""

GRID_COLOUR = "#e3e6e9"
INK_COLOUR = "#2b3238"
SMOOTHING_SHARE = 0.03  # of the run: half-life of the smoothed line, long enough to see through the noise
MIN_HALF_LIFE = 0.1  # steps: a run of a few steps is shown as it is
RAW_ALPHA = 0.25
PANEL_WIDTH, PANEL_HEIGHT = 16 / 3, 4.5  # inches, with what is around a panel
LEFT, RIGHT, BELOW, ABOVE = 0.75, 0.75, 1.35, 0.6  # inches around a panel: labels, the legend, titles
LEGEND_COLUMNS = (2, 4)  # the fewest and the most
LEGEND_WIDTH = 80  # characters below one panel; a wider legend would push the panels together
LEGEND_HANDLE = 5  # characters that a line's sample and the space around it take
MAX_LOG_SPAN = 50.0  # a panel whose values span more than this factor is logarithmic

EVALUATION_CURVES = ("eval/f1", "eval/f1_boxes", "eval/precision", "eval/recall", "eval/parse_ok_rate")
MATCH_CURVES = ("match/f1", "match/precision", "match/recall", "match/predicted_per_true")
ROLLOUT_CURVES = ("parse/ok", "rollout/values_dropped_rate", "rollout/truncation_rate")


def draw_curves(history: History, path: Path, title: str) -> None:
    """Write the curves of a run as one PNG of 2 x 3 panels, or 2 x 4 if it has steps of Channel B.

    Args:
        history: at least one step or one evaluation.
        path: the PNG, replaced if it exists.
        title: the heading, usually the name of the run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    top: list[tuple[str, Callable[[Axes, History], None]]] = [
        ("loss", _draw_loss),
        ("loss terms, before their weights", _draw_terms),
        ("evaluation on held-out images", _draw_evaluation),
    ]
    bottom: list[tuple[str, Callable[[Axes, History], None]]] = [
        ("coordinates", _draw_coordinates),
        ("learning rate and gradient norm", _draw_optimizer),
        ("speed", _draw_speed),
    ]
    if any(record.channel == "B" for record in history.steps):
        top.append(("matches of B steps, on training images", _draw_matches))
        bottom.append(("rollouts of B steps", _draw_rollouts))
    columns = len(top)
    figure, panels = _panels(2, columns)
    canvas = FigureCanvasAgg(figure)
    figure.suptitle(printable(title), parse_math=False, fontsize=15, color=INK_COLOUR, x=0.01, ha="left")
    last_step = max(entry.step for entry in (*history.steps, *history.evaluations))
    for axes, (name, draw) in zip(panels, top + bottom, strict=True):
        _prepare(axes, name, last_step)
        draw(axes, history)
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing recorded", transform=axes.transAxes, ha="center", color="#9aa3aa")
            axes.set_yticks([])
        for step in resumptions(history):
            axes.axvline(step, color="#9aa3aa", linewidth=1, linestyle=":")
    canvas.print_png(path)


def resumptions(history: History) -> list[int]:
    """After how many finished steps the run went on in a further attempt."""
    entries = sorted((*history.steps, *history.evaluations), key=lambda entry: entry.step)
    return [before.step for before, after in pairwise(entries) if after.attempt > before.attempt]


def _panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Placed by hand: matplotlib's own layouts measure every label twice, which takes longer than to draw them."""
    from matplotlib.figure import Figure

    width, height = PANEL_WIDTH * columns, PANEL_HEIGHT * rows
    sides = {"left": LEFT / width, "right": 1 - RIGHT / width, "bottom": BELOW / height, "top": 1 - ABOVE / height}
    across, down = LEFT + RIGHT, BELOW + ABOVE
    between = {"wspace": across / (PANEL_WIDTH - across), "hspace": down / (PANEL_HEIGHT - down)}
    figure = Figure(figsize=(width, height), dpi=110)
    return figure, [*figure.subplots(rows, columns, gridspec_kw={**sides, **between}).flat]


def smoothed(steps: Sequence[int], values: Sequence[float], half_life: float) -> list[float]:
    """Exponential moving average over steps (not over points), unbiased at its start; non-finite values are skipped.

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
    for channel, steps in _by_channel(history.steps).items():
        _line(axes, steps, "loss/total", f"channel {channel}", CHANNEL_COLOURS[channel])
    refused = [record.step for record in history.steps if not record.applied]
    for index, step in enumerate(refused):
        axes.axvline(step, color="#c0392b", linewidth=1, label="step not applied" if index == 0 else None)
    _finish(axes, "nats")


def _draw_terms(axes: Axes, history: History) -> None:
    names = {name: None for record in history.steps for name in record.metrics if name.startswith("loss/")}
    shown = [name for name in names if name != "loss/total"]
    for name, colour in zip(shown, cycle(COLOURS), strict=False):
        _channel_lines(axes, history, name, name.removeprefix("loss/"), colour, raw=False)
    _finish(axes, "value of the term", channels=_by_channel(history.steps))


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
    _channel_lines(axes, history, "coord/mean_abs_error_bins", "mean absolute error", COLOURS[0])
    right = _right_axis(axes)
    _channel_lines(right, history, "coord/mass", "mass on coordinate tokens (right)", COLOURS[1])
    right.set_ylim(0, 1.02)
    _finish(axes, "bins", right, "fraction", channels=_by_channel(history.steps))


def _draw_optimizer(axes: Axes, history: History) -> None:
    _line(axes, history.steps, "train/learning_rate", "learning rate", COLOURS[0], smooth=False)
    right = _right_axis(axes)
    _channel_lines(right, history, "train/grad_norm", "gradient norm (right)", COLOURS[1])
    channels = _by_channel(history.steps)
    _finish(axes, "learning rate", right, "L2 norm", logarithmic=False, channels=channels)


def _draw_speed(axes: Axes, history: History) -> None:
    _channel_lines(axes, history, "train/tokens_per_second", "tokens per second", COLOURS[0])
    right = _right_axis(axes)
    _channel_lines(right, history, "time/step_s", "seconds per step (right)", COLOURS[1])
    right.set_ylim(bottom=0)
    _finish(axes, "tokens/s", right, "s", logarithmic=False, channels=_by_channel(history.steps))
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _draw_matches(axes: Axes, history: History) -> None:
    for name, colour in zip(MATCH_CURVES, COLOURS, strict=False):
        _line(axes, history.steps, name, name.removeprefix("match/"), colour)
    axes.set_ylim(0, max(1.02, axes.get_ylim()[1]))
    _finish(axes, "fraction; predicted_per_true: 1 is right", logarithmic=False)


def _draw_rollouts(axes: Axes, history: History) -> None:
    for name, colour in zip(ROLLOUT_CURVES, COLOURS, strict=False):
        _line(axes, history.steps, name, name.removeprefix("rollout/"), colour)
    axes.set_ylim(-0.02, 1.02)  # rates are often 0, which must be visible
    right = _right_axis(axes)
    _line(right, history.steps, "rollout/tokens_per_second", "tokens per second (right)", COLOURS[3])
    highest = right.get_ylim()[1]
    right.set_ylim(-0.02 / 1.02 * highest, highest)
    right.yaxis.set_major_formatter("{x:,.0f}")
    _finish(axes, "fraction", right, "tokens/s", logarithmic=False)


def _by_channel(records: Sequence[StepRecord]) -> dict[str, list[StepRecord]]:
    """The channels that ran -> their steps."""
    found = {channel: [record for record in records if record.channel == channel] for channel in CHANNEL_COLOURS}
    return {channel: steps for channel, steps in found.items() if steps}


def _channel_lines(axes: Axes, history: History, name: str, label: str, colour: str, *, raw: bool = True) -> None:
    """A line for each channel; where both ran, the style says which is which."""
    channels = _by_channel(history.steps)
    for channel, steps in channels.items():
        recorded = [record for record in steps if name in record.metrics]
        style = CHANNEL_STYLES[channel] if len(channels) > 1 else "-"
        _line(axes, recorded, name, label, colour, raw=raw, style=style)


def _line(
    axes: Axes,
    records: Sequence[StepRecord | EvaluationRecord],
    name: str,
    label: str,
    colour: str,
    *,
    raw: bool = True,
    smooth: bool = True,
    style: LineStyle = "-",
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
    axes.plot(steps, shown, color=colour, linewidth=1.8, label=label, marker=marker, linestyle=style)


def _prepare(axes: Axes, name: str, last_step: int) -> None:
    axes.set_title(name, loc="left", y=1.0, fontsize=11, color=INK_COLOUR)  # y: else every label is measured for it
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
    axes: Axes,
    unit: str,
    right: Axes | None = None,
    right_unit: str = "",
    *,
    logarithmic: bool = True,
    channels: Collection[str] = (),
) -> None:
    """Units, a logarithmic left axis where values span orders of magnitude, one legend for both axes."""
    axes.set_ylabel(unit, color=INK_COLOUR)
    values = [float(y) for line in axes.lines for y in line.get_ydata() if math.isfinite(y) and y > 0]
    if logarithmic and values and max(values) > MAX_LOG_SPAN * min(values):
        axes.set_yscale("log")
    if right is not None:
        right.set_ylabel(right_unit, color=INK_COLOUR)
    lines = [line for side in (axes, right) if side is not None for line in side.get_legend_handles_labels()[0]]
    handles: dict[str, Line2D] = {}
    for line in lines:
        handles.setdefault(str(line.get_label()), line)  # one entry for each colour, that of the first channel
    if handles:
        if len(channels) > 1:
            handles |= {f"{channel} steps": _style_handle(channel) for channel in channels}
        fewest, most = LEGEND_COLUMNS
        fitting = LEGEND_WIDTH // (max(map(len, handles)) + LEGEND_HANDLE)
        columns = min(max(fewest, min(most, fitting)), len(handles))
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": columns}
        shape = {"fontsize": 8.5, "frameon": False, "columnspacing": 1.1, "handlelength": 1.7}
        axes.legend(list(handles.values()), list(handles), **shape, **place)


def _style_handle(channel: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=INK_COLOUR, linewidth=1.8, linestyle=CHANNEL_STYLES[channel])
