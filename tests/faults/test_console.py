"""A console that goes away, and Ctrl-C: real ranks."""

import os
import re
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from ds_stage2ab.errors import EXIT_OK, EXIT_STOPPED
from ds_stage2ab.metrics.journal import read_history
from tests.parts import config_values, merged, write_config
from tests.ranks import Forked, _environments, started

LONGEST_S = 120


@pytest.fixture
def config(quickstart, tmp_path):
    values = merged(config_values(quickstart, tmp_path, "run"), {"checkpoint.every_steps": 1, "training.max_steps": 4})
    return str(write_config(tmp_path / "c.yaml", values))


@contextmanager
def read_by_nobody(after):
    """(stream to write to, its reader, which closes after so many lines)."""
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out, os.fdopen(reader) as lines:
        yield out, lambda: [lines.readline() for _ in range(after)] and lines.close()


def test_training_goes_on_without_its_console(config, tmp_path):
    errors = (tmp_path / "errors").open("w+")
    with errors, read_by_nobody(after=2) as (out, read):
        (variables,) = _environments(1, {})
        rank = Forked(("ds_stage2ab/train.py", "--config", config), variables, (out, errors))
        try:
            read()
            assert rank.wait(timeout=LONGEST_S) == EXIT_OK
        finally:
            rank.kill()
        errors.seek(0)
        assert errors.read() == "warning: the output cannot be written (Broken pipe); the work goes on without it\n"
    assert [step.step for step in read_history(tmp_path / "run" / "metrics.jsonl").steps] == [1, 2, 3, 4]
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-000004\n"
    assert (tmp_path / "run" / "curves.png").is_file()


def test_ctrl_c_saves_and_names_the_newest_checkpoint(config, tmp_path):
    latest = tmp_path / "run" / "checkpoints" / "latest"
    many = ("--set", "training.max_steps=500")
    with started(2, "ds_stage2ab/train.py", "--config", config, *many) as ranks:
        wait_for(latest)
        for rank in ranks:  # as a terminal does
            os.kill(rank.pid, signal.SIGINT)
        said = [rank.communicate(timeout=LONGEST_S)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [EXIT_STOPPED, EXIT_STOPPED]
    assert said[1] == ""
    newest = latest.parent / latest.read_text().strip()
    first, second = said[0].splitlines()
    by = r"SIGINT to rank [01]"  # either may tell the other first
    assert re.fullmatch(rf"stopping: {by}: saves the last finished step and ends; a second one ends it at once", first)
    assert re.fullmatch(rf"stopped: {by}, after step [0-9]+ of 500; its newest checkpoint is .*", second)
    assert second.endswith(f"{newest}, from which --resume auto goes on")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + LONGEST_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} was never written"
        time.sleep(0.05)
