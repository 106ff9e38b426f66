"""Problems of a config as data; `report` formats them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem

from ds_stage2ab.errors import ConfigError, printable

SET = "--set"
MAX_SHOWN = 120  # characters of an argument: a prompt may be long, and the key comes first

KeyPath = tuple[str, ...]
"""A key of the config from the root down; entries of a list appear as "0", "1", ..."""


def value_at(values: object, path: KeyPath) -> object:
    """What stands at a key in nested mappings."""
    return reduce(getitem, path, values)


class UnreadableFile(ConfigError):
    """A file named on the command line cannot be opened or is not text."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file, counted from 1 as editors do: `str(place)` is "file:line:column"."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    @property
    def within(self) -> str:
        """The position inside its file, for a message about another place of that file."""
        return f"line {self.line}"

    @property
    def spot(self) -> str:
        """The place without its column."""
        return f"{self.file}:{self.line}"

    @property
    def order(self) -> tuple[int, str, int, int]:
        return 0, self.file, self.line, self.column


class ArgumentPlace(Place):
    """A place in an argument of `--set`: `file` is the argument, `line` its number among them, counted from 1.

    The column appears only where it says more than the argument itself: inside a value, not at its beginning.
    """

    __slots__ = ()

    def __str__(self) -> str:
        inside = self.column > self.file.find("=") + 2  # columns count from 1, and the value follows the `=`
        return f"{SET} {shown(self.file)}" + (f" (column {self.column})" if inside else "")

    @property
    def within(self) -> str:
        return f"column {self.column}"

    @property
    def spot(self) -> str:
        return f"{SET} {shown(self.file)}"

    @property
    def order(self) -> tuple[int, str, int, int]:
        return 1, "", self.line, self.column


def shown(argument: str) -> str:
    """A command-line argument for a message: shortened, with unprintable characters escaped."""
    if len(argument) > MAX_SHOWN:
        argument = argument[: MAX_SHOWN - 3] + "..."
    return printable(argument)


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a config: one for each change that the user has to make.

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
    """Problems sorted as someone going through the files from the top, then the command line, meets them."""
    return sorted(problems, key=lambda p: (p.where.order, p.path))
