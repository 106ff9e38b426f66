"""What is wrong with a config, as data. Nothing here prints: `validate` and the command line report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ds_stage2ab.errors import ConfigError

KeyPath = tuple[str, ...]
"""A key of the config from the root down; entries of a list appear as "0", "1", ..."""


class UnreadableFile(ConfigError):
    """A file named on the command line cannot be opened or is no text."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file, counted from 1 as editors do: `str(place)` is "file:line:column"."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a config: one of these per thing that the user has to change.

    `why` continues "<path>: " and ends without a full stop; `fix` is an instruction, never empty.
    `path` is empty for a problem of the file as a whole, such as a syntax error.
    """

    path: KeyPath
    why: str
    fix: str
    where: Place

    @property
    def key(self) -> str:
        return dotted(self.path)


def dotted(path: KeyPath) -> str:
    """The key path as users write it: ("training", "seed") -> "training.seed"."""
    return ".".join(path)


def in_reading_order(problems: Sequence[Problem]) -> list[Problem]:
    """Problems sorted as someone going through the files from the top meets them."""
    return sorted(problems, key=lambda p: (p.where.file, p.where.line, p.where.column, p.path))


def as_block(problem: Problem) -> str:
    """Three lines: where and which key, what is wrong, what to do."""
    head = f"{problem.where}: {problem.key}" if problem.path else str(problem.where)
    return f"{head}\n  {problem.why}\n  fix: {problem.fix}"


def as_error(problems: Sequence[Problem], file: str) -> ConfigError:
    """All problems of a config in one exception."""
    assert problems, "an error needs a problem"
    if len(problems) == 1:
        only = problems[0]
        why = f"{only.key}: {only.why}" if only.path else only.why
        return ConfigError(why, where=str(only.where), fix=only.fix)
    blocks = "\n".join(as_block(problem) for problem in problems)
    return ConfigError(f"the config has {len(problems)} problems\n{blocks}", where=file)
