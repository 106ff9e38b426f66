"""NCCL is chosen where both ends have the same one; every other case goes by way of host memory."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from ds_stage2ab.config.servers import GLOO_TRANSFER, NCCL_TRANSFER
from ds_stage2ab.launch.transfer import choose_transfer, nccl_version


def python_with(tmp_path: Path, says: str) -> Path:
    """An interpreter of an environment whose torch has that NCCL."""
    path = tmp_path / f"python-{len(list(tmp_path.iterdir()))}"
    path.write_text(f"#!/bin/sh\n{says}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("learner", "server", "engine", "why"),
    [
        ("echo 2.27.5", "echo 2.27.5", NCCL_TRANSFER, "both ends have NCCL 2.27.5"),
        ("echo 2.27.5", "echo 2.28.3", GLOO_TRANSFER, "the learner has NCCL 2.27.5, the servers 2.28.3"),
        ("echo 2.27.5", "exit 1", GLOO_TRANSFER, "the learner has NCCL 2.27.5, the servers none"),
        ("exit 1", "exit 1", GLOO_TRANSFER, "the learner has no NCCL, the servers none"),
    ],
)
def test_the_engine(tmp_path, learner, server, engine, why):
    chosen, said = choose_transfer(python_with(tmp_path, learner), python_with(tmp_path, server), time.sleep)
    assert chosen == engine and why in said


def test_a_torch_for_the_cpu_has_none():
    assert nccl_version(Path(sys.executable), time.sleep) is None


def test_a_python_that_cannot_be_run_has_none(tmp_path):
    assert nccl_version(tmp_path / "python", time.sleep) is None


class Stopped(Exception):
    pass


def test_what_ends_the_asking_ends_the_process_that_is_asked(tmp_path):
    """It is deaf to all but SIGKILL, and has written its number when the signal comes."""
    number = tmp_path / "number"

    def pause(seconds):
        time.sleep(seconds)
        if number.exists() and number.read_text():
            raise Stopped

    with pytest.raises(Stopped):
        nccl_version(python_with(tmp_path, f"trap '' TERM; echo $$ > {number}; while :; do sleep 0.1; done"), pause)
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), signal.SIG_DFL)  # 0: only looks whether it is there


def test_an_answer_that_no_pipe_holds_is_read(tmp_path):
    """Whatever a torch says at its import: 200,000 bytes, more than the 65,536 of a pipe."""
    said = nccl_version(python_with(tmp_path, "head -c 200000 /dev/zero | tr '\\0' x"), time.sleep)
    assert said == "x" * 200_000
