"""What the package imports, what pyproject.toml declares and what constraints.txt pins are the same things."""

import importlib.metadata
import re
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.architecture.sources import ROOT, imported_names, package_files, parse, repository_files

# Declared and needed, though no line of the package imports them.
UNIMPORTED = {
    "pytest-xdist",  # options of the test command
    "ruff",  # a command
    "tensorboard",  # torch.utils.tensorboard writes its events with it
}


def declared(*extras: str) -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def imported(paths: list) -> set[str]:
    """Distributions behind the third-party imports of these files."""
    owners = importlib.metadata.packages_distributions()
    tops = {name.split(".")[0] for path in paths for _, name in imported_names(parse(path))}
    foreign = tops - set(sys.stdlib_module_names) - {"ds_stage2ab", "tests"}
    return {canonicalize_name(owners.get(top, [top])[0]) for top in foreign}  # one that soak alone has is not here


def test_every_import_of_the_package_is_declared():
    extras = {name: name.split("_")[0] for name in ("wandb_tracker.py", "mlflow_tracker.py", "trackio_tracker.py")}
    extras |= dict.fromkeys(("vllm_plugin.py", "vllm_guard.py"), "vllm")
    assert imported([path for path in package_files() if path.name not in extras]) - set(declared()) == set()
    for name, extra in extras.items():
        known = {canonicalize_name(one.removesuffix("-skinny")) for one in declared(extra)}
        assert {one.removesuffix("-skinny") for one in imported(paths_named(name))} - known == set()


def paths_named(name: str) -> list:
    return [path for path in package_files() if path.name == name]


def test_every_declared_dependency_is_used():
    files = repository_files((".py",))
    assert set(declared("test")) - imported(files) - UNIMPORTED == set()


def test_every_declared_dependency_is_pinned_within_its_range():
    pins = pinned()
    outside = [name for name, requirement in declared("test").items() if not requirement.specifier.contains(pins[name])]
    assert outside == []


def test_constraints_pin_exact_public_versions():
    """No wheel path, no address, no local build: the file works wherever the packages are."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in entries if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert entries == sorted(entries)
