"""Whole runs, and what they have in common: ids of rollouts, losses, exported weights."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from ds_stage2ab.metrics.journal import read_history
from tests.parts import ROOT, config_values, merged, write_config
from tests.ranks import run as run_ranks

TRAIN = "ds_stage2ab/train.py"
LOSS_TOLERANCE = 1e-5  # relative
WEIGHT_TOLERANCE = 1e-5  # of a tensor's norm
MOVE_TOLERANCE = 1e-3  # of how far a tensor moved
ROUNDING = 3e-7  # of a tensor's norm: a few fp32 roundings of each weight


class Runs:
    """Variants of one small run, each name once.

    Args:
        parts: model and data.
        folder: of the configs and the run folders.
        plainest: changes to the small run that all variants share.
    """

    def __init__(self, parts, folder, plainest):
        self.parts, self.folder, self.plainest, self.done = parts, folder, plainest, {}

    def __call__(self, name, ranks, changes, *, arrivals="", script=TRAIN, environment=None, start=run_ranks):
        """(losses by step, exported weights) of a run; `arrivals` are those of `arriving.py`.

        Args:
            start: starts the ranks; `launch_script` does it with DeepSpeed's launcher.
        """
        if name not in self.done:
            changed = {**self.plainest, "logging.rollouts": True, **changes}
            values = merged(config_values(self.parts, self.folder / "runs", name), changed)
            config = write_config(self.folder / f"{name}.yaml", values)
            script = "tests/equivalence/arriving.py" if arrivals else script
            path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
            variables = {"PYTHONPATH": path, "ARRIVALS": arrivals, **(environment or {})}
            self.done[name] = start(script, "--config", str(config), ranks=ranks, environment=variables)
        done = self.done[name]
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        checkpoints = self.folder / "runs" / name / "checkpoints"
        exported = checkpoints / (checkpoints / "latest").read_text().strip() / "hf" / "model.safetensors"
        return [step.metrics["loss/total"] for step in self.history(name).steps], load_file(exported)

    def history(self, name):
        return read_history(self.folder / "runs" / name / "metrics.jsonl")

    def rollouts(self, name):
        """(draw, sample, response ids, finish) of every rollout, all ranks together, in the order of the draws."""
        files = sorted((self.folder / "runs" / name / "rollouts").glob("rank-*.jsonl"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return sorted((one["draw"], one["sample_id"], tuple(one["response_ids"]), one["finish"]) for one in lines)


def assert_same_run(seen, expected, start, rel=LOSS_TOLERANCE):
    """The same losses and the same weights."""
    assert len(seen[0]) == len(expected[0])
    assert seen[0] == pytest.approx(expected[0], rel=rel)
    assert_same_weights(seen[1], expected[1], start)


def assert_same_weights(seen, expected, start):
    """Equal up to rounding, measured by how far training moved each tensor: unmoved weights would agree in anything."""
    assert seen.keys() == expected.keys()
    for name, tensor in expected.items():
        wanted, begun = tensor.double(), start[name].double()
        gap, moved = (torch.linalg.vector_norm(x) for x in (seen[name].double() - wanted, wanted - begun))
        norm = torch.linalg.vector_norm(wanted)
        assert gap <= min(MOVE_TOLERANCE * moved + ROUNDING * norm, WEIGHT_TOLERANCE * norm), f"{name}: {gap}, {moved}"
