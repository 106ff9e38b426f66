"""A run goes on elsewhere: its folder or its data has moved, on other ranks, after its time was over, started twice."""

import json
import shutil
import socket
import time
from dataclasses import replace

import pytest

from ds_stage2ab.errors import EXIT_CONFIG, EXIT_OK, EXIT_STOPPED
from ds_stage2ab.metrics.journal import read_history
from tests import ranks
from tests.faults.resumed_runs import STEPS, Runs, assert_attempts, assert_the_same

pytestmark = pytest.mark.soak

STOPPED_IN = 3
"""Step whose rollouts take until the time is over."""
HOURS = 0.008
"""29 seconds."""
SAVE_BY_S = 40


@pytest.fixture
def moved_data(shipped, tmp_path):
    """The scenes in another folder."""
    return replace(shipped, data=shutil.copytree(shipped.data, tmp_path / "elsewhere"))


def test_a_run_folder_that_was_moved_goes_on_to_the_last_bit(runs, tmp_path):
    runs.cut("moved", 4)
    (tmp_path / "runs").mkdir()
    shutil.move(runs.path("moved"), tmp_path / "runs" / "moved")
    done = runs("moved", "--resume", "auto", changes={"logging.root": str(tmp_path / "runs")})
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert "goes on after step 4" in done.stdout and "changed since" not in done.stdout
    shutil.move(tmp_path / "runs" / "moved", runs.path("moved"))
    assert_the_same(runs, "moved")


def test_the_same_data_in_another_folder_goes_on_to_the_last_bit_if_it_is_meant(runs, moved_data):
    """The path is another one, so it is asked for; names and records are the same, and so is all that follows."""
    runs.cut("renamed", 4)
    there = {"data.train": str(moved_data.data / "train.jsonl")}
    refused = runs("renamed", "--resume", "auto", changes=there)
    assert refused.returncode == EXIT_CONFIG and "Traceback" not in refused.stderr
    assert "config.data.train: " in refused.stderr and "records" not in refused.stderr
    done = runs("renamed", "--resume", "auto", "--allow-change", changes=there)
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert_the_same(runs, "renamed")


def test_one_record_that_was_changed_is_told(shipped, tmp_path):
    """Before anything is loaded, and with the digests of both."""
    data = shutil.copytree(shipped.data, tmp_path / "data")
    runs = Runs(replace(shipped, data=data), tmp_path)
    assert runs("whole").returncode == EXIT_OK
    runs.cut("changed", 4)
    lines = (data / "train.jsonl").read_text().splitlines()
    record = json.loads(lines[7])
    record["objects"] = record["objects"][:-1]
    lines[7] = json.dumps(record)
    (data / "train.jsonl").write_text("\n".join(lines) + "\n")
    done = runs("changed", "--resume", "auto")
    assert done.returncode == EXIT_CONFIG and "Traceback" not in done.stderr
    assert 'records.train: "64 lines, blake2b ' in done.stderr and '-> "64 lines, blake2b ' in done.stderr
    assert "config." not in done.stderr and "--allow-change" in done.stderr
    done = runs("changed", "--resume", "auto", "--allow-change")
    assert done.returncode == EXIT_OK, done.stderr
    assert "changed since the checkpoint: records.train: " in done.stdout


def test_another_learning_rate_is_taken_if_it_is_meant(runs):
    runs.cut("slower", 4)
    slower = {"training.learning_rate": 5e-4}
    assert runs("slower", "--resume", "auto", changes=slower).returncode == EXIT_CONFIG
    done = runs("slower", "--resume", "auto", "--allow-change", changes=slower)
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert "changed since the checkpoint: config.training.learning_rate: 0.001 -> 0.0005" in done.stdout
    steps = read_history(runs.path("slower") / "metrics.jsonl").steps
    assert [one.metrics["train/learning_rate"] for one in steps] == [1e-3] * 4 + [5e-4] * 2


@pytest.mark.parametrize(("optimizer", "rate", "tolerance"), [("sgd", 1e-2, 1e-5), ("adamw", 1e-3, 1e-4)])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_losses_on_other_ranks_are_the_same_but_for_rounding(runs, before, after, optimizer, rate, tolerance):
    changes = {"training.optimizer": optimizer, "training.learning_rate": rate}
    whole, name = f"{optimizer}-on-{before}", f"{optimizer}-from-{before}-to-{after}"
    assert runs(whole, changes=changes, num_ranks=before).returncode == EXIT_OK
    runs.cut(name, 4, whole)
    done = runs(name, "--resume", "auto", "--allow-change", changes=changes, num_ranks=after)
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"learners: {before} -> {after}" in done.stdout
    seen, expected = (read_history(runs.path(one) / "metrics.jsonl").steps for one in (name, whole))
    losses = [[step.metrics["loss/total"] for step in steps] for steps in (seen, expected)]
    assert len(losses[0]) == STEPS and losses[0] == pytest.approx(losses[1], rel=tolerance)


@pytest.mark.parametrize(
    ("key", "value"), [("training.max_hours", HOURS), ("checkpoint.save_by", f"00:00:{SAVE_BY_S}")]
)
def test_a_run_whose_time_is_over_is_saved_and_goes_on_to_the_last_bit(runs, key, value):
    """A machine that is too slow for it is stopped in an earlier step."""
    name, begun = key.replace(".", "-"), time.time()
    done = runs.stopped(name, f"slow:{STOPPED_IN}", changes={key: value})
    assert done.returncode == EXIT_STOPPED, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr.count("stopped: ") == 1 and "Traceback" not in done.stderr
    finished = read_history(runs.path(name) / "metrics.jsonl").steps[-1].step
    assert finished <= STOPPED_IN
    checkpoint = runs.path(name) / "checkpoints" / f"step-{finished:06d}"
    assert f"stopped: {key}, after step {finished} of {STEPS}; its newest checkpoint is {checkpoint}" in done.stderr
    complete = (checkpoint / "manifest.json").stat().st_mtime - begun
    if key == "checkpoint.save_by":
        assert complete < SAVE_BY_S, "it must be complete by then"
    else:
        assert complete > HOURS * 3600 and time.time() - begun < HOURS * 3600 + 60
    done = runs(name, "--resume", "auto")
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"goes on after step {finished}" in done.stdout
    assert_the_same(runs, name)
    assert_attempts(runs.path(name), [1, 2])


def test_of_two_starts_at_one_moment_one_runs_and_one_is_refused_by_host_and_process(runs):
    """As a scheduler does that has put a job into its queue twice."""
    words = runs.words("twice-started")
    with ranks.started(1, *words) as (first,), ranks.started(1, *words) as (second,):
        said = {one.pid: one.communicate(timeout=120) for one in (first, second)}
    codes = {one.pid: one.returncode for one in (first, second)}
    assert sorted(codes.values()) == [EXIT_OK, EXIT_CONFIG], said
    ran, refused = sorted(codes, key=codes.get)
    assert f"another run is writing here (host and process: {socket.gethostname()} {ran})" in said[refused][1]
    assert "Traceback" not in said[refused][1]
    history = read_history(runs.path("twice-started") / "metrics.jsonl")
    assert [one.step for one in history.steps] == list(range(1, STEPS + 1))
    assert_attempts(runs.path("twice-started"), [1])
