"""The folder of one run: claimed by one process group, never shared, never overwritten."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TextIO

from ds_stage2ab.errors import ConfigError, EnvironmentFault, printable

CONFIG_FILE = "config.json"
SAMPLING_FILE = "sampling.json"
ORIGINS_FILE = "origins.json"
"""Where each value of the config came from."""
ENVIRONMENT_FILE = "environment.json"
"""Machine, versions and ranks of the newest start."""
BESIDE = (SAMPLING_FILE, ORIGINS_FILE, ENVIRONMENT_FILE)
LOCK_FILE = "run.lock"
WARNINGS_FILE = "warnings.log"
ATTEMPTS_FILE = "attempts.jsonl"
"""A line for each start of the run."""
LATEST = "latest"
"""Inside `checkpoints`: the name of the newest complete one."""
BEST = "best"
"""There too: the name of the best one."""
ANOTHER_ROOT = "set logging.root to a folder that you may write to"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""What a file system without locks answers."""
REMEDIES = {
    **dict.fromkeys(
        NO_LOCKS,
        "set logging.lock: false and see yourself that no other run writes there, or set logging.root to a local disk",
    ),
    errno.ENAMETOOLONG: "set logging.name to a shorter name",
    errno.ENOSPC: "free space there, or set logging.root to a folder on another disk",
    errno.EDQUOT: "free space there, or set logging.root to a folder on another disk",
}


