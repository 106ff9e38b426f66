"""Who may import whom: every arrow points strictly down. The table in docs/architecture.md is this one."""

import ast

import pytest

from tests.architecture.sources import imported_names, module_of, package_files, parse

# From the bottom up; a module imports from lines above its own only, and from its own folder.
LAYERS = (
    ("carriers", "errors", "ops", "schedule"),
    ("codec", "config", "model_folder", "packs", "runtime"),
    ("detector_file", "losses", "matching", "metrics", "pages", "plan", "validate"),
    ("data", "engine", "preflight", "rollout", "tools"),
    ("channels", "data_report", "evaluation", "formats", "launch", "rollout.server"),
    ("run_report",),
    ("assemble", "predict", "simulation"),
    ("cli",),
    ("__main__", "train"),
)
LAYER_OF = {unit: layer for layer, units in enumerate(LAYERS) for unit in units}
# The package itself holds the version alone and lies below everything.
PACKAGE_LAYER = -1


def unit_of(module: str) -> str:
    """A module's folder, or the module itself where it stands alone: `losses.text` -> `losses`."""
    first, *rest = module.split(".")
    nested = f"{first}.{rest[0]}" if rest else first
    return nested if nested in LAYER_OF else first


def upward_imports(tree: ast.AST, module: str) -> list[str]:
    """Findings about the imports of one module of the package."""
    unit = unit_of(module)
    found = []
    for line, name in imported_names(tree):
        if not name.startswith("ds_stage2ab"):
            continue
        target = _imported_unit(name)
        layer = LAYER_OF[target] if target else PACKAGE_LAYER
        if target != unit and layer >= LAYER_OF[unit]:
            found.append(f"{module}:{line}: {unit} (layer {LAYER_OF[unit]}) imports {target} (layer {layer})")
    return found


def _imported_unit(name: str) -> str:
    """`ds_stage2ab.losses.text.f` -> `losses`; `ds_stage2ab` and what its `__init__` defines -> ``."""
    module = name.removeprefix("ds_stage2ab").removeprefix(".")
    return "" if module.startswith("__version") else unit_of(module)


def modules() -> dict[str, ast.Module]:
    return {module_of(path): parse(path) for path in package_files()}


def test_every_module_has_a_layer():
    unknown = {unit_of(module) for module in modules() if module} - set(LAYER_OF)
    assert not unknown, f"not in the layer table: {sorted(unknown)}"


def test_imports_point_down():
    found = [finding for module, tree in modules().items() if module for finding in upward_imports(tree, module)]
    assert not found, "\n".join(found)


def test_the_package_itself_imports_nothing_when_it_is_loaded():
    loaded = [node for node in modules()[""].body if not isinstance(node, ast.FunctionDef)]
    assert list(imported_names(ast.Module(body=loaded, type_ignores=[]))) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("losses.text", "from ds_stage2ab.engine.window import Window"),  # up
        ("channels.expectation", "import ds_stage2ab.assemble"),  # up
        ("engine.window", "from ds_stage2ab.channels.expectation import Expectation"),  # up
        ("packs.rounds", "from ds_stage2ab import losses"),  # sideways
        ("runtime.ranks", "from ds_stage2ab.codec import bins"),  # sideways
        ("rollout.hf", "from ds_stage2ab.rollout.server.chat import request"),  # up, from a folder into its inner one
        ("plan", "def f():\n    from ds_stage2ab.data import stream"),  # up, inside a function
        ("carriers", "if TYPE_CHECKING:\n    from ds_stage2ab.config.sections import Section"),  # up, for types only
    ],
)
def test_an_arrow_up_or_sideways_is_found(module: str, line: str):
    assert len(upward_imports(ast.parse(line), module)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("engine.window", "from ds_stage2ab.engine.build import build"),  # one folder
        ("losses.objective", "from ds_stage2ab.losses import text"),
        ("metrics.sinks", "from ds_stage2ab import __version__"),
        ("train", "import torch"),
        ("rollout.server.backend", "from ds_stage2ab.rollout.base import Backend"),
    ],
)
def test_an_arrow_down_is_not(module: str, line: str):
    assert upward_imports(ast.parse(line), module) == []
