"""The folder of one run: claimed by one process group, never shared, never overwritten."""

import json
import os
import socket
from pathlib import Path
from typing import Any

from ds_stage2ab.errors import ConfigError, EnvironmentFault

CONFIG_FILE = "config.json"
LOCK_FILE = "run.lock"


class RunFolder:
    """Paths of a run's products, and the lock that says who writes them.

    Args:
        path: `logging.root` / `logging.name`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.tensorboard = path / "tensorboard"
        self.pictures = path / "pictures"
        self.checkpoints = path / "checkpoints"

    def claim(self, resolved_config: dict[str, Any]) -> None:
        """Create the folder, lock it and write the resolved config. Rank 0 only.

        Raises:
            ConfigError: a run is being written here, or a finished one lies here.
            EnvironmentFault: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock()
            self._refuse_earlier_run()
            (self.path / CONFIG_FILE).write_text(json.dumps(resolved_config, indent=2, ensure_ascii=False) + "\n")
        except OSError as error:
            raise EnvironmentFault(
                f"the run folder cannot be written: {error.strerror}",
                where=str(self.path),
                fix="set logging.root to a folder that you may write to",
            ) from error

    def release(self) -> None:
        """Remove the lock."""
        (self.path / LOCK_FILE).unlink(missing_ok=True)

    def _lock(self) -> None:
        owner = f"{socket.gethostname()} {os.getpid()}"
        lock = self.path / LOCK_FILE
        if lock.exists() and not _owner_is_gone(lock.read_text()):
            raise ConfigError(
                f"another run is writing here (host and process: {lock.read_text().strip()})",
                where=str(self.path),
                fix="set logging.name to another name, or wait for it to end; if it is dead, delete run.lock",
            )
        lock.unlink(missing_ok=True)
        with lock.open("x") as file:
            file.write(owner + "\n")

    def _refuse_earlier_run(self) -> None:
        if (self.path / CONFIG_FILE).exists():
            self.release()
            raise ConfigError(
                "this folder already holds a run",
                where=str(self.path),
                fix="set logging.name to another name, or move the folder away",
            )


def _owner_is_gone(owner: str) -> bool:
    """True if the lock's process ran on this host and has ended."""
    host, _, pid = owner.strip().partition(" ")
    return host == socket.gethostname() and pid.isdigit() and not Path("/proc", pid).exists()
