"""Over which of vLLM's weight transfer engines a launched learner sends: NCCL where both ends have the same one.

Each end is asked in its own Python: what either of them has installed is not known here.
"""

import subprocess
from pathlib import Path

from ds_stage2ab.config.servers import GLOO_TRANSFER, NCCL_TRANSFER

ASK = "import torch; print(*torch.cuda.nccl.version(), sep='.')"
LONGEST_S = 120
"""An import of torch from a cold disk."""


def choose_transfer(learner: Path, server: Path) -> tuple[str, str]:
    """(the engine, why) for a learner on GPUs.

    Args:
        learner, server: the Python of each end.
    """
    mine, its = nccl_version(learner), nccl_version(server)
    if mine is not None and mine == its:
        return NCCL_TRANSFER, f"both ends have NCCL {mine}"
    have = f"the learner has {'no NCCL' if mine is None else f'NCCL {mine}'}, the servers {its or 'none'}"
    return GLOO_TRANSFER, f"by way of host memory: {have}"


def nccl_version(python: Path) -> str | None:
    """Of the torch that this Python has; None where it has none."""
    try:
        told = subprocess.run(
            [str(python), "-c", ASK], capture_output=True, text=True, timeout=LONGEST_S, check=False
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() or None if told.returncode == 0 else None
