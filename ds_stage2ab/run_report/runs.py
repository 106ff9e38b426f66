"""What a run folder holds, read for its report; what is missing is left out of the report, and nothing is invented."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_stage2ab.engine.run_folder import ATTEMPTS_FILE, CONFIG_FILE, ENVIRONMENT_FILE, ORIGINS_FILE, WARNINGS_FILE
from ds_stage2ab.errors import DataError
from ds_stage2ab.evaluation.answers import Answer, answer_files, read_answers
from ds_stage2ab.metrics.journal import FILE_NAME, History, read_history


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """One run. Whatever its folder does not have is empty."""

    name: str
    # no two of a report are the same
    history: History
    config: dict[str, Any]
    # resolved
    origins: dict[str, str]
    # dotted key -> where its value came from
    environment: dict[str, Any]
    attempts: tuple[dict[str, Any], ...]
    # one for each start
    warnings: tuple[str, ...]
    # lines of warnings.log
    evaluations: dict[int, Path]
    # finished steps -> answers
    last_answers: tuple[Answer, ...]
    # those of the newest evaluation


def read_runs(folders: Sequence[Path]) -> list[RunFiles]:
    """The runs of a report; those of one name get their folder's.

    Raises:
        DataError: a file of a run folder is damaged.
    """
    names = [folder.resolve().name for folder in folders]
    unique = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
    return [_read(name, folder) for name, folder in zip(unique, folders, strict=True)]


def _read(name: str, folder: Path) -> RunFiles:
    evaluations = answer_files(folder)
    return RunFiles(
        name=name,
        history=read_history(folder / FILE_NAME),
        config=mapping_of(folder / CONFIG_FILE),
        origins=mapping_of(folder / ORIGINS_FILE),
        environment=mapping_of(folder / ENVIRONMENT_FILE),
        attempts=attempts_of(folder),
        warnings=tuple(_lines(folder / WARNINGS_FILE)),
        evaluations=evaluations,
        last_answers=tuple(read_answers(evaluations[max(evaluations)])) if evaluations else (),
    )


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []


def attempts_of(folder: Path) -> tuple[dict[str, Any], ...]:
    """A mapping for each start of the run."""
    file = folder / ATTEMPTS_FILE
    return tuple(_parsed(file, line) for line in _lines(file))


def mapping_of(file: Path) -> dict[str, Any]:
    """A file of the run folder; empty if there is none."""
    return _parsed(file, file.read_text(encoding="utf-8", errors="replace")) if file.exists() else {}


def _parsed(file: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"is no JSON: {error}", where=str(file), fix="move the file away") from error
    if not isinstance(found, dict):
        raise DataError("is no JSON object", where=str(file), fix="move the file away")
    return found
