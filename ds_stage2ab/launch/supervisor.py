"""Runs one command, and ends its whole tree of processes when the launcher ends.

`python -m ds_stage2ab.launch.supervisor GRACE_S child|ranks COMMAND...` runs the command. Standard input is a pipe
without data: when the launcher closes it, or is killed, the command gets SIGTERM and GRACE_S seconds, and then the rest
of its tree SIGTERM, 2 seconds, and SIGKILL. With `ranks` the first SIGTERM goes to the learner ranks: DeepSpeed would
pass it on to one rank after the other, or not at all. SIGTERM to the supervisor ends all waits at once.

Orphans of the tree become children of the supervisor, in whatever session, so none is missed. Exit code: that of
the command, 128 + n if signal n ended it.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from ds_stage2ab.errors import EXIT_ENVIRONMENT, EXIT_OK
from ds_stage2ab.runtime.shutdown import end_with_parent, say

CHILD = "child"
RANKS = "ranks"
PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphaned descendants become children of this process instead of init's."""
SIGNAL_CODES = 128
"""A shell's exit code of a process that signal n ended is 128 + n."""
LOOK_S = 0.2
ORPHANS_S = 2
"""Seconds between SIGTERM and SIGKILL for descendants that the command has left behind."""
KILL_S = 5
"""Longest wait for processes to be gone after SIGKILL; the kernel may hold one that waits for a device."""


def adopt_orphans() -> None:
    """Make this process the parent of every descendant whose own parent ends."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants(root: int) -> list[int]:
    """Living processes below `root`, parents before their children."""
    children: dict[int, list[int]] = {}
    for pid, parent in _processes():
        children.setdefault(parent, []).append(pid)
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def _processes() -> Iterator[tuple[int, int]]:
    """(process, parent) of all living processes; zombies are left out."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has just ended
                # pid (name) state parent ...: the name may hold anything
                state, parent = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:2]
                if state not in (b"Z", b"X"):
                    yield int(folder.name), int(parent)


def learner_ranks(root: int) -> list[int]:
    """Ranks below `root`: those that DeepSpeed gave a LOCAL_RANK; their own children only inherit it."""
    pids = set(descendants(root))
    return [pid for pid, parent in _processes() if pid in pids and _has_rank(pid) and not _has_rank(parent)]


def _has_rank(pid: int) -> bool:
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(variable.startswith(b"LOCAL_RANK=") for variable in variables)


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


class Supervisor:
    """See the module.

    Args:
        grace_s: seconds between SIGTERM and SIGKILL.
        whom: CHILD or RANKS, who gets the SIGTERM.
    """

    def __init__(self, grace_s: float, whom: str) -> None:
        self.grace_s = grace_s
        self.whom = whom
        self.ranks: set[int] = set()
        self._codes: dict[int, int] = {}
        self._hurry = False

    def keep(self, command: list[str]) -> int:
        """Run the command until it or the launcher ends; returns the exit code."""
        signal.signal(signal.SIGTERM, lambda number, frame: self._be_quick())
        for number in (signal.SIGINT, signal.SIGHUP):  # not ignored: that would be inherited
            signal.signal(number, lambda number, frame: None)
        adopt_orphans()
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=end_with_parent)  # noqa: PLW1509
        asked = False
        while child.pid not in self._codes and not asked:
            asked = bool(select.select([0], [], [], LOOK_S)[0])
            if self.whom == RANKS:
                self.ranks |= set(learner_ranks(os.getpid()))
            self._reap()
        self._end(child.pid)
        child.returncode = code = self._codes.get(child.pid, -signal.SIGKILL)
        if code == EXIT_OK and not asked and any(self._codes.get(rank) for rank in self.ranks):
            say("the process between DeepSpeed's launcher and the ranks was killed: the ranks have ended without it")
            return EXIT_ENVIRONMENT
        return code if code >= 0 else SIGNAL_CODES - code

    def _be_quick(self) -> None:
        self._hurry = True

    def _reap(self) -> None:
        """Record the exit codes of children and adopted orphans that have ended."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])

    def _end(self, child: int) -> None:
        """End every process below this one."""
        everybody = descendants(os.getpid())
        first = learner_ranks(os.getpid()) if self.whom == RANKS else [child]
        first = [pid for pid in first if pid in everybody] or everybody
        signal_all(first, signal.SIGTERM)
        self._wait(self.grace_s, lambda: child in self._codes and not set(first) & set(descendants(os.getpid())))
        signal_all(descendants(os.getpid()), signal.SIGTERM)  # descendants that those have left behind
        self._wait(ORPHANS_S, lambda: not descendants(os.getpid()))
        deadline = time.monotonic() + KILL_S
        while (left := descendants(os.getpid())) and time.monotonic() < deadline:
            signal_all(left, signal.SIGKILL)
            time.sleep(LOOK_S)
            self._reap()

    def _wait(self, longest_s: float, is_over: Callable[[], bool]) -> None:
        deadline = time.monotonic() + longest_s
        self._reap()
        while not is_over() and time.monotonic() < deadline and not self._hurry:
            time.sleep(LOOK_S)
            self._reap()


if __name__ == "__main__":
    grace_s, whom, *command = sys.argv[1:]
    sys.exit(Supervisor(float(grace_s), whom).keep(command))
