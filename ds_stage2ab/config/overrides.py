"""`--set KEY=VALUE` of the command line -> a mapping to merge over a config file.

Only the form of the arguments is checked here; keys and values are checked with the file's, after merging.
"""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

from ds_stage2ab.config.document import EXTENDS, merge
from ds_stage2ab.config.nodes import MAX_DEPTH, Entry, Node, Unreadable, parse_value
from ds_stage2ab.config.problems import MAX_SHOWN, SET, ArgumentPlace, KeyPath, Place, Problem, shown
from ds_stage2ab.config.report import as_error

_HELP = (
    "set a key of the config, over the file: training.seed=43, model.freeze=[vision], data.validation=null. VALUE is "
    "read as in the file, in one line; put the argument in quotes if it holds blanks or brackets. May be given "
    "several times: mappings merge, anything else replaces, and the last of several for one key wins"
)
_EXAMPLE = f"write {SET} KEY=VALUE, for example {SET} training.seed=43"
_BRACKETS = "close each bracket and quote, and put the whole argument in single quotes for the shell"


def add_set_option(parser: argparse.ArgumentParser) -> None:
    """Add the option; the arguments arrive as the list `overrides`, for `read_overrides`."""
    parser.add_argument(SET, action="append", default=[], dest="overrides", metavar="KEY=VALUE", help=_HELP)


def read_overrides(arguments: Sequence[str]) -> Node | None:
    """The arguments of all `--set` as one mapping, the later ones merged over the earlier; None without any.

    Raises:
        ConfigError: some are not of the form KEY=VALUE, or a value is not YAML in one line.
    """
    roots, problems = [], []
    for number, argument in enumerate(arguments, start=1):
        try:
            roots.append(_read(argument, number))
        except Unreadable as error:
            problems.append(error.problem)
    if problems:
        raise as_error(problems, "command line", {}, SET)
    return reduce(merge, roots) if roots else None


def _read(argument: str, number: int) -> Node:
    """One argument as nested mappings down to its value."""
    start = ArgumentPlace(argument, number, 1)
    key, equals, value = argument.partition("=")
    if not equals:
        raise Unreadable(Problem((), "has no `=` between a key and a value", _EXAMPLE, start))
    path = _path(key, start)
    # Blanks in place of the key, so that columns count from the beginning of the argument.
    text = " " * len(key + equals) + value
    try:
        node = parse_value(text, lambda _, column: ArgumentPlace(argument, number, column), _other_form(key, value))
    except Unreadable as error:
        raise Unreadable(_of_the_argument(error.problem, path, argument)) from error
    if len(path) + node.depth > MAX_DEPTH:
        raise Unreadable(Problem((), f"leads more than {MAX_DEPTH} mappings deep", _EXAMPLE, start))
    for name in reversed(path):
        node = Node(start, "a mapping", entries={name: Entry(start, node)}, size=node.size + 1, depth=node.depth + 1)
    return node


def _path(key: str, where: Place) -> KeyPath:
    path = tuple(key.split("."))
    if not key.strip():
        why = "has no key before the `=`"
    elif any(c.isspace() or not c.isprintable() for c in key):
        why = "has a blank or an unprintable character in its key"
    elif not all(path):
        why = f"has an empty name in its key {key}"
    elif path[0] == EXTENDS:
        why = f"cannot set `{EXTENDS}`: which files a config builds on stands in the config"
        raise Unreadable(Problem((), why, f"write a file that extends both, or {SET} the keys themselves", where))
    else:
        return path
    raise Unreadable(Problem((), why, _EXAMPLE, where))


def _of_the_argument(problem: Problem, path: KeyPath, argument: str) -> Problem:
    """Reword a problem of the value for an argument instead of a file."""
    if problem.path:
        return replace(problem, path=(*path, *problem.path))
    if problem.why.startswith("is not YAML") and problem.where.column > len(argument):
        why = "ends before every bracket and quote is closed"
        return replace(problem, why=why, where=ArgumentPlace(argument, problem.where.line, 1))
    return problem


def _other_form(key: str, value: str) -> str:
    """The remedy for a value that YAML does not read as one value in one line."""
    if value.lstrip()[:1] in ("[", "{", "'", '"'):
        return _BRACKETS
    text = shlex.quote(f"{key}={json.dumps(value, ensure_ascii=False)}")
    if len(text) > MAX_SHOWN:
        text = shlex.quote(f'{key}="..."')
    return f"write a list as [a, b], a mapping as {{a: 1}}, and this as text: {SET} {shown(text)}"
