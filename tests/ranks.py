"""Ranks that no launcher has started: processes with the variables that it would set, each with its own words."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryFile
from typing import IO

from tests.parts import ROOT, RUN_TIMEOUT_S, free_port


@contextmanager
def started(number: int, *command: str, **variables: str) -> Iterator[list[subprocess.Popen[str]]]:
    """`python COMMAND...` as so many ranks of one machine; what is left of them at the end is killed.

    Args:
        variables: added to the environment of each, in the place of what stands there.
    """
    pipes = (subprocess.PIPE, subprocess.PIPE)
    with _ranks(number, command, variables, pipes) as processes:
        yield processes


def run(*words: str, ranks: int, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python words...` as so many ranks, until all have ended, with the code of the first that failed.

    What each says in its own time, as on one terminal. As `parts.launch_script`, in half of its time: for what does not
    need a launcher that ends the other ranks.
    """
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with _ranks(ranks, words, environment or {}, (out, err)) as processes:
            codes = [process.wait(timeout=RUN_TIMEOUT_S) for process in processes]
        code = next((code for code in codes if code), 0)
        said, complained = (file.seek(0) or file.read() for file in (out, err))
    return subprocess.CompletedProcess(words, code, said, complained)


def train(
    config: object, *arguments: str, ranks: int, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python ds_stage2ab/train.py --config X ...` as so many ranks."""
    words = ("ds_stage2ab/train.py", "--config", str(config), *arguments)
    return run(*words, ranks=ranks, environment=environment)


@contextmanager
def _ranks(
    number: int, command: tuple[str, ...], variables: dict[str, str], streams: tuple[int | IO[str], int | IO[str]]
) -> Iterator[list[subprocess.Popen[str]]]:
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(number)}
    ours = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **shared, **ours, "RANK": str(rank), "LOCAL_RANK": str(rank), **variables},
            stdout=streams[0],
            stderr=streams[1],
            text=True,
        )
        for rank in range(number)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()
