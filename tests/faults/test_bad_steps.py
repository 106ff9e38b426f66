"""A weight of one of two ranks becomes NaN: no rank applies the step; the run goes on or ends as the config says."""

import re
import time

import pytest
import torch
from safetensors.torch import load_file

from ds_stage2ab.data.stream import SampleOrder
from ds_stage2ab.errors import EXIT_OK, EXIT_TRAINING
from ds_stage2ab.metrics.journal import read_history
from tests.parts import config_values, merged, write_config
from tests.ranks import run as run_ranks

LONGEST_S = 60
CAP = 343
"""Tokens: in step 3 rank 0 has one pack (of 297) and rank 1 two (300 together), so that rank 0 runs one of nobody's."""


@pytest.fixture
def run(quickstart, tmp_path):
    def launched(bad_steps, changes, rank=1):
        values = merged(
            config_values(quickstart, tmp_path / "runs", "small"), {"training.max_steps": 4, **changes}
        )  # fmt: skip
        config = write_config(tmp_path / "small.yaml", values)
        environment = {"FAULT": f"nan:{bad_steps}", "FAULTY_RANK": str(rank)}
        start = time.monotonic()
        done = run_ranks("tests/faults/planted.py", "--config", str(config), ranks=2, environment=environment)
        assert time.monotonic() - start < LONGEST_S
        return done

    return launched


@pytest.mark.parametrize(("rank", "zero_stage"), [(0, 2), pytest.param(1, 0, marks=pytest.mark.soak)])
def test_one_bad_step_is_survived_said_and_changes_nothing(run, tmp_path, rank, zero_stage):
    changes = {"deepspeed.zero_stage": zero_stage, "training.max_bad_steps": 1, "training.global_max_length": CAP}
    done = run("2", changes, rank)
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    steps = read_history(tmp_path / "runs" / "small" / "metrics.jsonl").steps
    assert [step.step for step in steps if not step.applied] == [3]
    assert steps[2].metrics["train/packs"] == 3
    assert "step 3: not applied, no weight changed" in done.stdout
    for one in (0, 1):  # each compared its own weights, bit by bit
        assert f"planted: no weight moved in step 3 on rank {one}\n" in done.stdout
    # the rank with the bad weight alone computed a bad loss: of its draws 16 + 4 rank, ..., 16 + 4 rank + 3
    order, first = SampleOrder(42, 64, 64), 16 + 4 * rank
    what = r"warning: a loss of step 3 is not finite, and the update was not applied \(samples (.*)\)\n"
    (named,) = re.findall(what, done.stdout)
    assert sorted(named.split(", ")) == sorted(f"train-{order.record_of(first + place):06d}" for place in range(4))
    folder = tmp_path / "runs" / "small" / "checkpoints"
    weights = load_file(folder / (folder / "latest").read_text().strip() / "hf" / "model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.parametrize(
    ("zero_stage", "bad_steps", "tolerated"),
    [(0, "1", 0), pytest.param(2, "1", 0, marks=pytest.mark.soak), (2, "1,2", 1)],
)
def test_one_more_ends_both_ranks(run, tmp_path, zero_stage, bad_steps, tolerated):
    done = run(bad_steps, {"deepspeed.zero_stage": zero_stage, "training.max_bad_steps": tolerated})
    assert done.returncode == EXIT_TRAINING, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("error: ") == 1
    assert f"rank 1: a loss of step {2 + tolerated} is nan; no weight was changed by this step" in done.stderr
    assert "samples train-" in done.stderr and "Traceback" not in done.stderr
    for rank in (0, 1):
        assert f"planted: no weight moved in step {2 + tolerated} on rank {rank}\n" in done.stdout


def test_answers_that_no_weight_can_give_end_both_ranks_whatever_is_tolerated(run, tmp_path):
    """In a B step the bad weight is met by one rank; the next step would begin with it."""
    done = run("0", {"stage2_ab.schedule.b_ratio": 1, "training.max_bad_steps": 3})
    assert done.returncode == EXIT_TRAINING, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert "sample train-" in done.stderr and "the model's logits are not finite after 0 tokens of an" in done.stderr
    for rank in (0, 1):
        assert f"planted: no weight moved in step 1 on rank {rank}\n" in done.stdout
    assert not read_history(tmp_path / "runs" / "small" / "metrics.jsonl").steps
