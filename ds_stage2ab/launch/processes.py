"""The processes of one launch: started, watched and ended together, each with its descendants.

Each process runs under a supervisor (`launch/supervisor.py`), which ends it when the launcher has ended, SIGKILL
included. Every wait is bounded, and checks for signals.
"""

import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ds_stage2ab.config.report import redacted
from ds_stage2ab.errors import EnvironmentFault, printable
from ds_stage2ab.launch.supervisor import (
    CHILD,
    KILL_S,
    LOOK_S,
    ORPHANS_S,
    RANKS,
    adopt_orphans,
    descendants,
    signal_all,
)

LOOPBACK = "127.0.0.1"
LEARNER_GRACE_S = 600
"""For the learner to save its last finished step; a second signal shortens it."""
SERVER_GRACE_S = 6
LONGEST_END_S = LEARNER_GRACE_S + ORPHANS_S + KILL_S + 1
"""Longest wait for a supervisor to end; then it is killed."""
HEALTH_S = 2
"""Longest wait for a connection, and for the answer to /health."""
ROUND_S = 1
TAIL_LINES = 20
TAIL_BYTES = 16_384
OF_NANOBIND = ("nanobind: ", " - leaked ", " - ... skipped remainder", "See https://nanobind.")
"""Start of the lines that nanobind's modules, vLLM's among them, write at exit: thirty, after the error itself."""
AGAIN_S = 2
"""Seconds after the first signal from which a second one counts: one Ctrl-C can arrive twice."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class Interrupted(Exception):
    """A signal asks the launcher to end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class ManagedProcess:
    """One process of the launch, under its supervisor."""

    name: str
    supervisor: subprocess.Popen
    log: Path | None
    # None: it has the launcher's output

    @property
    def code(self) -> int | None:
        """The exit code of the process; None while it lives."""
        return self.supervisor.poll()

    def ask_to_end(self) -> None:
        self.supervisor.stdin.close()

    def last_words(self) -> str:
        """The end of its log, indented, without blank lines and nanobind's."""
        if self.log is None:
            return ""
        with self.log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        last = [line for line in lines if line.strip() and not line.startswith(OF_NANOBIND)][-TAIL_LINES:]
        shown = "".join(f"\n    {printable(redacted(line))}" for line in last or ["(nothing)"])
        return f"\n  the last lines of {self.log}:{shown}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A rollout server and its address."""

    url: str
    port: int
    process: ManagedProcess

    def is_ready(self) -> bool:
        """Whether it answers /health with 200."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=HEALTH_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def refuse_if_ended(self) -> None:
        if self.process.code is not None:
            raise EnvironmentFault(
                f"the server ended with code {self.process.code} before it was ready{self.process.last_words()}",
                where=self.url,
                fix="mend what its log names; --server-python is the Python that has vLLM",
            )


class ProcessGroup:
    """All processes of one launch; none outlives the `with` block."""

    def __init__(self) -> None:
        self.members: list[ManagedProcess] = []
        self.stopped: list[str] = []
        # names of those that did not end by themselves
        self._signal = 0
        self._signal_time = 0.0
        self._hurry = False
        self._handlers = ExitStack()

    def __enter__(self) -> "ProcessGroup":
        adopt_orphans()
        for number in SIGNALS:
            self._handlers.callback(signal.signal, number, signal.signal(number, self._note))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._handlers:
            self.end()

    def _note(self, number: int, frame: object) -> None:
        if self._signal and time.monotonic() - self._signal_time > AGAIN_S:
            self._hurry = True
        elif not self._signal:
            self._signal, self._signal_time = number, time.monotonic()

    def check(self) -> None:
        """Raises Interrupted if a signal has come."""
        if self._signal:
            raise Interrupted(self._signal)

    def pause(self, seconds: float) -> None:
        """Sleep; raises Interrupted if a signal comes."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.check()
            time.sleep(min(LOOK_S, left))
        self.check()

    def start(self, name: str, command: list[str], environment: dict[str, str], log: Path) -> ManagedProcess:
        """Start a server, which writes to `log`."""
        with log.open("wb") as file:
            output = {"stdout": file, "stderr": subprocess.STDOUT}
            supervisor = self._supervise([str(SERVER_GRACE_S), CHILD, *command], environment, output)
        return self._take_in(ManagedProcess(name=name, supervisor=supervisor, log=log))

    def start_learner(self, command: list[str], environment: dict[str, str]) -> ManagedProcess:
        """Start the DeepSpeed launcher, which writes to this process's output."""
        supervisor = self._supervise([str(LEARNER_GRACE_S), RANKS, *command], environment, {})
        return self._take_in(ManagedProcess(name="the learner", supervisor=supervisor, log=None))

    def _supervise(self, words: list[str], environment: dict[str, str], output: dict[str, Any]) -> subprocess.Popen:
        command = [sys.executable, "-m", "ds_stage2ab.launch.supervisor", *words]
        return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True, **output)

    def _take_in(self, process: ManagedProcess) -> ManagedProcess:
        self.members.append(process)
        return process

    def end(self) -> None:
        """End the learner first, then all servers at once, then what a killed supervisor has left behind."""
        self.stopped += [process.name for process in self.members if process.code is None]
        for group in ([process for process in self.members if process.log is None], self.members):
            for process in group:
                process.ask_to_end()
            self._wait(lambda group=group: all(process.code is not None for process in group), LONGEST_END_S)
        deadline = time.monotonic() + KILL_S
        while (left := descendants(os.getpid())) and time.monotonic() < deadline:
            signal_all(left, signal.SIGKILL)
            time.sleep(LOOK_S)
            for process in self.members:
                process.supervisor.poll()

    def _wait(self, is_over: Callable[[], bool], longest_s: float) -> None:
        deadline, hurried = time.monotonic() + longest_s, False
        while not is_over() and time.monotonic() < deadline:
            if self._hurry and not hurried:
                signal_all([process.supervisor.pid for process in self.members if process.code is None], signal.SIGTERM)
                hurried = True
            time.sleep(LOOK_S)


def wait_until_ready(
    processes: ProcessGroup, servers: list[Server], longest_s: float, tell: Callable[[int, float], None]
) -> None:
    """Wait until every server answers.

    Args:
        longest_s: seconds for all of them together.
        tell: called in each round with the number of servers that are ready, and the seconds waited.

    Raises:
        EnvironmentFault: one ended, or was not ready in time; with the end of its log.
        Interrupted: a signal came.
    """
    start, waiting = time.monotonic(), servers
    while waiting:
        for server in servers:
            processes.check()
            server.refuse_if_ended()
        waiting = [server for server in waiting if not (processes.check() or server.is_ready())]
        waited = time.monotonic() - start
        tell(len(servers) - len(waiting), waited)
        if waiting and waited > longest_s:
            slow = waiting[0]
            raise EnvironmentFault(
                f"the server was not ready after {longest_s:.0f} s{slow.process.last_words()}",
                where=slow.url,
                fix="mend what its log names, or wait longer with --wait",
            )
        if waiting:
            processes.pause(ROUND_S)
    for server in servers:  # the server that answered may be another launch's
        server.refuse_if_ended()
