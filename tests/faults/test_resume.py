"""A run that was killed goes on by the same command, and ends as the one that never was: to the last bit."""

import json
import random
import re
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file

from ds_stage2ab import cli
from ds_stage2ab.engine.shards import StoredTensors
from ds_stage2ab.errors import EXIT_CONFIG, EXIT_OK
from ds_stage2ab.metrics.journal import read_history
from tests import ranks
from tests.parts import config_values, merged, write_config

MATCHING = "custom.extra.rollout_matching"
STEPS = 6
NUM_KILLS = 30
KILLED_AFTER_S = (0.2, 9.0)  # a whole run takes some 15 s
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

    def __call__(self, name, *words, changes=None, num_ranks=2):
        return ranks.train(self.config(name, changes), *words, ranks=num_ranks)

    def killed(self, name, place):
        words = ("tests/faults/planted_kill.py", "--config", str(self.config(name)), "--resume", "auto")
        return ranks.run(*words, ranks=2, environment={"KILL": place})

    def cut(self, name, steps, whole="whole"):
        """As `whole` was after these steps."""
        shutil.copytree(self.path(whole), self.path(name))
        for folder in (self.path(name) / "checkpoints").glob("step-*"):
            if int(folder.name.removeprefix("step-")) > steps:
                shutil.rmtree(folder)


@pytest.fixture(scope="module")
def runs(shipped, tmp_path_factory):
    """Among them `whole`, which nothing has stopped."""
    runs = Runs(shipped, tmp_path_factory.mktemp("resume"))
    done = runs("whole")
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    return runs


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


def rollouts(folder):
    """Draw -> response ids, of the last time that it was drawn."""
    lines = [json.loads(line) for file in sorted((folder / "rollouts").glob("*")) for line in file.open()]
    return {line["draw"]: line["response_ids"] for line in lines}


@pytest.mark.parametrize(
    ("place", "begins"),
    [
        ("rollouts:5", "after step 4"),
        ("latest:4", "after step 4"),
        pytest.param("manifest:4", "after step 2", marks=pytest.mark.soak),
        pytest.param("evaluation:2", "after step 2", marks=pytest.mark.soak),
        pytest.param("rollouts:1", "from the first step", marks=pytest.mark.soak),
    ],
)
def test_a_killed_run_goes_on_to_the_last_bit(runs, place, begins):
    name = place.replace(":", "-")
    assert runs.killed(name, place).returncode != EXIT_OK
    done = runs(name, "--resume", "auto")
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert begins in done.stdout
    assert_the_same(runs, name)


ROWS = {"tuner.type": "lora", "tuner.trainable_token_rows": "coordinates", "model.freeze": ["vision"]}


