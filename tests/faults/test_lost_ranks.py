"""What happens to one of two ranks in the middle of a run: both end within a minute, and who can speak says why."""

import json
import os
import re
import shutil
import time

import pytest

from ds_stage2ab.data.stream import SampleOrder
from ds_stage2ab.errors import EXIT_DATA, EXIT_OK
from ds_stage2ab.metrics.journal import read_history
from tests.parts import ROOT, config_values, launch_script, merged, write_config
from tests.ranks import launch_script as launch_forks
from tests.ranks import run as run_ranks
from tests.ranks import train

LONGEST_S = 60  # from the last step that was recorded to the end of all processes
CAP = 102  # tokens
FEW_STEPS = {"training.max_steps": 4, "custom.extra.rollout_matching.max_new_tokens": 8}


@pytest.fixture
def run(quickstart, tmp_path):
    """Two ranks with a fault planted on one; gives what they said, and the steps that were finished.

    Without a launcher, which would end the other, where both end by themselves.
    """

    def launched(fault, changes, rank=1, start_ranks=launch_forks):
        values = merged(config_values(quickstart, tmp_path / "runs", "small"), {**FEW_STEPS, **changes})
        config = write_config(tmp_path / "small.yaml", values)
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        environment = {"FAULT": fault, "FAULTY_RANK": str(rank), "PYTHONPATH": path}
        done = start_ranks("tests/faults/planted.py", "--config", str(config), ranks=2, environment=environment)
        journal = tmp_path / "runs" / "small" / "metrics.jsonl"
        assert time.time() - journal.stat().st_mtime < LONGEST_S
        assert_nobody_is_left(config)
        return done, read_history(journal).steps

    return launched


def assert_nobody_is_left(config):
    """No process of this machine has the config's name in its command line."""
    for _ in range(50):
        if not any(str(config).encode() in words for words in command_lines()):
            return
        time.sleep(0.1)
    raise AssertionError(f"a process of {config} is still alive")


def command_lines():
    for process in os.listdir("/proc"):
        if process.isdigit():
            try:
                with open(f"/proc/{process}/cmdline", "rb") as file:
                    yield file.read()
            except OSError:
                continue  # it has just ended


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.soak), 1])
def test_a_killed_rank_ends_the_other(run, rank):
    done, steps = run("kill:1", {"stage2_ab.schedule.b_ratio": 1}, rank)
    assert done.returncode not in (EXIT_OK, None)
    assert [step.step for step in steps] == [1]
    assert re.search(f"error: .*rank {1 - rank}(:| waited)", done.stderr), done.stderr[-2000:]
    assert "Traceback" not in done.stderr


def test_a_rank_that_hangs_is_named(run):
    changes = {"stage2_ab.schedule.b_ratio": 1, "deepspeed.collective_timeout_s": 6, "deepspeed.zero_stage": 2}
    done, steps = run("hang:1", changes)
    assert done.returncode not in (EXIT_OK, None)
    assert [step.step for step in steps] == [1]
    assert "error: last heard of rank 1: getting the segments of step 2: rank 0 waited for the other" in done.stderr
    assert "error: rank 1: ended by SIGTERM; it was at: getting the segments of step 2" in done.stderr
    assert re.search('File ".*planted.py", line [0-9]+ in hung', done.stderr), "SIGUSR2 says where every thread is"
    assert "Traceback" not in done.stderr


def test_no_rank_outlives_its_launcher(run):
    """The kernel ends both, the one that hangs too, although nobody is left who could."""
    done, steps = run("orphan:1", {"stage2_ab.schedule.b_ratio": 1}, start_ranks=launch_script)
    assert [step.step for step in steps] == [1]
    for rank in (0, 1):
        assert f"error: rank {rank}: ended by SIGTERM; it was at: " in done.stderr, done.stderr[-2000:]


