"""Histograms as SVG to be put into a page: text stays text, no font or script is needed."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from ds_stage2ab.data_report.figures import LOGARITHMIC, ClassCount
from ds_stage2ab.errors import printable

COLOUR, INK, GRID, CAP = "#1f6fb4", "#2b3238", "#e3e6e9", "#b4436c"
SIZE = (4.4, 2.5)  # inches
NUM_BARS = 30
MAX_CLASSES = 30
MAX_NAME = 24
SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "", "font.size": 9, "text.parse_math": False}
"""A fixed salt: the same data give the same page."""


def histogram(title: str, values: NDArray[np.float64], caps: Sequence[float] = ()) -> str:
    """Counts of the values; caps are drawn as upright lines."""
    with mpl.rc_context(SETTINGS):
        figure, axes = _panel(title)
        edges = _edges(values, logarithmic=title in LOGARITHMIC)
        axes.hist(values, bins=edges, color=COLOUR)
        if title in LOGARITHMIC:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())  # the usual one writes TeX, which SVG shows as it is
        for cap in caps:
            axes.axvline(cap, color=CAP, linewidth=1.5)
        return _svg(figure)


def class_bars(classes: Sequence[ClassCount]) -> str:
    """Objects of the most frequent classes."""
    shown = classes[:MAX_CLASSES][::-1]
    with mpl.rc_context(SETTINGS):
        figure, axes = _panel(f"objects of the {len(shown)} most frequent classes", height=0.9 + 0.2 * len(shown))
        names = [printable(one.name) for one in shown]
        axes.barh(range(len(shown)), [one.objects for one in shown], color=COLOUR)
        axes.set_yticks(range(len(shown)), [n if len(n) <= MAX_NAME else f"{n[: MAX_NAME - 3]}..." for n in names])
        return _svg(figure)


def _panel(title: str, height: float = SIZE[1]) -> tuple[Figure, mpl.axes.Axes]:
    figure = Figure(figsize=(SIZE[0], height), layout="constrained")
    axes = figure.add_subplot()
    figure.suptitle(title, fontsize=10, color=INK, x=0.01, ha="left")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _edges(values: NDArray[np.float64], *, logarithmic: bool) -> NDArray[np.float64]:
    least, most = float(values.min()), float(values.max())
    if logarithmic:
        return np.geomspace(least * 0.999, most * 1.001, NUM_BARS + 1)
    if most - least <= NUM_BARS and (values == values.round()).all():
        return np.arange(least - 0.5, most + 1)
    return np.linspace(least, most, NUM_BARS + 1)


def _svg(figure: Figure) -> str:
    """The `<svg>` element alone, without the date and the document's head."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
