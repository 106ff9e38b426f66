"""Ranks that no launcher has started: processes with the variables that it would set, each with its own words."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from tempfile import TemporaryDirectory, TemporaryFile
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

    What each says in its own time, as on one terminal. As `parts.launch_script`, in a fraction of its time: for what
    does not need a launcher that ends the other ranks. The ranks are forks of a process that has imported everything.
    """
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        variables = _variables(ranks, environment or {})
        processes: list[Forked] = []
        try:
            for rank in range(ranks):
                processes.append(Forked(words, {**variables, **_places(rank)}, (out, err)))
            codes = [process.wait(timeout=RUN_TIMEOUT_S) for process in processes]
        finally:
            for process in processes:
                process.kill()
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
    shared = _variables(number, variables)
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**shared, **_places(rank)},
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


def _variables(number: int, changed: dict[str, str]) -> dict[str, str]:
    """The environment that so many ranks share."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(number)}
    ours = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **shared, **ours, **changed}


def _places(rank: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank)}


class Forked:
    """`python words...` as a fork of the one server; as much of `subprocess.Popen` as `run` needs."""

    def __init__(self, words: tuple[str, ...], environment: dict[str, str], streams: tuple[IO[str], IO[str]]) -> None:
        request = {"words": words, "environment": environment, "folder": str(ROOT)}
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.connect(_server())
        socket.send_fds(self.connection, [json.dumps(request).encode()], [stream.fileno() for stream in streams])
        self.pid = int(self.connection.recv(32))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.connection.settimeout(timeout)
            self.returncode = int(self.connection.recv(32))
            self.connection.close()
        return self.returncode

    def kill(self) -> None:
        """Until it is gone; a rank that has ended is left alone."""
        if self.returncode is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()


@cache
def _server() -> str:
    """The address of the process that forks ranks, which ends with this one: its stdin is a pipe from here."""
    folder = TemporaryDirectory(prefix="ranks-")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"{folder.name}/socket")
    listener.listen(64)
    environment = {**_variables(1, {}), **_places(0)}
    command = [sys.executable, "-m", "tests.rank_server", str(listener.fileno())]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, pass_fds=(listener.fileno(),)
    )
    listener.close()
    _KEPT.append((folder, server))
    return f"{folder.name}/socket"


_KEPT: list[tuple[TemporaryDirectory, subprocess.Popen]] = []
"""Until this process ends."""
