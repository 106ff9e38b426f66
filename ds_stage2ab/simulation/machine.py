"""Processes that compute, wait and share cores: events in the order of time, without a clock.

Invariants:
- with cores enough for all, a process that computes w seconds takes w seconds
- with fewer, all that compute go on equally fast, and together as fast as there are cores
- a process that waits uses no core, and goes on at the moment of the signal
- the same processes give the same times
"""

from __future__ import annotations

import heapq
from collections.abc import Generator
from dataclasses import dataclass, field

Process = Generator["float | Signal", None, None]
"""Yields seconds of computing, or what it waits for."""


@dataclass(eq=False)
class Signal:
    """What processes wait for; it happens once, when it was given as often as it must be."""

    needed: int = 1
    waiting: list[Process] = field(default_factory=list)


class Machine:
    """Runs processes to their ends.

    Processor sharing (Kleinrock 1976): while n processes compute on c cores, each does min(1, c / n) seconds of its
    work in a second. That is the same for all, so they are kept in order by the work after which each is done.

    Args:
        cores: of all processes together; None: each has its own device.
    """

    def __init__(self, cores: int | None) -> None:
        self.cores = cores
        self.now = 0.0
        # seconds
        self.done = 0.0
        # seconds of work of a process that computes all the time
        self.computing: list[tuple[float, int, Process]] = []
        self.begun = 0

    def start(self, process: Process) -> None:
        self._go_on(process)

    def run(self) -> float:
        """Until no process computes any more; returns the seconds."""
        while self.computing:
            slowed = max(1.0, len(self.computing) / self.cores) if self.cores else 1.0
            due, _, process = heapq.heappop(self.computing)
            self.now += (due - self.done) * slowed
            self.done = due
            self._go_on(process)
        return self.now

    def give(self, signal: Signal) -> None:
        """Once more; at the last time what waits for it goes on."""
        signal.needed -= 1
        if signal.needed == 0:
            waiting, signal.waiting = signal.waiting, []
            for process in waiting:
                self._go_on(process)

    def _go_on(self, process: Process) -> None:
        for asked in process:
            if isinstance(asked, Signal):
                if asked.needed > 0:
                    asked.waiting.append(process)
                    return
            else:
                self.begun += 1
                heapq.heappush(self.computing, (self.done + asked, self.begun, process))
                return
