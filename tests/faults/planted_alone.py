"""`train.py` with a fault of rank `FAULTY_RANK` alone: `FAULT=stop:1`, a step from 0.

stop  SIGSTOP in front of the step
full  from the step on no file of this process may grow beyond FULL_BYTES, as on a disk that is full
"""

import os
import resource
import signal
import sys

from ds_stage2ab import train
from ds_stage2ab.assemble import run as composition
from ds_stage2ab.runtime.shutdown import excepthook, exit_now

FULL_BYTES = 1 << 16  # less than the weights

assembled = composition.assemble
kind, _, place = os.environ["FAULT"].partition(":")


def planted(loaded, world, start):
    run = assembled(loaded, world, start)
    if world.rank == int(os.environ["FAULTY_RANK"]):
        run_step = run.window.run
        run.window.run = lambda step, channel: faulty(run, run_step, step, channel)
    return run


def faulty(run, run_step, step, channel):
    if step == int(place):
        run.checkpoints.publisher.settle()  # the checkpoint before is complete: the fault is of this step
        FAULTS[kind]()
    return run_step(step, channel)


FAULTS = {
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "full": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL_BYTES, resource.RLIM_INFINITY)),
}

if __name__ == "__main__":
    composition.assemble = planted
    sys.excepthook = excepthook
    exit_now(train.main())
