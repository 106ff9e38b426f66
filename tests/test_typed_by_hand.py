"""Commands that stand in the middle of a sentence of the runbook, typed as they stand and run to their end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ds_stage2ab.metrics.journal import read_history
from tests.parts import ROOT, config_values, merged, write_config

RUNBOOK = (ROOT / "docs" / "training" / "STAGE2_RUNBOOK.md").read_text(encoding="utf-8")
TRAIN = "python ds_stage2ab/train.py --config my.yaml"
REPORT = "ds-stage2ab report runs/<name>"
ADD = "ds-stage2ab add-coord-tokens SRC DST"


@pytest.fixture
def typed(tmp_path):
    """Runs a command of the runbook in a folder that has the package's, as a checkout does; gives what it said.

    It tells of its work in so many lines of `progress`, and no library says anything.
    """
    (tmp_path / "ds_stage2ab").symlink_to(ROOT / "ds_stage2ab")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}  # other sums than here
    assert "RANK" not in variables

    def run(command, progress=0, **words):
        assert f"`{command}`" in RUNBOOK
        for example, word in words.items():
            command = command.replace(example, str(word))
        options = {"cwd": tmp_path, "env": variables, "capture_output": True, "text": True, "timeout": 300}
        done = subprocess.run(["bash", "-c", command], check=False, **options)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(done.stderr.splitlines()) == progress, f"no library says anything of its own: {done.stderr}"
        return done.stdout

    return run


def test_a_run_of_one_rank_without_the_launcher_and_its_report(quickstart, tmp_path, typed):
    values = config_values(quickstart, Path("runs"), "alone")
    write_config(tmp_path / "my.yaml", merged(values, {"training.max_steps": 1}))
    said = typed(TRAIN)
    first, second, *_ = said.splitlines()
    assert first == "my.yaml: valid; loading libraries, data and model"
    assert second == "8 samples per step = 4 per rank x 1 rank x 2 micro-steps"
    run = tmp_path / "runs" / "alone"
    assert [(step.step, step.applied) for step in read_history(run / "metrics.jsonl").steps] == [(1, True)]
    assert (run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip() / "hf" / "config.json").is_file()
    curves = (run / "curves.png").read_bytes()
    (run / "curves.png").unlink()
    *table, last = typed(REPORT, **{"<name>": "alone"}).splitlines()
    assert last == "runs/alone/curves.png: drawn" and any("loss/total" in line for line in table)
    assert (run / "curves.png").read_bytes() == curves


def test_coordinate_tokens_are_added(quickstart, tmp_path, typed):
    typed(ADD, progress=2, SRC=quickstart.plain, DST=tmp_path / "new")
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "new" / name).read_bytes() == (quickstart.model / name).read_bytes()
