"""The study's page: what its runs measured -> a table in Markdown, a picture, and the line of each run.

Figures of the report half stand in the tables; which learning rate a row takes was chosen on the selection half. A row
is compared with the first one of its start (Channel A alone) seed by seed: runs of one seed see the same samples in the
same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from ds_stage2ab.tools.study_rows import (
    F1,
    REPORT,
    SEALED,
    SELECTION,
    START,
    Domain,
    Result,
    Row,
    Study,
    chosen_results,
)

Figures = Mapping[str, float]
AP_BY_PROBABILITY, AP_BY_SCORE = "eval/ap_by_probability", "eval/ap_by_score"
COLUMNS = (
    ("F1 without duplicates", "eval/f1_without_duplicates"),
    ("precision", "eval/precision"),
    ("recall", "eval/recall"),
    ("AP by probability", AP_BY_PROBABILITY),
    ("AP by score", AP_BY_SCORE),
    ("predicted per true", "eval/predicted_per_true"),
    ("duplicates per answer", "eval/duplicates_per_answer"),
    ("spurious per answer", "eval/spurious_per_answer"),
    ("calibration error", "eval/calibration_error"),
)
"""Heading -> metric, means over the seeds."""
COLOURS = ("#1f6fb4", "#e0631b", "#1b9e8f", "#b4436c", "#8a6fbf", "#a08a00", "#5b6770", "#7a4b2a")


def write_page(
    page: Path,
    study: Study,
    domain: Domain,
    measured: Mapping[str, Mapping[str, Any]],
    rounds: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    steps: int,
) -> None:
    """Write the table and the picture.

    Args:
        page: their path, without an ending.
        measured: label -> the result of a start, that of START among them.
        rounds: the results of the rounds of Channel A up to the plateau.
        results: of the runs that are finished, in any order.
        steps: of each run, where its row does not say otherwise.
    """
    page.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(_page(page.name, study, domain, measured, rounds, results, steps))
    page.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    draw_picture(page.with_suffix(".png"), study, measured, rounds, results)


def _page(
    name: str,
    study: Study,
    domain: Domain,
    measured: Mapping[str, Mapping[str, Any]],
    rounds: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
    steps: int,
) -> Iterator[str]:
    command = f"python -m ds_stage2ab.tools.study --domain {domain.name} --steps {steps}"
    yield f"# The study on {domain.name} scenes\n"
    yield f"Written by `{command}`; [`README.md`](README.md) says what it means.\n"
    yield from _plateau(study, measured, rounds)
    yield f"\n## Rows\n\n{steps} steps each from its start; the half of the held-out scenes that nothing was chosen by."
    yield "F1 is the mean of the seeds (their range); beside it the difference to A alone, paired by seed.\n"
    yield from rows_table(study, measured, results, REPORT)
    if any(SEALED in one.figures for one in results):
        yield "\n## The scenes kept for the end\n\nOf another seed of the generator, measured once.\n"
        yield from rows_table(study, measured, results, SEALED)
    yield "\n## Each run\n"
    yield from runs_table(results)
    yield f"\n![F1 of each row, and the way to the plateau]({name}.png)"


def _plateau(
    study: Study, measured: Mapping[str, Mapping[str, Any]], rounds: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    yield f"## The plateau\n\nRounds of {study.plateau.steps:,} steps of Channel A; the half to choose by."
    yield f"The rows start in front of the first round that gains less than {study.plateau.gain}.\n"
    yield from _head("round", "F1", "gained", "AP by probability")
    start = measured[START]["figures"][SELECTION]
    before = start[F1]
    yield _line("the start", f"{before:.4f}", "", _figure(start, AP_BY_PROBABILITY))
    for number, result in enumerate(rounds, start=1):
        figures = result["figures"][SELECTION]
        gained = f"{figures[F1] - before:+.4f}"
        before = figures[F1]
        yield _line(str(number), f"{before:.4f}", gained, _figure(figures, AP_BY_PROBABILITY))


def rows_table(
    study: Study, measured: Mapping[str, Mapping[str, Any]], results: Sequence[Result], part: str
) -> Iterator[str]:
    """A line for each start, and for each row at the learning rate that was chosen for it; `part` of the scenes."""
    yield from _head("row", "rate", "seeds", "F1", "to A alone", *(name for name, _ in COLUMNS), "s per A, B step")
    for label, result in measured.items():
        if part not in result["figures"]:
            continue
        figures = result["figures"][part]
        yield _line(label, "", "", f"{figures[F1]:.4f}", "", *(_figure(figures, key) for _, key in COLUMNS), "")
    for row in study.rows:
        chosen = [one for one in chosen_results(study, row, results) if part in one.figures]
        if not chosen:
            continue
        figures = [one.figures[part] for one in chosen]
        means = (_mean([one[key] for one in figures if key in one]) for _, key in COLUMNS)
        seconds = ", ".join(_mean([one.seconds[c] for one in chosen if c in one.seconds], 2) for c in "AB")
        f1 = [one[F1] for one in figures]
        to_a = spread(differences(chosen, chosen_results(study, baseline(study, row), results), part), sign=True)
        name = f"`{row.name}` {row.label}"
        yield _line(name, f"x {chosen[0].run.rate:g}", str(len(chosen)), spread(f1), to_a, *means, seconds)


def runs_table(results: Sequence[Result]) -> Iterator[str]:
    """A line for each run, the rates that were not chosen among them."""
    yield from _head("run", "F1, to choose by", "F1", "AP by probability", "AP by score", "predicted per true")
    for one in results:
        figures = one.figures[REPORT]
        numbers = [f"{one.figures[SELECTION][F1]:.4f}", f"{figures[F1]:.4f}"]
        keys = (AP_BY_PROBABILITY, AP_BY_SCORE, "eval/predicted_per_true")
        yield _line(f"`{one.run.name}`", *numbers, *(_figure(figures, key) for key in keys))


def baseline(study: Study, row: Row) -> Row:
    """The first row of the same start."""
    return next(one for one in study.rows if one.start == row.start)


def differences(results: Sequence[Result], others: Sequence[Result], part: str) -> list[float]:
    """F1 of each result less that of the other row with the same seed; none for a row beside itself."""
    f1 = {one.run.seed: one.figures[part][F1] for one in others if part in one.figures and one not in results}
    return [one.figures[part][F1] - f1[one.run.seed] for one in results if one.run.seed in f1]


def spread(values: Sequence[float], *, sign: bool = False) -> str:
    """Mean and range: `0.6012 (0.5990 to 0.6034)`; of one value that alone."""
    form = "+.4f" if sign else ".4f"
    if len(values) < 2:
        return "".join(f"{value:{form}}" for value in values)
    return f"{mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def _mean(values: Sequence[float], digits: int = 3) -> str:
    return f"{mean(values):.{digits}f}" if values else "-"


def _figure(figures: Figures, name: str) -> str:
    return f"{figures[name]:.3f}" if name in figures else "-"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*cells: str) -> Iterator[str]:
    yield _line(*cells)
    yield _line(*("---" for _ in cells))


def draw_picture(
    path: Path,
    study: Study,
    measured: Mapping[str, Mapping[str, Any]],
    rounds: Sequence[Mapping[str, Any]],
    results: Sequence[Result],
) -> None:
    """F1 behind each round of Channel A up to the plateau; beside it a point for each run of each row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    left.set(title="Channel A alone, up to the plateau", xlabel="step", ylabel="F1, half to choose by")
    reached = [result["figures"][SELECTION][F1] for result in (measured[START], *rounds)]
    left.plot([number * study.plateau.steps for number in range(len(reached))], reached, color=COLOURS[0], marker="o")
    rows = [row for row in study.rows if chosen_results(study, row, results)]
    right.set(title="each run at its row's rate", xlabel="F1, half to report on")
    for place, row in enumerate(rows):
        f1 = [one.figures[REPORT][F1] for one in chosen_results(study, row, results)]
        colour = COLOURS[place % len(COLOURS)]
        right.plot(f1, [place] * len(f1), "o", color=colour, alpha=0.6)
        right.plot(mean(f1), place, "|", color=colour, markersize=22, markeredgewidth=2)
    for (label, result), style in zip(measured.items(), (":", "--", "-."), strict=False):
        right.axvline(result["figures"][REPORT][F1], color="#5b6770", linestyle=style, linewidth=1, label=label)
    right.set_yticks(range(len(rows)), [row.name for row in rows])
    right.invert_yaxis()
    right.legend(frameon=False, fontsize=8.5)
    for axes in (left, right):
        axes.grid(color="#e3e6e9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png(path)
