"""Ranks that no launcher has started: forks of a process that has imported everything, each with its own output."""

import json
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

from tests import parts
from tests.parts import ROOT, RUN_TIMEOUT_S, free_port

SOCKET, PYTHON = "socket", "python"
STREAMS = [1, 2]


def run(*words: str, ranks: int, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`python words...` as so many ranks, until all have ended, with the code of the first that failed.

    Their outputs are mixed as on one terminal. As `parts.launch_script`, in a fraction of its time: for what does not
    need a launcher that ends the other ranks.
    """
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        with _forks(ranks, words, environment or {}, (out, err)) as processes:
            codes = [process.wait(timeout=RUN_TIMEOUT_S) for process in processes]
        code = next((code for code in codes if code), 0)
        return subprocess.CompletedProcess(words, code, *(file.seek(0) or file.read() for file in (out, err)))


def train(
    config: object, *arguments: str, ranks: int, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`python ds_stage2ab/train.py --config X ...` as so many ranks."""
    words = ("ds_stage2ab/train.py", "--config", str(config), *arguments)
    return run(*words, ranks=ranks, environment=environment)


def launch_script(
    *words: str, ranks: int, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As `parts.launch_script`, where launcher and ranks are forks: their parents and signals are not their own."""
    program = "from deepspeed.launcher.runner import main; main()"
    return parts.launch_script(*words, ranks=ranks, environment=environment, launcher=(python(), "-c", program))


def launch(
    config: object, *arguments: str, ranks: int, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`deepspeed --num_gpus N ds_stage2ab/train.py --config X ...`, as forks."""
    words = ("ds_stage2ab/train.py", "--config", str(config), *arguments)
    return launch_script(*words, ranks=ranks, environment=environment)


@contextmanager
def started(number: int, *words: str, **environment: str) -> Iterator[list["Forked"]]:
    """`python words...` as so many ranks; what is left of them at the end is killed.

    Args:
        environment: added to that of each, in the place of what stands there.
    """
    with _forks(number, words, environment) as processes:
        yield processes


@contextmanager
def executed(number: int, *words: str, **environment: str) -> Iterator[list[subprocess.Popen[str]]]:
    """As `started`, each a process that imports for itself: for what depends on how a process begins."""
    command, pipe = [sys.executable, *words], subprocess.PIPE
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=variables, stdout=pipe, stderr=pipe, text=True)
        for variables in _environments(number, environment)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@contextmanager
def _forks(
    number: int, words: tuple[str, ...], environment: dict[str, str], streams: tuple[IO[str], IO[str]] | None = None
) -> Iterator[list["Forked"]]:
    processes: list[Forked] = []
    try:
        for variables in _environments(number, environment):
            processes.append(Forked(words, variables, streams))
        yield processes
    finally:
        for process in processes:
            process.kill()


def _environments(number: int, changed: dict[str, str]) -> list[dict[str, str]]:
    """Of each rank, as the launcher would set it, with `changed` in it."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(number)}
    ours = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]
    return [{**os.environ, **shared, **ours, **place, **changed} for place in places]


class Forked:
    """`python words...` as a fork of the one server; as much of `subprocess.Popen` as the tests need.

    Args:
        words: a script and its arguments, or `-m`, a module and them, or `-c` and a program.
        streams: stdout and stderr; None: files of its own, which `communicate` reads.
    """

    def __init__(
        self, words: tuple[str, ...], environment: dict[str, str], streams: tuple[IO[str], IO[str]] | None = None
    ) -> None:
        self.streams = streams or (TemporaryFile("w+"), TemporaryFile("w+"))  # noqa: SIM115 (closed with this)
        self.returncode: int | None = None
        request = {
            "words": words,
            "environment": environment,
            "folder": str(ROOT),
            "files": STREAMS,
            "limit": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.connect(str(_server() / SOCKET))
        descriptors = [stream.fileno() for stream in self.streams]
        socket.send_fds(self.connection, [json.dumps(request).encode()], descriptors)
        self.pid = int(self.connection.recv(32))

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.connection.settimeout(timeout)
            self.returncode = int(self.connection.recv(32))
            self.connection.close()
        return self.returncode

    def poll(self) -> int | None:
        try:
            return self.wait(timeout=0)
        except BlockingIOError:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr), once it has ended."""
        self.wait(timeout)
        out, err = (stream.seek(0) or stream.read() for stream in self.streams)
        return out, err

    def kill(self) -> None:
        """Until it is gone; a rank that has ended is left alone."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ends in this moment
                os.kill(self.pid, signal.SIGKILL)
            self.wait()


def python() -> str:
    """A Python for what a test starts: as `sys.executable`, but that each of its processes is a fork."""
    return str(_server() / PYTHON)


@cache
def _server() -> Path:
    """The folder of the process that forks ranks, which ends with this one: its stdin is a pipe from here."""
    holder = TemporaryDirectory(prefix="ranks-")
    folder = Path(holder.name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(folder / SOCKET))
    listener.listen(64)
    client = shlex.join([sys.executable, "-IS", str(ROOT / "tests" / "rank_client.py"), str(folder / SOCKET)])
    (folder / PYTHON).write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    (folder / PYTHON).chmod(0o700)
    (environment,) = _environments(1, {})
    command = [sys.executable, "-m", "tests.rank_server", str(listener.fileno()), str(folder / PYTHON)]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, pass_fds=(listener.fileno(),)
    )
    listener.close()
    _KEPT.append((holder, server))
    return folder


_KEPT: list[tuple[TemporaryDirectory, subprocess.Popen]] = []
"""Until this process ends."""
