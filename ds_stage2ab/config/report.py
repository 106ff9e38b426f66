"""Problems of a config as text: where, which key, what is wrong, the line with a caret, what to do.

Shared by `validate`, `train` and the console script. It only formats: it neither checks nor prints.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence

from ds_stage2ab.config.problems import SET, ArgumentPlace, Place, Problem
from ds_stage2ab.errors import ConfigError, printable

MAX_EXCERPT = 100  # characters of a source line; a prompt may be a long one
_LEAD = 40  # of them before the caret, where a line is longer
_TAB = 4  # columns, the same for the line and for its caret

# User and password in a URL, and the value of a key that looks like a secret (not max_new_tokens).
_SECRETS = re.compile(
    r"""(?<=://)[^/\s@"']+(?=@)"""
    r"""|(?:token|secret|password|passwd|api_?key(?:_env)?)["']?\s*[:=]\s*["']?(?P<value>[^\s"'#,}\]]*[^\s"'#,}\]:])""",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """The text with each secret replaced by as many asterisks, so that columns stay the same."""
    return _SECRETS.sub(_asterisks, text)


def _asterisks(match: re.Match) -> str:
    secret = match["value"] or match[0]
    return match[0][: len(match[0]) - len(secret)] + "*" * len(secret)


def as_block(problem: Problem, sources: Mapping[str, str]) -> str:
    """A problem as a few lines.

    Args:
        problem: what is wrong.
        sources: the text of every file that was read.
    """
    head = f"{problem.where}: {problem.key}" if problem.path else str(problem.where)
    lines = [head, f"  {problem.why}", *excerpt(problem.where, sources), f"  fix: {problem.fix}"]
    return redacted("\n".join(lines))


def excerpt(place: Place, sources: Mapping[str, str]) -> list[str]:
    """The source line of a place and a caret under its column; nothing where there is no such line."""
    if isinstance(place, ArgumentPlace):
        return _with_caret(place.file, place.column, SET)
    lines = sources[place.file].split("\n") if place.file in sources else []
    if not 1 <= place.line <= len(lines) or not lines[place.line - 1].strip():
        return []
    return _with_caret(lines[place.line - 1].rstrip("\r"), place.column, str(place.line))


def _with_caret(line: str, column: int, name: str) -> list[str]:
    start = max(0, column - 1 - _LEAD) if len(line) > MAX_EXCERPT else 0
    before = ("..." if start else "") + "".join(_printable(c) for c in line[start : column - 1])
    behind = "".join(_printable(c) for c in line[column - 1 : start + MAX_EXCERPT])
    cut = "..." if start + MAX_EXCERPT < len(line) else ""
    return [f"{name:>5} | {before}{behind}{cut}", f"{'':>5} | {' ' * _width(before)}^"]


def _printable(c: str) -> str:
    if c == "\t":
        return " " * _TAB
    return printable(c)


def _width(text: str) -> int:
    """Columns of a terminal: Chinese, Japanese and Korean characters take two, combining ones none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def as_error(
    problems: Sequence[Problem], file: str, sources: Mapping[str, str], subject: str = "the config"
) -> ConfigError:
    """All problems of a config, or of another `subject`, in one exception."""
    assert problems, "an error needs a problem"
    if len(problems) == 1:
        only = problems[0]
        why = f"{only.key}: {only.why}" if only.path else only.why
        text = "\n".join([redacted(why), *(redacted(line) for line in excerpt(only.where, sources))])
        return ConfigError(text, where=redacted(str(only.where)), fix=redacted(only.fix))
    blocks = "\n".join(as_block(problem, sources) for problem in problems)
    return ConfigError(f"{subject} has {len(problems)} problems\n{blocks}", where=file)
