"""`ds-stage2ab evaluate`, whose rank 1 is killed (`FAULT=kill`) or makes a mistake in front of its rollouts."""

import os
import signal
import sys

from ds_stage2ab import cli
from ds_stage2ab.evaluation.held_out import HeldOut


def faulty(*words):
    if os.environ["FAULT"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("a mistake")


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        HeldOut.sample = faulty
    sys.exit(cli.main())