@pytest.fixture
def vanishing(quickstart, tmp_path):
    """Images that a test may delete."""
    folder = shutil.copytree(quickstart.data, tmp_path / "data")
    return {"data.train": str(folder / "train.jsonl")}


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_an_image_that_vanishes_ends_both(run, vanishing, workers):
    changes = {**vanishing, "data.workers": workers}
    done, steps = run("vanish:0", changes, start_ranks=run_ranks)
    assert done.returncode == EXIT_DATA, done.stderr[-2000:]
    assert [step.step for step in steps] == [1, 2]
    assert done.stderr.count("error: ") == 1
    assert "train.jsonl:" in done.stderr and ".png is gone" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, marks=pytest.mark.soak), {"stage2_ab.schedule.b_ratio": 1, "deepspeed.zero_stage": 3}],
    ids=str,
)
def test_an_image_that_vanishes_can_be_gone_past(run, vanishing, tmp_path, changes):
    """Of every third image of step 3, with workers that read it ahead; and one that is missing from the start.

    Rank 0 is left with two of its four samples and rank 1 with three: in B under ZeRO 3 one decodes fewer rollouts.
    """
    order = SampleOrder(42, 64, 64)
    (tmp_path / "data" / "images" / f"train-{order.record_of(33):06d}.png").unlink()  # nobody draws it in 4 steps
    changes = {**vanishing, **changes, "data.on_bad_sample": "skip", "data.workers": 2}
    done, steps = run("vanish:0", changes, start_ranks=run_ranks)
    assert done.returncode == EXIT_OK, done.stderr[-2000:]
    assert [len(step.skipped) for step in steps] == [0, 0, 3, 0]
    assert [step.metrics["train/samples"] for step in steps] == [8] * 4
    assert f"step 3 skipped sample {steps[2].skipped[0]}: image " in done.stdout
    assert "1 of 64 images cannot be used, and their samples will be skipped; the first: " in done.stdout


def test_a_rank_without_memory_says_which_keys_help(run):
    done, steps = run("memory:1", {"stage2_ab.schedule.b_ratio": 0}, start_ranks=run_ranks)
    assert done.returncode not in (EXIT_OK, None)
    assert [step.step for step in steps] == [1]
    assert "error: rank 1 is out of memory in step 2, in a pack of " in done.stderr, done.stderr[-3000:]
    assert "8 samples per step = 4 per rank x 2 ranks x 1 micro-step; ZeRO stage 0)" in done.stderr
    for key in ("training.global_max_length", "model.gradient_checkpointing", "deepspeed.zero_stage"):
        assert key in done.stderr


def test_a_sample_of_one_rank_that_is_too_long_ends_both(run, vanishing, tmp_path):
    """Draw 13 is of rank 1 in the second step of 8, and nobody draws its record elsewhere."""
    number, path = SampleOrder(42, 64, 64).record_of(13), tmp_path / "data" / "train.jsonl"
    lines = path.read_text().splitlines()
    record = json.loads(lines[number])
    record["objects"] = [{"desc": "one two three " * 200, "bbox_2d": [0, 0, 9, 9]}]
    lines[number] = json.dumps(record)
    path.write_text("\n".join(lines) + "\n")
    done, steps = run("none:-1", vanishing, start_ranks=run_ranks)
    assert done.returncode == EXIT_DATA, done.stderr[-2000:]
    assert [step.step for step in steps] == [1]
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert re.search(f"error: train-0*{number}: rank 1: prompt and answer are [0-9]+ tokens long", done.stderr)


@pytest.mark.parametrize(("rule", "code"), [pytest.param("fail", EXIT_DATA, marks=pytest.mark.soak), ("skip", EXIT_OK)])
def test_a_sample_that_is_too_long(quickstart, tmp_path, rule, code):
    """Some samples of these scenes exceed the cap; the others are trained as they are."""
    changes = {"training.global_max_length": CAP, "data.on_overlong": rule, "training.max_steps": 3}
    values = merged(config_values(quickstart, tmp_path / "runs", rule), {**changes, "logging.every_steps": 1})
    config = write_config(tmp_path / "c.yaml", values)
    done = train(config, ranks=2)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-2000:]
    if rule == "fail":
        assert f"tokens long, training.global_max_length is {CAP}" in done.stderr and "train-0" in done.stderr
        assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
        return
    steps = read_history(tmp_path / "runs" / rule / "metrics.jsonl").steps
    assert [step.metrics["train/samples"] for step in steps] == [8] * 3
    assert 0 < sum(len(step.skipped) for step in steps) < 24
    assert [step.metrics["train/skipped_samples"] for step in steps] == [len(step.skipped) for step in steps]


def test_a_step_whose_samples_are_all_too_long_is_none(quickstart, tmp_path):
    changes = {"training.global_max_length": 50, "custom.extra.rollout_matching.max_new_tokens": 8}
    values = merged(config_values(quickstart, tmp_path / "runs", "none"), {**changes, "data.on_overlong": "skip"})
    done = train(write_config(tmp_path / "c.yaml", values), ranks=2)
    assert done.returncode == EXIT_DATA, done.stdout[-2000:] + done.stderr[-2000:]
    # one image of the first step shows nothing, and is short enough
    assert "every sample of step 2 was skipped; the first because prompt and answer are " in done.stderr
    assert "samples train-" in done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
