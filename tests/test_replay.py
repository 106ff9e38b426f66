"""A run that is recorded and trained once more from its recording, by the real launcher: drawn at temperature 1, so
that another draw would be seen at once, and the best of two rollouts of each sample is taught.

PYTHONPATH=. python -m pytest -q tests/test_replay.py
"""

import json
from collections import Counter

import pytest
from safetensors.torch import load_file

from ds_stage2ab.errors import EXIT_CONFIG
from ds_stage2ab.metrics.journal import read_history
from ds_stage2ab.metrics.registry import METRICS
from tests.equivalence.runs import Runs, assert_same_run
from tests.parts import config_values, merged, write_config
from tests.ranks import train

MATCHING = "custom.extra.rollout_matching"
CHANGES = {
    "training.max_steps": 3,
    "training.per_device_train_batch_size": 2,
    "stage2_ab.schedule.b_ratio": 0.7,  # A B B
    "deepspeed.zero_stage": 1,
    f"{MATCHING}.decoding.temperature": 1.0,
    f"{MATCHING}.best_of": 2,
}
CLOCKED = ("s", "tokens/s")
"""Units of what no two runs agree in."""
OF_DECODING = ("passes", "tokens_per_pass", "live_slots", "padding", "draft_acceptance")
DECODED = {f"rollout/{name}" for name in OF_DECODING}
"""What it took to decode: a replay decodes nothing."""


@pytest.fixture(scope="module")
def run(shipped, tmp_path_factory):
    """Launch a run once for each name; each judges the held-out scenes at the end."""
    held_out = {"data.validation": str(shipped.data / "validation.jsonl"), "evaluation.at_start": False}
    few = {"evaluation.max_samples": 4, "evaluation.num_pictures": 0}
    return Runs(shipped, tmp_path_factory.mktemp("replay"), {**CHANGES, **held_out, **few})


@pytest.fixture(scope="module")
def recorded(run):
    return run("recorded", 2, {})


def replayed(run, name, ranks, **changes):
    """A run that is fed with the recording, whose learner could not draw these answers itself."""
    source = {f"{MATCHING}.rollout_backend": "replay", f"{MATCHING}.replay.run": str(run.folder / "runs" / "recorded")}
    return run(name, ranks, {**source, f"{MATCHING}.decoding.temperature": 0, **changes})


def told(run, name):
    """Every metric of every step and evaluation that is no time and no speed."""
    history = run.history(name)
    return [
        {key: value for key, value in record.metrics.items() if METRICS[key].unit not in CLOCKED and key not in DECODED}
        for record in (*history.steps, *history.evaluations)
    ]


def test_as_many_ranks_repeat_the_run_to_the_last_bit(run, recorded):
    losses, weights = replayed(run, "again", 2)
    assert losses == recorded[0] and len(losses) == 3
    assert told(run, "again") == told(run, "recorded")
    assert all(weights[name].equal(tensor) for name, tensor in recorded[1].items())
    assert len(run.history("again").evaluations) == 1


def test_a_replay_is_a_recording_too(run, recorded):
    replayed(run, "again", 2)
    assert run.rollouts("again") == run.rollouts("recorded")
    assert len(run.rollouts("recorded")) == 32  # two of each of the 8 samples of two steps
    lines = [
        json.loads(line)
        for file in (run.folder / "runs" / "again" / "rollouts").iterdir()
        for line in file.read_text().splitlines()
    ]
    assert {line["source"] for line in lines} == {"replay of hf"}
    assert len({line["weight_version"] for line in lines}) == 2  # a start of its own, before steps 2 and 3


def test_one_rank_repeats_what_two_have_recorded(run, recorded, shipped):
    alone = replayed(run, "alone", 1, **{"deepspeed.zero_stage": 0, "training.per_device_train_batch_size": 8})
    assert_same_run(alone, recorded, load_file(shipped.model / "model.safetensors"))
    assert run.rollouts("alone") == run.rollouts("recorded")


def test_the_best_of_two_rollouts_of_each_sample_was_taught(run, recorded):
    """By the recording alone: every sample was answered twice, by requests of their own."""
    files = (run.folder / "runs" / "recorded" / "rollouts").iterdir()
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert Counter(line.get("index", 0) for line in lines) == {0: 16, 1: 16}
    assert len({line["seed"] for line in lines}) == 32
    steps = [step.metrics for step in run.history("recorded").steps if step.channel == "B"]
    assert [(one["train/samples"], one["rollout/count"]) for one in steps] == [(8, 16)] * 2
    assert sum(one["rollout/tokens"] for one in steps) == sum(len(line["response_ids"]) for line in lines)
    for one in steps:
        assert 0 < one["match/not_first_rate"] < 1
        assert one["match/f1_of_all"] < one["match/f1_of_best"]


def test_a_replay_may_choose_from_fewer(run, recorded):
    """From one: what is taught is the first of the two, so the figures are of other answers."""
    replayed(run, "first", 2, **{f"{MATCHING}.best_of": 1, "training.max_steps": 2, "data.validation": None})
    (first,), (best, _) = ([one.metrics for one in run.history(name).steps if one.channel == "B"] for name in (
        "first", "recorded",
    ))  # fmt: skip
    assert first["rollout/count"] == 8 and "match/f1_of_best" not in first
    assert first["match/f1"] < best["match/f1"]
    drawn = [one for one in run.rollouts("recorded") if one in run.rollouts("first")]
    assert len(run.rollouts("first")) == 8 and len(drawn) == 8


def test_targets_are_built_again(run, recorded):
    """The same answers, learned in another way than when they were recorded; A's step before them is the same."""
    target = {"stage2_ab.channel_b.target": "append"}
    losses, _ = replayed(run, "appended", 2, **target, **{"training.max_steps": 2, "data.validation": None})
    assert "targets are made anew (append)" in run.done["appended"].stdout
    assert "targets are made anew (rewrite)" in (replayed(run, "again", 2) and run.done["again"].stdout)
    assert losses[0] == recorded[0][0] and losses[1] != recorded[0][1]
    assert run.rollouts("appended") == run.rollouts("recorded")[:16]


def test_a_run_that_asks_for_something_else_ends_in_words(run, recorded, shipped, tmp_path):
    source = {f"{MATCHING}.rollout_backend": "replay", f"{MATCHING}.replay.run": str(run.folder / "runs" / "recorded")}
    changes = {**CHANGES, **source, "data.user_prompt": "Detect each digit."}
    config = write_config(tmp_path / "other.yaml", merged(config_values(shipped, tmp_path / "runs", "other"), changes))
    done = train(config, ranks=2)
    assert done.returncode == EXIT_CONFIG
    assert "with another prompt of sample" in done.stdout + done.stderr
    # what needs no rollout was trained
    assert len(read_history(tmp_path / "runs" / "other" / "metrics.jsonl").steps) == 1
