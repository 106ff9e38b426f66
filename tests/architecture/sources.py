"""What the structure tests look at: the repository's own files, and their syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ds_stage2ab"
# Made by tools, not by people; hidden folders are left out too, except these.
MADE = {"build", "dist", "runs", "__pycache__"}
HIDDEN_BUT_OURS = {".ci"}


def repository_files(suffixes: tuple[str, ...] = ()) -> list[Path]:
    """Files that belong to the repository, sorted; `suffixes` such as (".py",) narrows them."""
    return sorted(path for path in _walk(ROOT) if not suffixes or path.suffix in suffixes)


def _walk(folder: Path) -> Iterator[Path]:
    for entry in folder.iterdir():
        if entry.is_file():
            yield entry
        elif entry.name in HIDDEN_BUT_OURS or not _is_made(entry.name):
            yield from _walk(entry)


def _is_made(folder: str) -> bool:
    return folder in MADE or folder.startswith(".") or folder.endswith(".egg-info")


def package_files() -> list[Path]:
    """The package's modules, sorted."""
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def relative(path: Path) -> str:
    """A path as the messages name it."""
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """`ds_stage2ab/losses/text.py` -> `losses.text`; a package's `__init__.py` -> the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, at any depth, type-checking blocks included.

    `from a.b import c` gives `a.b.c`: c may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"
