"""`ds-stage2ab evaluate`, whose rank 1 is killed in front of its rollouts."""

import os
import signal
import sys

from ds_stage2ab import cli
from ds_stage2ab.evaluation import Evaluator


def killed(*words):
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        Evaluator._rollouts = killed
    sys.exit(cli.main())
