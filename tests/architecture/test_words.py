"""The names and comments of package and tests use the field's words: a few of our own are refused."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.sources import ROOT, package_files, relative

BANNED = (
    *("whoever", "keeper", "household", "lockstep", "outlook", "guilty", "lend", "lends", "lent", "anew"),
    *("stand_in", "zero_weight", "own_fault", "agree_on_failure", "from_first", "shake_hands"),
)
"""Snake case; a name in camel case and a hyphen count as the same."""
PATTERN = re.compile(rf"(?<![a-z])(?:{'|'.join(BANNED)})s?(?![a-z])", re.IGNORECASE)
HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def banned_words(source: str) -> Iterator[tuple[int, str]]:
    """(line, banned word) of each comment, docstring line and name; messages are left out."""
    seen = [*_names_and_comments(source), *_docstring_lines(source)]
    for line, text in sorted(seen):
        plain = HUMP.sub("_", text).replace("-", "_")
        yield from ((line, match.group().lower()) for match in PATTERN.finditer(plain))


def _names_and_comments(source: str) -> Iterator[tuple[int, str]]:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.COMMENT):
            yield token.start[0], token.string


def _docstring_lines(source: str) -> Iterator[tuple[int, str]]:
    """Lines of bare strings: docstrings, and those under a constant."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from ((number, lines[number - 1]) for number in range(node.lineno, node.end_lineno + 1))


def test_no_banned_word():
    """In the package and in its tests, this file left out."""
    files = [*package_files(), *(path for path in sorted((ROOT / "tests").rglob("*.py")) if path != Path(__file__))]
    sources = ((relative(path), path.read_text(encoding="utf-8")) for path in files)
    found = [f"{name}:{line}: {word}" for name, source in sources for line, word in banned_words(source)]
    assert found == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("# the keeper of it\nx = 1", [(1, "keeper")]),
        ('x = 1\n"""Runs a\nstand-in for whoever waits."""', [(3, "stand_in"), (3, "whoever")]),
        ("class Keeper:\n    def lent(self): ...", [(1, "keeper"), (2, "lent")]),
        ("f(zero_weight=1)\nraise OwnFault", [(1, "zero_weight"), (2, "own_fault")]),
        ('raise ValueError("whoever reads this")  # a message', []),
        ("silent = equivalent  # what the two stand in", []),
    ],
)
def test_a_banned_word_is_found(source: str, found: list[tuple[int, str]]):
    assert list(banned_words(source)) == found
