"""A machine without a compiler installs and trains."""

import os
import shutil
import subprocess
import sys

import pytest

from ds_stage2ab.metrics.journal import read_history
from tests.parts import LAUNCHER, ROOT, RUN_TIMEOUT_S, config_values, merged, write_config
from tests.ranks import executed

COMPILERS = ("c++", "g++", "gcc", "cc", "clang", "nvcc")
SHOW = """
import ds_stage2ab.config.schema as s
from ds_stage2ab import ops
print(s.__file__, len(s.config_schema()["properties"]), ops.implementation(), sep="\\n")
"""
# How pip builds by itself and how `make install` has it build, each with why nothing is compiled then.
BUILDS = {"isolated": ((), "the build sees no torch"), "beside_torch": (("--no-build-isolation",), "no C++ compiler")}


@pytest.fixture
def without_compiler(tmp_path):
    """Environment variables of a process that finds no compiler, beside the folder of this Python."""
    nothing = tmp_path / "empty"
    nothing.mkdir()
    search_path = f"{LAUNCHER.parent}{os.pathsep}{nothing}"
    assert not any(shutil.which(name, path=search_path) for name in COMPILERS)
    return {"PATH": search_path, "CC": "", "CXX": "", "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}


@pytest.mark.parametrize(("options", "reason"), BUILDS.values(), ids=BUILDS)
def test_the_package_installs_with_its_schemas_and_the_reference_ops(options, reason, without_compiler, tmp_path):
    source, target = tmp_path / "source", tmp_path / "site"
    made = shutil.ignore_patterns(".*", "build", "runs", "assets", "*.egg-info", "*.so")
    shutil.copytree(ROOT, source, ignore=made)
    environment = {**os.environ, **without_compiler}
    pip = [sys.executable, "-m", "pip", "install", "--verbose", "--no-deps", *options]
    install = [*pip, "--target", str(target), str(source)]
    built = subprocess.run(install, env=environment, capture_output=True, text=True, timeout=300, check=False)
    said = built.stdout + built.stderr
    assert built.returncode == 0, said[-2000:]
    assert f"compiled ops left out, their PyTorch reference will run: {reason}" in said
    assert not list(target.glob("ds_stage2ab/_C*"))
    environment["PYTHONPATH"] = str(target)
    shown = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    place, num_sections, implementation = shown.stdout.splitlines()
    assert place.startswith(str(target))
    assert int(num_sections) >= 9
    assert implementation.startswith("reference (no compiled library")


def test_a_rank_trains(quickstart, without_compiler, tmp_path):
    """Which imports for itself: DeepSpeed and torch look for compilers then."""
    values = merged(config_values(quickstart, tmp_path / "runs", "plain"), {"training.max_steps": 2})
    config = str(write_config(tmp_path / "plain.yaml", values))
    with executed(1, "ds_stage2ab/train.py", "--config", config, **without_compiler) as (rank,):
        said = rank.communicate(timeout=RUN_TIMEOUT_S)
    assert rank.returncode == 0, said
    assert len(read_history(tmp_path / "runs" / "plain" / "metrics.jsonl").steps) == 2
