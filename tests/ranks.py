"""Ranks that no launcher has started: processes with the variables that it would set, each with its own words."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.parts import ROOT, free_port


@contextmanager
def started(number: int, *command: str, **variables: str) -> Iterator[list[subprocess.Popen[str]]]:
    """`python COMMAND...` as so many ranks of one machine; what is left of them at the end is killed.

    Args:
        variables: added to the environment of each, in the place of what stands there.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(number)}
    ours = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**os.environ, **shared, **ours, "RANK": str(rank), "LOCAL_RANK": str(rank), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
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
