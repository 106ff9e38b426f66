"""Files, functions and nesting stay small enough to be read at one sitting."""

import ast
import textwrap
from collections.abc import Iterator

import pytest

from tests.architecture.sources import PACKAGE, package_files, parse, relative, repository_files

MAX_FILE_LINES = 350
MAX_TOP_FILES = 10
MAX_FUNCTION_LINES = 60
MAX_NESTING = 4
# "path" or "path:function" of what may be larger. Starts empty and only shrinks.
EXCEPTIONS: frozenset[str] = frozenset()

SOURCE_SUFFIXES = (".py", ".cpp", ".h", ".sh")
BLOCKS = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.With, ast.AsyncWith, ast.Try, ast.TryStar, ast.Match)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def too_large_functions(tree: ast.AST, where: str) -> list[str]:
    """Findings about every function of a tree, nested ones and methods too."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, FUNCTIONS):
            continue
        name = f"{where}:{node.name}"
        lines = node.end_lineno - node.lineno + 1
        depth = max(_depths(node.body))
        if lines > MAX_FUNCTION_LINES:
            found.append(f"{name}: {lines} lines, at most {MAX_FUNCTION_LINES}")
        if depth > MAX_NESTING:
            found.append(f"{name}: nested {depth} deep, at most {MAX_NESTING}")
    return [finding for finding in found if finding.split(": ")[0] not in EXCEPTIONS]


def _depths(body: list[ast.stmt]) -> Iterator[int]:
    """Depth of each statement below the function: 0 for its own body, 1 inside one `if`, ... An `elif` adds none."""
    yield 0
    for statement in body:
        if not isinstance(statement, BLOCKS):
            continue
        for inner in _inner_bodies(statement):
            yield from (depth + 1 for depth in _depths(inner))
        if isinstance(statement, ast.If) and statement.orelse:
            is_elif = len(statement.orelse) == 1 and isinstance(statement.orelse[0], ast.If)
            yield from _depths(statement.orelse) if is_elif else (depth + 1 for depth in _depths(statement.orelse))


def _inner_bodies(block: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The bodies of one block, without the else part of an `if`."""
    if isinstance(block, ast.Match):
        yield from (case.body for case in block.cases)
        return
    yield block.body
    if isinstance(block, (ast.Try, ast.TryStar)):
        yield from (handler.body for handler in block.handlers)
        yield block.finalbody
    if not isinstance(block, (ast.If, ast.With, ast.AsyncWith)):
        yield block.orelse


def too_long(text: str, where: str) -> list[str]:
    lines = text.count("\n")
    if lines <= MAX_FILE_LINES or where in EXCEPTIONS:
        return []
    return [f"{where}: {lines} lines, at most {MAX_FILE_LINES}"]


def test_files_are_short():
    files = repository_files(SOURCE_SUFFIXES)
    found = [finding for path in files for finding in too_long(path.read_text(encoding="utf-8"), relative(path))]
    assert not found, "\n".join(found)


def test_the_package_itself_holds_few_files():
    files = [path for path in package_files() if path.parent == PACKAGE]
    assert len(files) <= MAX_TOP_FILES, "a file belongs into the folder of its role"


def test_functions_are_short_and_flat():
    files = repository_files((".py",))
    found = [finding for path in files for finding in too_large_functions(parse(path), relative(path))]
    assert not found, "\n".join(found)


def test_the_loop_is_a_table_of_contents():
    functions = {node.name: node for node in ast.walk(parse(PACKAGE / "train.py")) if isinstance(node, FUNCTIONS)}
    loop = functions["train"]
    assert loop.end_lineno - loop.lineno + 1 <= MAX_FUNCTION_LINES


def test_a_long_file_is_found():
    assert too_long("x\n" * 351, "a.py") == ["a.py: 351 lines, at most 350"]
    assert too_long("x\n" * 350, "a.py") == []


def test_a_long_function_is_found():
    # one line of def + 60 of body = 61
    tree = ast.parse("class C:\n    def long(self):\n" + "        x = 1\n" * 60)
    assert too_large_functions(tree, "a.py") == ["a.py:long: 61 lines, at most 60"]


@pytest.mark.parametrize(
    ("body", "depth"),
    [
        ("pass", 0),
        ("if a:\n  for b in c:\n    while d:\n      with e:\n        pass", 4),
        ("if a:\n  for b in c:\n    while d:\n      with e:\n        if f:\n          pass", 5),
        ("if a:\n  pass\nelif b:\n  pass\nelif c:\n  if d:\n    pass", 2),
        ("if a:\n  pass\nelse:\n  if b:\n    if c:\n      pass\n  x = 1", 3),
        ("try:\n  pass\nexcept E:\n  if a:\n    pass\nfinally:\n  pass", 2),
        ("for a in b:\n  pass\nelse:\n  if c:\n    pass", 2),
        ("match a:\n  case 1:\n    if b:\n      pass", 2),
    ],
)
def test_nesting_is_counted(body: str, depth: int):
    tree = ast.parse("def f():\n" + textwrap.indent(body, "  "))
    assert max(_depths(tree.body[0].body)) == depth
    assert bool(too_large_functions(tree, "a.py")) == (depth > MAX_NESTING)