class RunFolder:
    """Paths of a run's files, and the lock of the process that writes them.

    The lock is the kernel's: it is released when its process ends, however that ends.

    Args:
        path: `logging.root` / `logging.name`.
        locked: `logging.lock`; without a lock a second run may start here at the same moment.
    """

    def __init__(self, path: Path, *, locked: bool) -> None:
        self.path = path
        self.locked = locked
        self.metrics = path / "metrics.jsonl"
        self.warnings = path / WARNINGS_FILE
        self.pictures = path / "pictures"
        self.evaluations = path / "evaluations"
        self.rollouts = path / "rollouts"
        self.checkpoints = path / "checkpoints"
        self._lock: TextIO | None = None

    def refuse_earlier_run(self) -> None:
        """Check before the costly part of a start.

        Raises:
            ConfigError: the folder already holds a run.
            EnvironmentFault: it cannot be looked at.
        """
        with explained(self.path):
            holds_run = (self.path / CONFIG_FILE).exists()
        if holds_run:
            raise ConfigError(
                "this folder already holds a run",
                where=str(self.path),
                fix="write --resume auto to go on with it, set logging.name to another name, or move the folder away",
            )

    def newest_checkpoint_words(self) -> str:
        """Where the newest checkpoint is, for a run that ends early."""
        try:
            name = (self.checkpoints / LATEST).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return "it has saved no checkpoint yet"
        return f"its newest checkpoint is {printable(str(self.checkpoints / name))}, from which --resume auto goes on"

    def try_out(self) -> None:
        """Claim a folder of the same name beside it, and remove it. Rank 0 only, before the costly part of a start.

        Raises:
            EnvironmentFault: the folder cannot be made, written or locked.
        """
        with explained(self.path):
            nearest = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
            with TemporaryDirectory(prefix=".trial-", dir=nearest) as trial:
                folder = RunFolder(Path(trial) / self.path.name, locked=self.locked)
                folder._make({}, {}, resumes=False)
                folder.release()

    def claim(
        self,
        resolved_config: dict[str, Any],
        beside: Mapping[str, dict[str, Any]] | None = None,
        *,
        resumes: bool = False,
    ) -> None:
        """Create the folder, lock it and write the resolved config, which marks the folder as a run. Rank 0 only.

        Args:
            beside: name, one of `BESIDE`, -> what that file holds.
            resumes: go on with the run that the folder holds.

        Raises:
            ConfigError: the folder holds a run, or another process is writing one.
            EnvironmentFault: the folder cannot be written.
        """
        with explained(self.path):
            self._make(resolved_config, beside or {}, resumes=resumes)

    def _make(
        self, resolved_config: dict[str, Any], beside: Mapping[str, dict[str, Any]], *, resumes: bool
    ) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock(resumes=resumes)
            for name, values in beside.items():
                self._write(name, values)
            self._write(CONFIG_FILE, resolved_config)
        except OSError:
            self.release()
            raise

    def _write(self, name: str, values: dict[str, Any]) -> None:
        replace_file(self.path / name, json.dumps(values, indent=2, ensure_ascii=False) + "\n")

    def next_attempt(self) -> int:
        """Which start of the run the next one is, from 1."""
        path = self.path / ATTEMPTS_FILE
        return 1 + (path.read_bytes().count(b"\n") if path.exists() else 0)

    def begin_attempt(self, start_id: str, finished_steps: int) -> int:
        """Note a start of the run; returns which one it is, from 1. Rank 0 only, after `claim`.

        Args:
            start_id: first half of the weight versions of its rollouts.
            finished_steps: of the checkpoint that it goes on from.
        """
        attempt = self.next_attempt()
        where = {"host": socket.gethostname(), "pid": os.getpid(), "wall_time": time.time()}
        line = {"attempt": attempt, "start_id": start_id, "finished_steps": finished_steps, **where}
        with (self.path / ATTEMPTS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return attempt

    def add_to_environment(self, **values: object) -> None:
        """Further values of `environment.json`. Rank 0 only, after `claim`.

        Raises:
            EnvironmentFault: it cannot be written.
        """
        with explained(self.path):
            known = json.loads((self.path / ENVIRONMENT_FILE).read_text(encoding="utf-8"))
            self._write(ENVIRONMENT_FILE, {**known, **values})

    def release(self) -> None:
        """Remove the lock, if it is ours."""
        if self._lock is not None:
            (self.path / LOCK_FILE).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def abandon(self, *, resumes: bool = False) -> None:
        """Undo `claim`: nothing was recorded yet. The files of a run that goes on stay."""
        for name in () if resumes else (CONFIG_FILE, *BESIDE, WARNINGS_FILE, ATTEMPTS_FILE):
            (self.path / name).unlink(missing_ok=True)
        self.release()

    def _take_lock(self, *, resumes: bool) -> None:
        """Lock the file that bears the name: its owner may have removed it between our opening and our locking."""
        while self._lock is None:
            lock = (self.path / LOCK_FILE).open("a+")
            self._lock_file(lock)
            if _is_still(lock, self.path / LOCK_FILE):
                self._lock = lock
            else:
                lock.close()
        try:
            if not resumes:
                self.refuse_earlier_run()
        except ConfigError:
            self.release()
            raise
        self._lock.truncate(0)
        self._lock.write(f"{socket.gethostname()} {os.getpid()}\n")
        self._lock.flush()

    def _lock_file(self, lock: TextIO) -> None:
        try:
            if self.locked:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner = lock.read().strip()
            lock.close()
            raise ConfigError(
                f"another run is writing here (host and process: {owner})",
                where=str(self.path),
                fix="set logging.name to another name, or wait for it to end",
            ) from None


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into words, with the remedy of its cause."""
    try:
        yield
    except OSError as error:
        fix = next((fix for cause, fix in REMEDIES.items() if cause == error.errno), ANOTHER_ROOT)
        why = f"the run folder cannot be {'locked' if error.errno in NO_LOCKS else 'written'}: {error.strerror}"
        raise EnvironmentFault(why, where=str(path), fix=fix) from error


def _is_still(file: TextIO, path: Path) -> bool:
    """Whether an open file is the one that bears this name now."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def replace_file(path: Path, text: str) -> None:
    """Write a file under another name, then give it its own: after a crash it holds the old text or the new one."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush one file, or the names in one folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def best_name(folder: Path) -> str:
    """The checkpoint that `best` names; empty if there is none."""
    try:
        return (folder / BEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
