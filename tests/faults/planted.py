"""`train.py` with a fault, really done to the process of rank `FAULTY_RANK` at a step: `FAULT=kill:3`, from 0.

nan     a weight is NaN for the length of the step (several steps: `nan:1,2`); every rank looks whether a weight moved
kill    SIGKILL in front of the step's rollouts
hang    the step's rollouts never end
orphan  SIGKILL to the launcher's own child, which is the parent of all ranks, in front of the step's rollouts
vanish  every third image of the samples of the step after the next is deleted in front of it
memory  the process may not grow any more
drawing it may not from where it draws the step's rollouts
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import torch

from ds_stage2ab import train
from ds_stage2ab.assemble import run as composition
from ds_stage2ab.runtime.shutdown import excepthook, exit_now

assembled = composition.assemble
kind, _, places = os.environ["FAULT"].partition(":")
STEPS = {int(step) for step in places.split(",")}
FOR_EVER_S = 600


def planted(loaded, world, start):
    run = assembled(loaded, world, start)
    run_step, is_faulty = run.window.run, world.rank == int(os.environ["FAULTY_RANK"])
    if kind == "nan":
        run.window.run = lambda step, channel: watched(run, run_step, step, channel, is_faulty=is_faulty)
    elif is_faulty:
        run.window.run = lambda step, channel: faulty(run, run_step, step, channel)
    return run


def faulty(run, run_step, step, channel):
    if step not in STEPS:
        return run_step(step, channel)
    if kind == "vanish":
        reader = run.window.draw.reader
        first = (step + 2) * run.plan.effective_batch_size
        for draw in range(first, first + run.plan.effective_batch_size, 3):
            reader.records[reader.order.record_of(draw)].image.unlink()
    if kind in ROLLOUTS:
        channel.backend.generate = ROLLOUTS[kind]
    if kind == "memory":
        may_not_grow()
    if kind == "drawing":
        generate = channel.backend.generate
        channel.backend.generate = lambda *words, **options: (may_not_grow(), generate(*words, **options))[1]
    return run_step(step, channel)


def may_not_grow():
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, used))


def watched(run, run_step, step, channel, *, is_faulty):
    """A bad step of all ranks: one has a bad weight, and none may move any, however the step ends."""
    if step not in STEPS:
        return run_step(step, channel)
    before = [weight.detach().clone() for weight in weights_of(run.window.engine)]
    try:
        return with_a_bad_weight(run.window, lambda: run_step(step, channel)) if is_faulty else run_step(step, channel)
    finally:
        after = weights_of(run.window.engine)
        assert all(map(torch.equal, before, after)), f"rank {run.world.rank}: step {step + 1} moved a weight"
        print(f"planted: no weight moved in step {step + 1} on rank {run.world.rank}", flush=True)


def weights_of(engine):
    """The model's, and what the optimizer works on in their place: under ZeRO this rank's part of a copy."""
    return [*engine.module.parameters(), *(part for group in engine.optimizer.param_groups for part in group["params"])]


def with_a_bad_weight(window, step):
    weight = window.engine.module.model.model.language_model.norm.weight
    good = weight.detach().clone()
    weight.data[0] = torch.nan
    try:
        return step()
    finally:
        weight.data.copy_(good)


def killed(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)


def hung(*arguments, **options):
    os.kill(os.getpid(), signal.SIGUSR2)  # where is it?
    time.sleep(FOR_EVER_S)


def orphaned(*arguments, **options):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(FOR_EVER_S)


ROLLOUTS = {"kill": killed, "hang": hung, "orphan": orphaned}

if __name__ == "__main__":
    composition.assemble = planted
    sys.excepthook = excepthook
    exit_now(train.main())
