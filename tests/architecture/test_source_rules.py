"""House rules that no linter knows. Each is a function from source to findings, tried on a bad example too."""

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.sources import PACKAGE, ROOT, module_of, package_files, parse, relative, repository_files

# Modules that speak to a person; every module with a `__main__` part may too.
MAY_PRINT = {"cli", "__main__", "validate", "train", "launch.command"}
BROAD = {"Exception", "BaseException"}
SKIPS = {"skip", "skipif", "xfail", "importorskip", "SkipTest"}
HERE = Path(__file__)


# --- findings ---------------------------------------------------------------------------------------------------


def broad_excepts(tree: ast.AST) -> Iterator[int]:
    """Lines of handlers that take everything and do not end by raising."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler) and _names(node.type) & BROAD and not _ends_by_raising(node):
            yield node.lineno


def _names(caught: ast.expr | None) -> set[str]:
    if caught is None:
        return {"BaseException"}
    return {node.id for node in ast.walk(caught) if isinstance(node, ast.Name)}


def _ends_by_raising(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.body[-1], ast.Raise)


def prints(tree: ast.Module, module: str) -> Iterator[int]:
    """Lines of `print` in a module that no person calls."""
    if module in MAY_PRINT or _is_entry(tree):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            yield node.lineno


def _is_entry(tree: ast.Module) -> bool:
    tests = (ast.unparse(node.test) for node in tree.body if isinstance(node, ast.If))
    return any(test == "__name__ == '__main__'" for test in tests)


def hidden_defaults(tree: ast.AST) -> Iterator[int]:
    """Lines of `getattr(x, "name", default)` and `x.get("key", default)`: a default that the schema does not know."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        literals = [isinstance(argument, ast.Constant) and isinstance(argument.value, str) for argument in node.args]
        is_getattr = isinstance(node.func, ast.Name) and node.func.id == "getattr" and len(node.args) == 3
        is_get = isinstance(node.func, ast.Attribute) and node.func.attr == "get" and len(node.args) == 2
        of_environment = is_get and ast.unparse(node.func.value) == "os.environ"
        if (is_getattr and literals[1]) or (is_get and literals[0] and not of_environment):
            yield node.lineno


def section_defaults(tree: ast.Module) -> Iterator[int]:
    """Lines of class fields with a value."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            yield from (item.lineno for item in node.body if isinstance(item, ast.AnnAssign) and item.value is not None)


def skips(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        is_call = isinstance(node, ast.Attribute) and node.attr in SKIPS
        is_import = isinstance(node, ast.ImportFrom) and bool({alias.name for alias in node.names} & SKIPS)
        if is_import or (is_call and ast.unparse(node.value).startswith(("pytest", "mark", "unittest"))):
            yield node.lineno


def not_ascii(text: str) -> Iterator[int]:
    return (number for number, line in enumerate(text.splitlines(), start=1) if not line.isascii())


def taken_names(names: set[str]) -> set[str]:
    """Which of these would hide a standard-library module or a dependency from a script in their folder."""
    return names & (set(sys.stdlib_module_names) | _dependency_modules())


def _dependency_modules() -> set[str]:
    """Top-level modules of everything that constraints.txt pins and this environment has."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {_plain(line.split("==")[0]) for line in lines if "==" in line}
    modules = importlib.metadata.packages_distributions()
    return {module for module, owners in modules.items() if pinned & {_plain(owner) for owner in owners}}


def _plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def prose_of_the_making(text: str) -> Iterator[str]:
    """What means something to the writers of a change only: their meetings, trackers and machines' folders."""
    yield from (match.group() for pattern in MAKING for match in re.finditer(pattern, text, re.IGNORECASE))


MAKING = (
    r"\b(this|an?|another|next|last|earlier|previous|later|my|our) session\b",
    r"\bissues? (#?\d+|show)\b",
    r"(?<![\w.:/])\.\./shared\b|\bshared/design\b",
    r"(?<![\w.:/~*])/(work|root|opt|mnt|Users)/\w+",
    r"\bcontract,? (section|\d)",
)

# --- the repository ---------------------------------------------------------------------------------------------


def over_package(finder) -> list[str]:
    """Runs a finder over every module of the package: "path:line" of each finding."""
    return [f"{relative(path)}:{line}" for path in package_files() for line in finder(parse(path), module_of(path))]


def test_no_broad_except():
    files = repository_files((".py",))
    assert [f"{relative(path)}:{line}" for path in files for line in broad_excepts(parse(path))] == []


def test_only_entry_modules_print():
    assert over_package(prints) == []


def test_no_default_outside_the_schema():
    found = over_package(lambda tree, module: () if module.startswith("config") else hidden_defaults(tree))
    assert found == []
    assert list(section_defaults(parse(PACKAGE / "config" / "sections.py"))) == []


