"""What decides before the run starts must not load what the run needs: seen in sys.modules of a fresh process."""

import subprocess
import sys

import pytest

from tests.architecture.sources import ROOT

HEAVY = ("torch", "transformers", "deepspeed")
LIGHT = (
    "ds_stage2ab",
    "ds_stage2ab.carriers",
    "ds_stage2ab.cli",
    "ds_stage2ab.codec.bins",
    "ds_stage2ab.config.load",
    "ds_stage2ab.config.sections",
    "ds_stage2ab.data.records",
    "ds_stage2ab.data_report.command",
    "ds_stage2ab.data_report.page",
    "ds_stage2ab.detector_file",
    "ds_stage2ab.errors",
    "ds_stage2ab.evaluation.f1",
    "ds_stage2ab.formats.command",
    "ds_stage2ab.launch.command",
    "ds_stage2ab.launch.supervisor",
    "ds_stage2ab.matching.assign",
    "ds_stage2ab.model_folder.checks",
    "ds_stage2ab.packs.binpack",
    "ds_stage2ab.plan",
    "ds_stage2ab.predict.command",
    "ds_stage2ab.predict.detector",
    "ds_stage2ab.preflight.lengths",
    "ds_stage2ab.preflight.memory",
    "ds_stage2ab.preflight.report",
    "ds_stage2ab.preflight.text",
    "ds_stage2ab.run_report.command",
    "ds_stage2ab.run_report.page",
    "ds_stage2ab.schedule",
    "ds_stage2ab.simulation.text",
    "ds_stage2ab.tools.init_config",
    "ds_stage2ab.validate",
)
# What a process prints: the heavy packages that importing the named module brought in.
PROBE = "import sys, importlib; importlib.import_module(sys.argv[1]); print(*(set(sys.argv[2:]) & set(sys.modules)))"


def heavy_after(module: str) -> list[str]:
    command = [sys.executable, "-c", PROBE, module, *HEAVY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("module", LIGHT)
def test_is_light(module: str):
    assert heavy_after(module) == []


def test_a_heavy_module_is_found():
    assert "torch" in heavy_after("ds_stage2ab.runtime.ranks")
