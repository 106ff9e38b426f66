"""Runs that are killed or stopped, and what they have in common with the one that never was."""

import json
import shutil

import torch
from safetensors.torch import load_file

from ds_stage2ab.engine.shards import StoredTensors
from ds_stage2ab.metrics.journal import read_history
from tests import ranks
from tests.parts import config_values, merged, write_config

MATCHING = "custom.extra.rollout_matching"
STEPS = 6
SAMPLED = {
    "training.optimizer": "adamw",
    "training.learning_rate": 1e-3,
    "training.max_steps": STEPS,
    "training.packing": True,
    "stage2_ab.schedule.b_ratio": 0.5,
    "deepspeed.zero_stage": 1,
    "checkpoint.every_steps": 2,
    "checkpoint.keep_last": 9,
    "evaluation.every_steps": 2,
    f"{MATCHING}.decoding.temperature": 1.0,
    "logging.rollouts": True,
}


class Runs:
    """One config under many names, each in its run folder."""

    def __init__(self, parts, folder):
        self.parts, self.folder = parts, folder

    def path(self, name):
        return self.folder / "runs" / name

    def config(self, name, changes=None):
        changes = {**SAMPLED, "data.validation": str(self.parts.data / "validation.jsonl"), **(changes or {})}
        values = merged(config_values(self.parts, self.folder / "runs", name), changes)
        return write_config(self.folder / f"{name}.yaml", values)

    def words(self, name, changes=None):
        """Of a command line that starts it, or goes on with it."""
        return ("ds_stage2ab/train.py", "--config", str(self.config(name, changes)), "--resume", "auto")

    def __call__(self, name, *words, changes=None, num_ranks=2):
        return ranks.train(self.config(name, changes), *words, ranks=num_ranks)

    def killed(self, name, place):
        return self._planted(name, "tests/faults/planted_kill.py", {"KILL": place})

    def stopped(self, name, place, signals="SIGTERM", rank=1, changes=None, **environment):
        planted = {"STOP": place, "SIGNALS": signals, "STOPPED_RANK": str(rank), **environment}
        return self._planted(name, "tests/faults/planted_stop.py", planted, changes)

    def _planted(self, name, script, environment, changes=None):
        words = (script, "--config", str(self.config(name, changes)), "--resume", "auto")
        return ranks.run(*words, ranks=2, environment=environment)

    def cut(self, name, steps, whole="whole"):
        """As `whole` was after these steps."""
        shutil.copytree(self.path(whole), self.path(name))
        for folder in (self.path(name) / "checkpoints").glob("step-*"):
            if int(folder.name.removeprefix("step-")) > steps:
                shutil.rmtree(folder)


def figures(folder):
    """(step, its metrics) of steps and evaluations, without what depends on time."""
    history = read_history(folder / "metrics.jsonl")
    found = []
    for one in (*history.steps, *history.evaluations):
        told = {n: v for n, v in one.metrics.items() if "time/" not in n and "second" not in n}
        found.append((one.step, told))
    return found


def assert_the_same(runs, name, whole="whole"):
    whole, other = runs.path(whole), runs.path(name)
    assert figures(other) == figures(whole)
    final = [folder / "checkpoints" / f"step-{STEPS:06d}" for folder in (whole, other)]
    exported = [load_file(folder / "hf" / "model.safetensors") for folder in final]
    states = [StoredTensors(folder / "training") for folder in final]
    assert exported[0].keys() == exported[1].keys() and states[0].names == states[1].names
    assert all(torch.equal(exported[1][key], tensor) for key, tensor in exported[0].items())
    assert all(torch.equal(states[1][key], states[0][key]) for key in states[0].names)
    assert rollouts(other) == rollouts(whole)


def assert_attempts(folder, numbers):
    """In every recording and log of the run stands in which of its starts it was written; `numbers` are those of all.

    A start that was killed early may have written nothing.
    """
    assert [json.loads(line)["attempt"] for line in (folder / "attempts.jsonl").open()] == numbers
    files = [folder / "metrics.jsonl", *(folder / "evaluations").glob("*"), *(folder / "rollouts").glob("*")]
    for file in files:
        key = "run_attempt" if file.parent.name == "rollouts" else "attempt"
        assert {json.loads(line)[key] for line in file.open()} <= {*numbers}, file
    last = [json.loads(line) for line in (folder / "metrics.jsonl").open()][-1]
    assert last["attempt"] == numbers[-1]


def rollouts(folder):
    """(draw, index) -> response ids, of the last time that it was drawn."""
    lines = [json.loads(line) for file in sorted((folder / "rollouts").glob("*")) for line in file.open()]
    return {(line["draw"], line.get("index", 0)): line["response_ids"] for line in lines}
