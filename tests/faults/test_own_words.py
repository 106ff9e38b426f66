"""What one rank alone knows, it says itself; and no rank waits for one that is stopped for ever."""

import signal
import time

import pytest

from ds_stage2ab.errors import EXIT_ENVIRONMENT, EXIT_OK, EXIT_UNCAUGHT
from ds_stage2ab.metrics.journal import read_history
from tests.parts import ROOT, config_values, merged, write_config
from tests.ranks import launch_script, started

LONGEST_S = 60


@pytest.fixture
def config(quickstart, tmp_path):
    """Writes the config of the small run with changes."""

    def written(**changes):
        values = merged(config_values(quickstart, tmp_path / "runs", "small"), {"training.max_steps": 3, **changes})
        return str(write_config(tmp_path / "small.yaml", values))

    return written


def steps(tmp_path):
    return [step.step for step in read_history(tmp_path / "runs" / "small" / "metrics.jsonl").steps]


def test_a_disk_that_is_full_ends_all_and_the_one_before_stays(config, tmp_path):
    """Rank 0 writes, after the gathers that all take part in."""
    path = config(**{"deepspeed.zero_stage": 2, "training.optimizer": "adamw", "checkpoint.every_steps": 1})
    environment = {"FAULT": "full:1", "FAULTY_RANK": "0", "PYTHONPATH": str(ROOT)}
    done = launch_script("tests/faults/planted_alone.py", "--config", path, ranks=2, environment=environment)
    assert done.returncode == EXIT_ENVIRONMENT
    checkpoints = tmp_path / "runs" / "small" / "checkpoints"
    assert f"error: {checkpoints}: a checkpoint cannot be written: " in done.stderr, done.stderr[-3000:]
    assert "fix: free space, or make the folder writable" in done.stderr
    assert "Traceback" not in done.stderr
    assert steps(tmp_path) == [1, 2]
    assert (checkpoints / "latest").read_text() == "step-000001\n"


def test_a_first_rank_that_is_stopped_does_not_stop_the_other(config, tmp_path):
    path = config(**{"deepspeed.collective_timeout_s": 6})
    words = ("tests/faults/planted_alone.py", "--config", path)
    with started(2, *words, FAULT="stop:1", FAULTY_RANK="0") as (first, second):
        _, said = second.communicate(timeout=LONGEST_S)
        assert first.poll() is None, "rank 0 ended: it was not stopped"
    assert first.returncode == -signal.SIGKILL  # from the test
    assert second.returncode == EXIT_ENVIRONMENT
    assert "error: last heard of rank 0: not known, it does not answer: rank 1 waited for the other ranks" in said
    assert "Traceback" not in said
    assert steps(tmp_path) == [1]


@pytest.mark.soak
def test_of_three_ranks_the_one_that_hangs_is_named_by_both_others(config, tmp_path):
    """Rank 0 holds what each of them was at: it says its own words and stays until the other has read them."""
    path = config(**{"deepspeed.collective_timeout_s": 6, "training.effective_batch_size": 12})
    start = time.monotonic()
    with started(3, "tests/faults/planted_alone.py", "--config", path, FAULT="stop:1", FAULTY_RANK="2") as processes:
        said = [process.communicate(timeout=LONGEST_S)[1] for process in processes[:2]]
    assert time.monotonic() - start < LONGEST_S
    assert [process.returncode for process in processes] == [EXIT_ENVIRONMENT, EXIT_ENVIRONMENT, -signal.SIGKILL]
    for rank, words in enumerate(said):
        assert f"error: last heard of rank 2: what follows recording the metrics: rank {rank} waited for" in words, said
    assert steps(tmp_path) == [1]


def test_a_first_rank_without_room_for_what_it_sends_is_heard_by_the_other():
    with started(2, "tests/faults/no_room_to_send.py") as processes:
        first, second = (process.communicate(timeout=LONGEST_S)[1] for process in processes)
    assert [process.returncode for process in processes] == [EXIT_OK, EXIT_UNCAUGHT]
    assert "ours: no room for a copy" in first
    assert "error: rank 0: MemoryError: no room for a copy" in second
