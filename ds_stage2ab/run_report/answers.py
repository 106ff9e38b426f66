"""The sections of a report that come from the answers of its evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from ds_stage2ab.evaluation.answers import Answer, read_answers
from ds_stage2ab.pages.frame import table, text
from ds_stage2ab.run_report.charts import Chart, confusion_chart, threshold_charts
from ds_stage2ab.run_report.figures import Description, confusion, descriptions, over_thresholds
from ds_stage2ab.run_report.gallery import Gallery
from ds_stage2ab.run_report.runs import RunFiles

Section = tuple[str, str, str]
"""Key, title and HTML; empty: there is nothing to show."""
NUM_IMAGES, NUM_STEPS = 8, 6
"""Held-out images that are followed through training, and at how many evaluations at most."""
NUM_WORST, NUM_WITH_WORST = 3, 16
"""Images of a description, and descriptions that have some."""
MAX_DESCRIPTIONS = 60
MAX_CONFUSED = 12
SCORES = (
    "<p class=note>Of the newest evaluation. A score is the product of the probabilities of an object's tokens, or in a"
    " form with scores what the model says of its box and name; a pair counts while its object is kept.</p>"
)
NAMES = (
    "<p class=note>Boxes of the newest evaluation that meet a true one with an IoU of 0.5 or more: those of the same"
    " name first, then the others.</p>"
)
HEAD = ["description", "true", "answered", "matched", "precision", "recall", "F1", "IoU", "AP"]


def answer_sections(
    runs: Sequence[RunFiles], gallery: Gallery, drawn: Callable[[Sequence[Chart]], str]
) -> Iterator[Section]:
    """Pictures first: they may take the space of the worst images, which come after them.

    Args:
        drawn: adds charts to the page.
    """
    known = [run for run in runs if run.last_answers]
    pictures = "".join(_through_training(known, gallery))
    yield "thresholds", "precision and recall over scores", _thresholds(known, drawn)
    yield "pictures", "the same images through training", pictures
    yield "descriptions", "descriptions", "".join(_descriptions(known, gallery))
    yield "names", "names of matched boxes", _names(known, drawn)


def _thresholds(runs: Sequence[RunFiles], drawn: Callable[[Sequence[Chart]], str]) -> str:
    found = [(run.name, figures) for run in runs if (figures := over_thresholds(run.last_answers))]
    return SCORES + drawn(threshold_charts(found)) if found else ""


def _through_training(runs: Sequence[RunFiles], gallery: Gallery) -> Iterator[str]:
    """Each image with what each run answered at some evaluations, from the first to the last."""
    steps = {run.name: _spread(list(run.evaluations)) for run in runs}
    shown = {
        (run.name, step): read_answers(run.evaluations[step], NUM_IMAGES) for run in runs for step in steps[run.name]
    }
    ids = dict.fromkeys(answer.id for answers in shown.values() for answer in answers)
    for key in list(ids)[:NUM_IMAGES]:
        yield f"<h3>{text(key)}</h3>"
        for run in runs:
            yield "<div class=pictures>"
            for step in steps[run.name]:
                name = f"step {step:,}" if len(runs) == 1 else f"{run.name}, step {step:,}"
                mine = [answer for answer in shown[run.name, step] if answer.id == key]
                yield from (gallery.figure(answer, name) for answer in mine)
            yield "</div>"


def _spread(steps: Sequence[int]) -> list[int]:
    """The first, the last, and evenly between them."""
    if len(steps) <= NUM_STEPS:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (NUM_STEPS - 1))] for place in range(NUM_STEPS)]


def _descriptions(runs: Sequence[RunFiles], gallery: Gallery) -> Iterator[str]:
    found = {run.name: descriptions(run.last_answers, NUM_WORST) for run in runs}
    if len(runs) > 1:
        yield _side_by_side(found)
    for run in runs:
        rows = found[run.name]
        room = NUM_WITH_WORST // len(runs)
        most = sorted(rows, key=lambda row: -sum(count for _, count in row.worst))[:room]
        body = "".join(_row(one, run.last_answers, gallery, with_worst=one in most) for one in rows[:MAX_DESCRIPTIONS])
        head = "".join(f"<th>{cell}</th>" for cell in HEAD)
        rest = f"<p class=note>{len(rows) - MAX_DESCRIPTIONS:,} more</p>" if len(rows) > MAX_DESCRIPTIONS else ""
        whole = f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>{rest}"
        summary = f"<summary>{text(run.name)}, with its worst images</summary>"
        yield whole if len(runs) == 1 else f"<details>{summary}{whole}</details>"


def _side_by_side(found: dict[str, list[Description]]) -> str:
    """F1 and AP of each run."""
    by_name = {run: {one.name: one for one in rows} for run, rows in found.items()}
    names = list(dict.fromkeys(one.name for rows in found.values() for one in rows))[:MAX_DESCRIPTIONS]
    rows = [
        [text(name), *(_share(getattr(by_name[run].get(name), what, None)) for what in ("f1", "ap") for run in found)]
        for name in names
    ]
    return table(["description", *(f"{what}<br>{text(run)}" for what in ("F1", "AP") for run in found)], rows)


def _row(one: Description, answers: Sequence[Answer], gallery: Gallery, *, with_worst: bool) -> str:
    counts = (f"{one.true:,}", f"{one.predicted:,}", f"{one.matched:,}")
    cells = [text(one.name), *counts, *map(_share, (one.precision, one.recall, one.f1, one.matched_iou, one.ap))]
    row = f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    if not with_worst or not one.worst:
        return row
    shown = ((answers[place], count) for place, count in one.worst)
    figures = "".join(gallery.figure(answer, f"{answer.id}, {count} of {one.name} wrong") for answer, count in shown)
    what = f"the images with most errors of {text(one.name)}"
    worst = f"<details><summary>{what}</summary><div class=pictures>{figures}</div></details>"
    return f"{row}<tr><td class=wide colspan={len(HEAD)}>{worst}</td></tr>"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _names(runs: Sequence[RunFiles], drawn: Callable[[Sequence[Chart]], str]) -> str:
    found = [confusion(run.last_answers) for run in runs]
    titles = ["boxes by true and answered name"] if len(runs) == 1 else [text(run.name) for run in runs]
    charts = [chart for title, one in zip(titles, found, strict=True) if (chart := confusion_chart(title, one))]
    wrong = Counter({pair: count for one in found for pair, count in one.items() if pair[0] != pair[1]})
    rows = [
        [text(true), text(name), *(f"{one[true, name]:,}" for one in found)]
        for true, name in sorted(wrong, key=lambda pair: (-wrong[pair], pair))[:MAX_CONFUSED]
    ]
    head = ["true name", "answered name", *(["boxes"] if len(runs) == 1 else map(text, (run.name for run in runs)))]
    return NAMES + drawn(charts) + (table(head, rows) if rows else "") if charts else ""
