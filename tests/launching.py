"""One `ds-stage2ab launch` in a test, and every process that it has started."""

import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from tests.parts import ROOT

MARK = "LAUNCH_TEST"


class Launched:
    """A launcher that leads its own process group; what it starts carries its mark.

    Args:
        command: the launcher's command line.
        folder: where its output goes.
        variables: added to the environment.
    """

    def __init__(self, command: list[str], folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self.mark = f"{MARK}={folder}"
        self.output = folder / "output"
        self.seen: list[psutil.Process] = []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables, MARK: str(folder)}
        with self.output.open("wb") as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=file, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def stop_lines(self) -> list[str]:
        return re.findall("^launch: .*; stopped .*$", self.said, re.MULTILINE)

    def wait_for(self, is_so, within_s: float) -> None:
        wait_for(is_so, within_s, lambda: self.said[-3000:])

    def look(self) -> list[psutil.Process]:
        """Its processes by descent, for `ends`: some write their name over their environment, and over the mark."""
        self.seen = psutil.Process(self.process.pid).children(recursive=True)
        return self.seen

    def ends(self, within_s: float) -> int:
        """The exit code, after which nothing is left: neither of what carries the mark nor of what was seen."""
        start = time.monotonic()
        code = self.process.wait(within_s)
        wait_for(
            lambda: not self.left() and not any(map(lives, self.seen)),
            within_s - (time.monotonic() - start),
            lambda: f"left: {self.left()}, {[one for one in self.seen if lives(one)]}",
        )
        return code

    def left(self) -> list[tuple[int, bytes]]:
        """(pid, command line) of the processes that carry the mark."""
        return [pair for pair in processes() if self.mark.encode() in read(pair[0], "environ").split(b"\0")]

    def with_words(self, *words: str) -> list[int]:
        return [pid for pid, command in self.left() if all(word.encode() in command for word in words)]

    def end(self) -> None:
        for pid in {*(one.pid for one in self.seen if lives(one)), *(pid for pid, _ in self.left())}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def processes():
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (command := read(folder.name, "cmdline")):  # a dead one has none
            yield int(folder.name), command


def read(pid, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""  # it has just ended


def lives(process: psutil.Process) -> bool:
    """Its number may have been given to another process meanwhile."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_for(is_so, within_s: float, said) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, said()
        time.sleep(0.2)