@pytest.mark.soak
@pytest.mark.parametrize(
    "changes",
    [
        {"deepspeed.zero_stage": 0, "deepspeed.gradient_clipping": 0.5, "data.workers": 2},
        {"deepspeed.zero_stage": 2, "deepspeed.offload_optimizer": "cpu", "model.precision": "bf16"},
        {"deepspeed.zero_stage": 3, "model.precision": "bf16", "stage2_ab.channel_b.target": "append"},
        {"deepspeed.zero_stage": 3, "deepspeed.offload_optimizer": "cpu", **ROWS},
        {"deepspeed.zero_stage": 1, "model.precision": "bf16", **ROWS, "tuner.type": "dora"},
        {"training.optimizer": "sgd", "stage2_ab.schedule.b_ratio": 0, "data.object_order": "random"},
        {"data.epoch_end": "wrap", "stage2_ab.schedule.b_ratio": 1, f"{MATCHING}.decoding.temperature": 0},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_every_kind_of_run_goes_on_to_the_last_bit(runs, changes):
    whole = "-".join(re.sub(r"\W", "", str(value)) for value in changes.values())
    assert runs(whole, changes=changes).returncode == EXIT_OK
    runs.cut(f"{whole}-cut", 4, whole)
    done = runs(f"{whole}-cut", "--resume", "latest", changes=changes)
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert_the_same(runs, f"{whole}-cut", whole)


@pytest.mark.soak
def test_kills_at_random_moments_change_nothing(runs):
    """At the start, in steps, rollouts, evaluations and saves, as they come; the same command each time."""
    chance, name = random.Random(20), "random"
    words = ("ds_stage2ab/train.py", "--config", str(runs.config(name)), "--resume", "auto")
    for _ in range(NUM_KILLS):
        with ranks.started(2, *words) as started:
            time.sleep(chance.uniform(*KILLED_AFTER_S))
            chance.choice(started).kill()
    done = runs(name, "--resume", "auto")
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert_the_same(runs, name)


def test_a_finished_run_says_so(runs):
    before = (runs.path("whole") / "metrics.jsonl").read_bytes()
    done = runs("whole", "--resume", "auto")
    assert done.returncode == EXIT_OK, done.stderr
    assert f"all {STEPS} steps are done" in done.stdout
    assert (runs.path("whole") / "metrics.jsonl").read_bytes() == before


def test_a_run_folder_without_the_flag_is_refused(runs):
    done = runs("whole")
    assert done.returncode == EXIT_CONFIG
    assert "already holds a run" in done.stderr and "--resume auto" in done.stderr


def test_another_run_is_shown_what_has_changed(runs):
    """Before anything is loaded."""
    runs.cut("slower", 4)
    slower = {"training.learning_rate": 5e-4, "logging.every_steps": 2}
    done = runs("slower", "--resume", "4", changes=slower)
    assert done.returncode == EXIT_CONFIG
    assert "config.training.learning_rate: 0.001 -> 0.0005" in done.stderr and "--allow-change" in done.stderr
    assert "logging" not in done.stderr


@pytest.mark.parametrize(
    ("num_ranks", "stage"), [(1, 3), *(pytest.param(2, stage, marks=pytest.mark.soak) for stage in (0, 2, 3))]
)
def test_other_ranks_and_stages_go_on_from_the_same_checkpoint(runs, num_ranks, stage):
    name = f"on-{num_ranks}-in-{stage}"
    runs.cut(name, 4)
    other = {"deepspeed.zero_stage": stage}
    done = runs(name, "--resume", "auto", "--allow-change", changes=other, num_ranks=num_ranks)
    assert done.returncode == EXIT_OK, done.stderr
    assert f"deepspeed.zero_stage: 1 -> {stage}" in done.stdout
    assert ("learners: 2 -> 1" in done.stdout) == (num_ranks == 1)
    seen, expected = (read_history(runs.path(one) / "metrics.jsonl").steps for one in (name, "whole"))
    losses = [[step.metrics["loss/total"] for step in steps] for steps in (seen, expected)]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_fork_goes_on_under_another_name(runs):
    """The run that it comes from stays as it is."""
    source = runs.path("whole") / "checkpoints" / "step-000004"
    done = runs("fork", "--resume", str(source))
    assert done.returncode == EXIT_OK, done.stderr
    assert [one.step for one in read_history(runs.path("fork") / "metrics.jsonl").steps] == [5, 6]
    final = [runs.path(name) / "checkpoints" / "step-000006" / "hf" / "model.safetensors" for name in ("fork", "whole")]
    assert final[0].read_bytes() == final[1].read_bytes()


def test_a_damaged_checkpoint_is_passed_over_by_name(runs, capsys):
    runs.cut("damaged", 4)
    file = runs.path("damaged") / "checkpoints" / "step-000004" / "training" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert cli.main(["checkpoints", str(runs.path("damaged")), "--verify"]) == EXIT_OK
    listed = " ".join(capsys.readouterr().out.split())
    assert "training/model.safetensors has changed" in listed and "complete, every file" in listed
    done = runs("damaged", "--resume", "latest")
    assert done.returncode == EXIT_OK, done.stderr
    assert "step-000004 is passed over: training/model.safetensors has changed since it was written" in done.stdout
    assert_the_same(runs, "damaged")
    names = {path.name for path in (runs.path("damaged") / "checkpoints").iterdir()}
    assert "step-000004.superseded-1" in names
