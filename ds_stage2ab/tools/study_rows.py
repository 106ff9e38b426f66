"""What the study trains, as data: rows, seeds and learning rates of a TOML file -> runs in their order.

A run is one row with one seed and one learning rate. The first seed runs every rate; by then each row has a best one,
and the other seeds run that alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_stage2ab.errors import ConfigError

F1 = "eval/f1"
SELECTION, REPORT, SEALED = "selection", "report", "sealed"
"""Halves of the held-out scenes: to choose by, and to report on; and those of another seed, opened at the end."""
PLATEAU = "plateau"
"""Where rows start that name no other start."""
START = "the start"
"""How the page calls the domain's checkpoint, before any round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A kind of scenes. `make` and `sealed`: a module and its words, which write them, and those opened at the end;
    `start`: a checkpoint."""

    name: str
    config: Path
    start: Path
    make: tuple[str, ...]
    sealed: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plateau:
    """Rounds of `steps` until one gains less F1 than `gain`, or `rounds` of them."""

    steps: int
    gain: float
    rounds: int
    set: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A further checkpoint to start from, trained once from the plateau."""

    name: str
    steps: int
    set: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table. `set`: words of `--set`; `seconds_of`: the row whose training time it takes."""

    name: str
    label: str
    set: tuple[str, ...]
    start: str = PLATEAU
    seconds_of: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """The whole file."""

    steps: int
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    # factors of the config's learning rate
    plateau: Plateau
    domains: tuple[Domain, ...]
    starts: tuple[Start, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run: a row with a learning rate and a seed."""

    row: Row
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """That of its folder, as `mix-50.rate-0.3.seed-42`."""
        return f"{self.row.name}.rate-{self.rate:g}.seed-{self.seed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a finished run measured."""

    run: Run
    steps: int
    figures: Mapping[str, Mapping[str, float]]
    # part of the held-out scenes -> what `ds-stage2ab evaluate` says of it
    seconds: Mapping[str, float]
    # channel -> median of its steps
    b_ratio: float


def read_study(path: Path) -> Study:
    """The TOML file at `path`.

    Raises:
        ConfigError: it is not TOML, a key is missing or unknown, or a row names a row or start that there is not.
    """
    try:
        parts = tomllib.loads(path.read_text(encoding="utf-8"))
        study = Study(
            steps=parts.pop("steps"),
            seeds=tuple(parts.pop("seeds")),
            rates=tuple(parts.pop("rates")),
            plateau=Plateau(**_frozen(parts.pop("plateau"))),
            domains=tuple(_domain(**_frozen(one)) for one in parts.pop("domains")),
            starts=tuple(Start(**_frozen(one)) for one in parts.pop("starts")),
            rows=tuple(Row(**_frozen(one)) for one in parts.pop("rows")),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"is no study: {error}", where=str(path), fix="see configs/study/rows.toml") from error
    rows, starts = {row.name for row in study.rows}, {PLATEAU, *(start.name for start in study.starts)}
    unknown = [*parts, *(row.start for row in study.rows if row.start not in starts)]
    unknown += [row.seconds_of for row in study.rows if row.seconds_of and row.seconds_of not in rows]
    if unknown:
        raise ConfigError(f"nothing here is called {unknown[0]}", where=str(path), fix="correct the name, or define it")
    return study


def _frozen(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in part.items()}


def _domain(*, config: str, start: str, **rest: Any) -> Domain:
    return Domain(config=Path(config), start=Path(start), **rest)


def best_rate(results: Sequence[Result], row: Row, first_seed: int) -> float | None:
    """The rate whose F1 on the selection half is highest with the first seed; None: it has run with none."""
    tried = [one for one in results if one.run.row == row and one.run.seed == first_seed]
    best = max(tried, key=lambda one: one.figures[SELECTION][F1], default=None)
    return best and best.run.rate


def runs_of(study: Study, row: Row, seed: int, results: Sequence[Result]) -> Iterator[Run]:
    """The runs of a row with one seed, given what has run: every rate with the first seed, then the best alone."""
    best = None if seed == study.seeds[0] else best_rate(results, row, study.seeds[0])
    for rate in study.rates if best is None else (best,):
        yield Run(row=row, rate=rate, seed=seed)


def all_runs(study: Study) -> Iterator[Run]:
    """Every run that there can be, a row after the other."""
    return (Run(row=row, rate=rate, seed=seed) for row in study.rows for rate in study.rates for seed in study.seeds)


def chosen_results(study: Study, row: Row, results: Sequence[Result]) -> list[Result]:
    """A row's results at the rate that was best on the selection half, in order of seeds."""
    rate = best_rate(results, row, study.seeds[0])
    mine = [one for one in results if one.run.row == row and one.run.rate == rate]
    return sorted(mine, key=lambda one: study.seeds.index(one.run.seed))


def steps_of(study: Study, row: Row, steps: int, seed: int, results: Sequence[Result]) -> int | None:
    """Steps of a run: `steps`, or as many as take the time of another row's run with the same seed, by the times of
    that run's own A and B steps. None: that has not run."""
    if not row.seconds_of:
        return steps
    other = next(one for one in study.rows if one.name == row.seconds_of)
    for one in chosen_results(study, other, results):
        if one.run.seed == seed:
            b_steps = int(one.steps * one.b_ratio)
            seconds = (one.steps - b_steps) * one.seconds["A"] + b_steps * one.seconds["B"]
            return round(seconds / one.seconds["A"])
    return None
