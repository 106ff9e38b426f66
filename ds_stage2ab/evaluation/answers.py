"""The answers of an evaluation as JSON lines, one for each held-out image, with scores and truth."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.evaluation.f1 import ImageScore


def answer_line(
    record: Record,
    *,
    predicted: Sequence[Truth],
    scores: Sequence[float] | None,
    score: ImageScore,
    text: str,
    state: str,
    finish: str,
    dropped: Sequence[str],
) -> dict[str, Any]:
    """One line, with boxes in bins, as `ds-stage2ab export coco` reads it.

    Args:
        scores: of each predicted object; None: not known.
        score: whose pairs (predicted, true) have the same description and an IoU of 0.5 at least.
        text: the answer; bytes that are no UTF-8 are replaced, and of added tokens coordinates alone are written.
        state: one of `matching.parse.STATES`.
        finish: how the answer ended: `stop`, `length` or `repeat`.
        dropped: the reason for each dropped value.
    """
    known = [None] * len(predicted) if scores is None else scores
    return {
        "id": record.id,
        "image": str(record.image),
        "width": record.width,
        "height": record.height,
        "objects": [{**_object(one), "score": value} for one, value in zip(predicted, known, strict=True)],
        "truth": [_object(one) for one in record.objects],
        "pairs": [list(pair) for pair in score.pairs],
        "state": state,
        "finish": finish,
        "dropped": list(dropped),
        "text": text,
    }


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
