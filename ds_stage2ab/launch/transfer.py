"""Over which of vLLM's weight transfer engines a launched learner sends: NCCL where both ends have the same one.

Each end is asked in its own Python: what either of them has installed is not known here.
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
"""An import of torch from a cold disk."""


def choose_transfer(learner: Path, server: Path, pause: Callable[[float], None]) -> tuple[str, str]:
    """(the engine, why) for a learner on GPUs.

    Args:
        learner, server: the Python of each end.
        pause: sleeps so many seconds; what it raises ends the asking.
    """
    mine, its = nccl_version(learner, pause), nccl_version(server, pause)
    if mine is not None and mine == its:
        return NCCL_TRANSFER, f"both ends have NCCL {mine}"
    have = f"the learner has {'no NCCL' if mine is None else f'NCCL {mine}'}, the servers {its or 'none'}"
    return GLOO_TRANSFER, f"by way of host memory: {have}"


def nccl_version(python: Path, pause: Callable[[float], None]) -> str | None:
    """Of the torch that this Python has; None where it has none. Nothing is left of the process that is asked."""
    with tempfile.TemporaryFile("w+", errors="replace") as answer:
        try:
            asked = subprocess.Popen(
                [str(python), "-c", ASK],
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # a terminal's Ctrl-C is the launcher's matter
                preexec_fn=end_with_parent,  # noqa: PLW1509
            )
        except OSError:
            return None
        if _code(asked, pause) != 0:
            return None
        answer.seek(0)
        return answer.read().strip() or None


def _code(asked: subprocess.Popen, pause: Callable[[float], None]) -> int | None:
    """Its exit code; None if it would take too long."""
    deadline = time.monotonic() + LONGEST_S
    try:
        while asked.poll() is None and time.monotonic() < deadline:
            pause(LOOK_S)
        return asked.returncode
    finally:
        asked.kill()  # nothing happens to one that has ended
        with suppress(subprocess.TimeoutExpired):
            asked.wait(KILL_S)
