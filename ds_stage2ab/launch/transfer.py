"""Chooses the weight transfer engine of a launched learner: NCCL if both ends have the same version of it.

Each end is queried in its own Python environment.
"""

import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from ds_stage2ab.config.servers import GLOO_TRANSFER, NCCL_TRANSFER
from ds_stage2ab.launch.supervisor import KILL_S, LOOK_S
from ds_stage2ab.runtime.shutdown import end_with_parent

ASK = "import torch; print(*torch.cuda.nccl.version(), sep='.')"
LONGEST_S = 120
"""Seconds; enough to import torch from a cold disk."""


def choose_transfer(learner: Path, server: Path, pause: Callable[[float], None]) -> tuple[str, str]:
    """(the engine, why) for a learner on GPUs.

    Args:
        learner, server: the Python of each end.
        pause: sleeps so many seconds; may raise to end the query.
    """
    mine, its = nccl_version(learner, pause), nccl_version(server, pause)
    if mine is not None and mine == its:
        return NCCL_TRANSFER, f"both ends have NCCL {mine}"
    have = f"the learner has {'no NCCL' if mine is None else f'NCCL {mine}'}, the servers {its or 'none'}"
    return GLOO_TRANSFER, f"by way of host memory: {have}"


def nccl_version(python: Path, pause: Callable[[float], None]) -> str | None:
    """NCCL version of this Python's torch; None if it has none. Leaves no process behind."""
    with tempfile.TemporaryFile("w+", errors="replace") as answer:
        try:
            asked = subprocess.Popen(
                [str(python), "-c", ASK],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is handled by the launcher
                preexec_fn=end_with_parent,  # noqa: PLW1509
            )
        except OSError:
            return None
        if _code(asked, pause) != 0:
            return None
        answer.seek(0)
        return answer.read().strip() or None


def _code(asked: subprocess.Popen, pause: Callable[[float], None]) -> int | None:
    """Its exit code; None after LONGEST_S."""
    deadline = time.monotonic() + LONGEST_S
    try:
        while asked.poll() is None and time.monotonic() < deadline:
            pause(LOOK_S)
        return asked.returncode
    finally:
        asked.kill()  # no effect on a process that has ended
        with suppress(subprocess.TimeoutExpired):
            asked.wait(KILL_S)
