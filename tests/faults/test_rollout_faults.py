"""A failure inside Channel B on one rank of two is everybody's, at once and with its own exit code."""

import pytest

from ds_stage2ab.errors import EXIT_DATA, EXIT_ENVIRONMENT, EXIT_OK, EXIT_TRAINING
from ds_stage2ab.metrics.journal import read_history
from tests.parts import config_values, merged, write_config
from tests.ranks import train

ON_B = {"stage2_ab.schedule.b_ratio": 1, "training.max_steps": 2, "training.per_device_train_batch_size": 2}


@pytest.fixture
def run(shipped, tmp_path):
    def launched(changes):
        values = merged(config_values(shipped, tmp_path / "runs", "small"), {**ON_B, **changes})
        return train(write_config(tmp_path / "small.yaml", values), ranks=2)

    return launched


def test_rollouts_that_one_rank_cannot_write_end_both(run, tmp_path):
    """Where rank 1's file should be lies a folder; rank 0 could write its own."""
    taken = tmp_path / "runs" / "small" / "rollouts" / "rank-00001.jsonl"
    taken.mkdir(parents=True)
    done = run({"logging.rollouts": True})
    assert done.returncode == EXIT_ENVIRONMENT, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("error: ") == 1
    assert "rank 1: the rollouts of step 1 cannot be written" in done.stderr and str(taken) in done.stderr
    assert "Traceback" not in done.stderr
    assert not read_history(tmp_path / "runs" / "small" / "metrics.jsonl").steps


def test_unhealthy_rollouts_warn(run):
    """Six tokens are no answer; at the default threshold."""
    cut = {"custom.extra.rollout_matching.max_new_tokens": 6, "stage2_ab.channel_b.health.patience": 2}
    done = run(cut)
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-2000:]
    warning = "warning: parse/ok + parse/empty_answer was below 0.5 in the last 2 B steps (now 0); the largest parse/"
    assert done.stdout.count(warning) == 1, done.stdout[-3000:]


def test_unhealthy_rollouts_stop_both_ranks(run):
    cut = {"custom.extra.rollout_matching.max_new_tokens": 6, "stage2_ab.channel_b.health.patience": 2}
    done = run({**cut, "stage2_ab.channel_b.health.valid_rate.stop": 0.5})
    assert done.returncode == EXIT_TRAINING, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("error: ") == 1
    assert "step 2, stage2_ab.channel_b.health.valid_rate.stop: parse/ok + parse/empty_answer was below" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_target_above_the_cap_is_named_on_both(run):
    """Prompt and rollout fit the cap, the objects that a cut rollout missed do not."""
    append = {"stage2_ab.channel_b.target": "append"}
    done = run({**append, "training.global_max_length": 70, "custom.extra.rollout_matching.max_new_tokens": 5})
    assert done.returncode == EXIT_DATA, done.stdout[-2000:] + done.stderr[-2000:]
    assert done.stderr.count("error: ") == 1
    assert "training.global_max_length is 70" in done.stderr and "max_new_tokens" in done.stderr
    assert "Traceback" not in done.stderr
