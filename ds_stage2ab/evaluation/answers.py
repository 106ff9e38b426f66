"""The answers of an evaluation as JSON lines, one for each held-out image, with scores and truth; and read again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from ds_stage2ab.carriers import Finish, Record, Truth
from ds_stage2ab.config.batch import counted
from ds_stage2ab.errors import DataError
from ds_stage2ab.evaluation.f1 import ImageScore

if TYPE_CHECKING:
    from ds_stage2ab.evaluation.detected import Detected

FOLDER = "evaluations"
NAME = "step-*.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One line."""

    id: str
    image: Path
    width: int
    height: int
    predicted: tuple[Truth, ...]
    scores: tuple[float, ...] | None
    # None: not known
    truth: tuple[Truth, ...]
    pairs: tuple[tuple[int, int], ...]
    state: str
    finish: str
    dropped: tuple[str, ...]
    text: str


ENDS = {"stop": "", "length": "cut at the token limit", "repeat": "ended as it repeated itself"}


def how_it_ended(state: str, finish: str, dropped: Sequence[str]) -> list[str]:
    """What is to be said of an answer beside its objects, for people; nothing of a complete one."""
    words = []
    if dropped:
        words.append(f"{counted(len(dropped), 'value')} dropped ({', '.join(sorted(set(dropped)))})")
    if state != "ok":
        words.append(state.replace("_", " "))
    return [*words, *([ENDS[finish]] if ENDS[finish] else [])]


def prediction_line(record: Record, found: Detected) -> dict[str, Any]:
    """One line, with boxes in bins, as `ds-stage2ab export coco` reads it.

    Its text is the answer; bytes that are no UTF-8 are replaced, and of added tokens coordinates alone are written.
    """
    scores = [None] * len(found.predicted) if found.scores is None else found.scores
    return {
        "id": record.id,
        "image": str(record.image),
        "width": record.width,
        "height": record.height,
        "objects": [{**_object(one), "score": score} for one, score in zip(found.predicted, scores, strict=True)],
        "state": found.state,
        "finish": found.finish,
        "dropped": list(found.dropped),
        "text": found.text,
    }


def answer_line(record: Record, found: Detected, score: ImageScore) -> dict[str, Any]:
    """The same of a held-out image, with its truth.

    Args:
        score: whose pairs (predicted, true) have the same description and an IoU of 0.5 at least.
    """
    truth = [_object(one) for one in record.objects]
    return {**prediction_line(record, found), "truth": truth, "pairs": [list(pair) for pair in score.pairs]}


def _object(one: Truth) -> dict[str, Any]:
    return {"desc": one.desc, "bbox_2d": list(one.box)}


def save_answers(folder: Path, step: int, lines: Iterable[dict[str, Any]]) -> Path:
    """Write `step-000100.jsonl`, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step-{step:06d}.jsonl"
    partial = file.with_suffix(".partial")
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as stream:
        stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    os.replace(partial, file)
    return file


def answer_files(run: Path) -> dict[int, Path]:
    """Finished steps -> the file of that evaluation, in order."""
    return {int(file.stem.removeprefix("step-")): file for file in sorted((run / FOLDER).glob(NAME))}


def read_answers(file: Path, limit: int | None = None) -> list[Answer]:
    """The lines of a file, or the first of them.

    Raises:
        DataError: a line is not one that `answer_line` gives.
    """
    with file.open(encoding="utf-8") as stream:
        return list(_answers(file, islice(stream, limit)))


def _answers(file: Path, lines: Iterable[str]) -> Iterator[Answer]:
    for number, line in enumerate(lines, start=1):
        try:
            yield _answer(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"not a line of an evaluation ({type(error).__name__}: {error})"
            fix = "delete the line, or evaluate again"
            raise DataError(why, where=f"{file}:{number}", fix=fix) from error


def _answer(values: dict[str, Any]) -> Answer:
    scores = tuple(one["score"] for one in values["objects"])
    if values["finish"] not in get_args(Finish):
        raise ValueError(f"{values['finish']!r} is no end of an answer")
    return Answer(
        id=str(values["id"]),
        image=Path(values["image"]),
        width=int(values["width"]),
        height=int(values["height"]),
        predicted=tuple(map(_truth, values["objects"])),
        scores=None if None in scores else tuple(map(float, scores)),
        truth=tuple(map(_truth, values["truth"])),
        pairs=tuple((int(p), int(g)) for p, g in values["pairs"]),
        state=str(values["state"]),
        finish=str(values["finish"]),
        dropped=tuple(values["dropped"]),
        text=str(values["text"]),
    )


def _truth(values: dict[str, Any]) -> Truth:
    x1, y1, x2, y2 = map(int, values["bbox_2d"])
    return Truth(desc=str(values["desc"]), box=(x1, y1, x2, y2))