def test_no_test_skips():
    files = [path for path in repository_files((".py",)) if "tests" in path.parts]
    assert [f"{relative(path)}:{line}" for path in files for line in skips(parse(path))] == []


def test_code_is_ascii():
    files = repository_files((".py", ".cpp", ".h", ".toml", ".yaml", ".sh"))
    found = [f"{relative(path)}:{line}" for path in files for line in not_ascii(path.read_text(encoding="utf-8"))]
    assert found == []


def test_package_init_files_are_empty():
    """All but that of `ops`, whose functions are public names."""
    files = [path for path in package_files() if path.name == "__init__.py"]
    inner = [path for path in files if path.parent not in (PACKAGE, PACKAGE / "ops")]
    assert [relative(path) for path in inner if path.read_text(encoding="utf-8").strip()] == []


def test_every_package_folder_has_an_init_file():
    folders = {path.parent for path in package_files()}
    assert [relative(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_no_drawer_for_odds_and_ends():
    odd = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [relative(path) for path in repository_files((".py",)) if path.name in odd] == []


def test_no_module_hides_another():
    """The launcher runs ds_stage2ab/train.py as a script: its folder comes first on sys.path."""
    names = {entry.stem for entry in PACKAGE.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").is_file()}
    assert taken_names(names) == set()


def test_text_speaks_of_the_software_alone():
    texts = {
        relative(path): path.read_text(encoding="utf-8")
        for path in repository_files((".py", ".md", ".yaml", ".toml", ".txt", ".json", ".cpp", ".sh", ""))
        if path != HERE and "assets" not in path.parts
    }
    found = {name: list(prose_of_the_making(text)) for name, text in texts.items()}
    assert {name: words for name, words in found.items() if words} == {}


# --- each rule can fail -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "lines"),
    [
        ("except Exception:\n    x = 1", [3]),
        ("except:\n    x = 1", [3]),
        ("except (ValueError, BaseException) as e:\n    log(e)", [3]),
        ("except Exception as e:\n    note(e)\n    raise", []),
        ("except ValueError:\n    x = 1", []),
    ],
)
def test_a_broad_except_is_found(body: str, lines: list[int]):
    assert list(broad_excepts(ast.parse(f"try:\n    f()\n{body}"))) == lines


def test_a_print_is_found():
    line = "print(1)"
    entry = "if __name__ == '__main__':\n    print(1)"
    assert list(prints(ast.parse(line), "losses.text")) == [1]
    assert list(prints(ast.parse(line), "cli")) == []
    assert list(prints(ast.parse(entry), "data.digits")) == []


@pytest.mark.parametrize("line", ['getattr(x, "beta", 0.05)', 'config.get("beta", 0.05)', 'f(a["b"].get("c", None))'])
def test_a_hidden_default_is_found(line: str):
    assert list(hidden_defaults(ast.parse(line))) == [1]


@pytest.mark.parametrize(
    "line",
    ['getattr(x, "beta")', "getattr(x, name)", "counts.get(key, 0)", 'd.get("beta")', 'os.environ.get("RANK", "0")'],
)
def test_an_open_default_is_not(line: str):
    assert list(hidden_defaults(ast.parse(line))) == []


def test_a_default_in_a_section_is_found():
    assert list(section_defaults(ast.parse("class S:\n    a: int\n    b: int = 1\n    c: list = field()"))) == [3, 4]


@pytest.mark.parametrize(
    "line",
    [
        "pytest.skip('x')",
        "@pytest.mark.skipif(True)\ndef t(): ...",
        "@mark.xfail\ndef t(): ...",
        "pytest.importorskip('torch')",
        "from pytest import skip",
    ],
)
def test_a_skip_is_found(line: str):
    assert len(list(skips(ast.parse(line)))) == 1


def test_a_letter_outside_ascii_is_found():
    assert list(not_ascii("a\n# caf\u00e9\n")) == [2]


def test_a_taken_name_is_found():
    assert taken_names({"copy", "types", "deepspeed", "yaml", "plan"}) >= {"copy", "types", "deepspeed"}
    assert "plan" not in taken_names({"plan"})


@pytest.mark.parametrize(
    "text",
    ["as decided in an earlier session", "see issue 12", "see ../shared/x", "as /work/main says", "contract section 5"],
)
def test_prose_of_the_making_is_found(text: str):
    assert list(prose_of_the_making(text))


@pytest.mark.parametrize(
    "text",
    ['@pytest.fixture(scope="session")', "a requests.Session per server", "network/root/x", "https://x.org/work/x"],
)
def test_ordinary_prose_is_not(text: str):
    assert list(prose_of_the_making(text)) == []
