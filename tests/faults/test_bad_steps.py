"""A weight of one of two ranks becomes NaN: no rank applies the step; the run goes on or ends as the config says."""

import os
import time

import pytest
import torch
from safetensors.torch import load_file

from ds_stage2ab.errors import EXIT_OK, EXIT_TRAINING
from ds_stage2ab.metrics.journal import read_history
from tests.parts import ROOT, config_values, launch_script, merged, write_config

LONGEST_S = 60


@pytest.fixture
def run(quickstart, tmp_path):
    def launched(bad_steps, changes):
        values = merged(
            config_values(quickstart, tmp_path / "runs", "small"), {"training.max_steps": 4, **changes}
        )  # fmt: skip
        config = write_config(tmp_path / "small.yaml", values)
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = {"FAULT": f"nan:{bad_steps}", "FAULTY_RANK": "1", "PYTHONPATH": path}
        start = time.monotonic()
        done = launch_script("tests/faults/planted.py", "--config", str(config), ranks=2, environment=environment)
        assert time.monotonic() - start < LONGEST_S
        return done

    return launched


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_one_bad_step_is_survived_said_and_changes_nothing(run, tmp_path, zero_stage):
    done = run("2", {"deepspeed.zero_stage": zero_stage, "training.max_bad_steps": 1})
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    steps = read_history(tmp_path / "runs" / "small" / "metrics.jsonl").steps
    assert [step.step for step in steps if not step.applied] == [3]
    assert "step 3: not applied, no weight changed" in done.stdout
    assert "warning: the gradient norm of step 3 is " in done.stdout and "(samples train-" in done.stdout
    folder = tmp_path / "runs" / "small" / "checkpoints"
    weights = load_file(folder / (folder / "latest").read_text().strip() / "hf" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize(("zero_stage", "bad_steps", "tolerated"), [(0, "1", 0), (2, "1", 0), (2, "1,2", 1)])
def test_one_more_ends_both_ranks(run, tmp_path, zero_stage, bad_steps, tolerated):
    done = run(bad_steps, {"deepspeed.zero_stage": zero_stage, "training.max_bad_steps": tolerated})
    assert done.returncode == EXIT_TRAINING, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("error: ") == 1
    assert f"rank 1: a loss of step {2 + tolerated} is nan; no weight was changed by this step" in done.stderr
    assert "samples train-" in done.stderr and "Traceback" not in done.stderr
