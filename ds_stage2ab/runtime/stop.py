"""A run that is asked to stop: by a signal to any rank, or because its time is over.

The first request is told to every rank. Each agreement of the ranks looks at it (`ranks.Agreement`), and so do long
waits between two agreements, through `StopRequest.check`: every rank raises `Stopped`, and the last finished step is
saved. A second signal more than 2 s after the first ends every rank at once.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ds_stage2ab.errors import EXIT_ENVIRONMENT, EXIT_STOPPED, Stopped
from ds_stage2ab.runtime.shutdown import exit_now, on_signals, say

if TYPE_CHECKING:
    from torch.distributed import Store

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
"""SIGUSR1 is the early warning that schedulers can be told to send."""
AGAIN_S = 2.0
"""Seconds after the first signal from which a second one counts: launchers and terminals send one twice."""
ALONE_S = 10.0
"""Longest wait of a stopping rank for its own error when another rank of this machine is gone."""
LOOK_S = 1.0
FOR_EVER = timedelta(days=365)
ASKED, AT_ONCE = "stop", "stop at once"
"""Keys of the store that the ranks share."""
ZOMBIE = ("Z", "X")
"""States of /proc/PID/stat of a process that has ended."""


class StopRequest:
    """Whether this run shall end early, and why.

    Args:
        rank: of this process.

    Attributes:
        why: what asked for it; empty while nothing has.
        immediate: whether a request ends this process at once: nothing is there yet that would be lost.
        leaving: whether this process is about to end, so that further signals say nothing.
        doing: returns what this rank is doing, in words.
        saved: returns what rank 0 says of the newest checkpoint.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.why = ""
        self.immediate = True
        self.leaving = False
        self.doing: Callable[[], str] = lambda: "the start"
        self.saved: Callable[[], str] = str
        self._asked_at = 0.0
        self._parent = os.getppid()
        self._neighbours: tuple[int, ...] = ()
        self._store: Store | None = None
        self._limits: list[tuple[str, Callable[[], float]]] = []

    def listen(self) -> None:
        """Take the signals of this process; to be called in its main thread."""
        on_signals(SIGNALS, self._signalled)

    def join(self, store: "Store", watched: "Store", neighbours: tuple[int, ...]) -> None:
        """Share requests with the other ranks.

        Args:
            store: of all ranks.
            watched: another connection to it, for the thread that waits for requests.
            neighbours: process ids of the other ranks on this machine.
        """
        self._store, self._neighbours = store, neighbours
        threading.Thread(target=self._follow, args=(watched,), name="stop", daemon=True).start()

    def limit(self, name: str, end: Callable[[], float]) -> None:
        """Ask when `time.monotonic()` has reached `end()`; `name` is the config key."""
        self._limits.append((name, end))

    def save_first(self) -> None:
        """From here on a request is agreed on, and what is finished is saved."""
        self.immediate = False

    def wanted(self) -> Stopped | None:
        """The error to raise, if the run shall stop."""
        for name, end in self._limits if not self.why else ():
            if time.monotonic() >= end():
                self._ask(name)
        return Stopped(self.why) if self.why else None

    def check(self) -> None:
        """Raise it, on this rank alone: inside a block of `raise_together`, which passes it on."""
        stopped = self.wanted()
        if stopped is not None:
            raise stopped

    def _signalled(self, number: int) -> None:
        name = signal.Signals(number).name
        if self.leaving:
            return
        if number == signal.SIGTERM and (os.getppid() != self._parent or self._has_lost_neighbour()):
            self._end_as_lost(name)
        if not self.why:
            self._ask(f"{name} to rank {self.rank}")
        elif self._asked_at and time.monotonic() - self._asked_at > AGAIN_S:
            self._publish(AT_ONCE, name)
            self._end_at_once(name)

    def _ask(self, why: str) -> None:
        self.why, self._asked_at = why, time.monotonic()
        self._publish(ASKED, why)
        self._begin()

    def _follow(self, watched: "Store") -> None:
        """What other ranks were asked."""
        with suppress(RuntimeError):  # the store is gone with rank 0
            watched.wait([ASKED], FOR_EVER)
            why = watched.get(ASKED).decode()
            if not self.why:
                self.why, self._asked_at = why, time.monotonic()
                self._begin()
            watched.wait([AT_ONCE], FOR_EVER)
            if not self.leaving:
                self._end_at_once(watched.get(AT_ONCE).decode())

    def _begin(self) -> None:
        if self.immediate:
            if self.rank == 0 or self._store is None:
                say(f"by {self.why}, during {self.doing()}: nothing is lost", head="stopped")
            exit_now(EXIT_STOPPED)
        if self.rank == 0:
            say(f"{self.why}: saves the last finished step and ends; a second one ends it at once", head="stopping")
        threading.Thread(target=self._watch_neighbours, name="neighbours", daemon=True).start()

    def _publish(self, key: str, value: str) -> None:
        if self._store is not None:
            with suppress(RuntimeError):  # rank 0 and its store are gone: the next collective raises
                self._store.set(key, value)

    def _end_at_once(self, name: str) -> None:
        if self.rank == 0:
            say(f"at once by a second {name}, during {self.doing()}{_joined(self.saved())}", head="stopped")
        exit_now(EXIT_STOPPED)

    def _end_as_lost(self, name: str) -> None:
        """The launcher ends the ranks that are left when one has died; or it has died itself."""
        kept = _joined(self.saved()) if self.rank == 0 else ""
        say(
            f"rank {self.rank}: ended by {name}; it was at: {self.doing()}{kept}\n"
            "  fix: another rank, or the launcher, has ended before: look for the words of that one"
        )
        exit_now(EXIT_ENVIRONMENT)

    def _watch_neighbours(self) -> None:
        """A rank that waits in a collective of NCCL for one that is gone never raises."""
        while not self._has_lost_neighbour():
            time.sleep(LOOK_S)
        time.sleep(ALONE_S)
        if not self.leaving:
            self._end_as_lost(self.why)

    def _has_lost_neighbour(self) -> bool:
        return not all(_lives(pid) for pid in self._neighbours)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ZOMBIE
    except OSError:
        return False


def _joined(words: str) -> str:
    return f"; {words}" if words else ""
