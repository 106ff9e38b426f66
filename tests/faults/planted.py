"""`train.py` with a fault, really done to the process of rank `FAULTY_RANK` at a step: `FAULT=kill:3`, from 0.

nan     a weight is NaN for the length of the step (several steps: `nan:1,2`)
kill    SIGKILL in front of the step's rollouts
hang    the step's rollouts never end
orphan  SIGKILL to the launcher's own child, which is the parent of all ranks, in front of the step's rollouts
vanish  every third image of the samples of the step after the next is deleted in front of it
memory  the process may not grow any more
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from ds_stage2ab import assemble as composition
from ds_stage2ab import train
from ds_stage2ab.leave import leave, leave_with_traceback

assembled = composition.assemble
kind, _, places = os.environ["FAULT"].partition(":")
STEPS = {int(step) for step in places.split(",")}
FOR_EVER_S = 600


def planted(loaded, world):
    run = assembled(loaded, world)
    if world.rank == int(os.environ["FAULTY_RANK"]):
        run_step, run.window.run = run.window.run, lambda step, channel: faulty(run, run_step, step, channel)
    return run


def faulty(run, run_step, step, channel):
    if step not in STEPS:
        return run_step(step, channel)
    if kind == "nan":
        return with_a_bad_weight(run.window, lambda: run_step(step, channel))
    if kind == "vanish":
        reader = run.window.draw.reader
        first = (step + 2) * run.plan.effective_batch_size
        for draw in range(first, first + run.plan.effective_batch_size, 3):
            reader.records[reader.order.record_of(draw)].image.unlink()
    if kind in ROLLOUTS:
        channel.backend.generate = ROLLOUTS[kind]
    if kind == "memory":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used, used))
    return run_step(step, channel)


def with_a_bad_weight(window, step):
    weight = window.engine.module.model.model.language_model.norm.weight
    good = weight.detach().clone()
    weight.data[0] = torch.nan
    result = step()
    weight.data.copy_(good)
    return result


def killed(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def hung(*arguments, **options):
    os.kill(os.getpid(), signal.SIGUSR1)  # where is it?
    time.sleep(FOR_EVER_S)


def orphaned(*arguments, **options):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(FOR_EVER_S)


ROLLOUTS = {"kill": killed, "hang": hung, "orphan": orphaned}

if __name__ == "__main__":
    composition.assemble = planted
    sys.excepthook = leave_with_traceback
    leave(train.main())
