"""`train.py` that keeps a diary of each step, and parts every weight under ZeRO 3: `DIARY=folder`, a file per rank.

A line is a step, a letter what the rank did, in order:

r  an all-reduce of our own, not one of DeepSpeed's
o  any other collective of our own
w  a weight is gathered by us
d  the rollouts of a rank are decoded
b  a backward pass
u  `engine.step()`

By default DeepSpeed keeps weights below 100,000 values whole on every rank, which are nearly all of so small a model
and hardly any of one of real size.
"""

import os
import sys
from dataclasses import replace
from pathlib import Path

import deepspeed
import torch.distributed as dist

from ds_stage2ab import train
from ds_stage2ab.assemble import inputs
from ds_stage2ab.assemble import run as composition
from ds_stage2ab.rollout.decoding.loop import Loop
from ds_stage2ab.runtime.control import ControlGroup
from ds_stage2ab.runtime.shutdown import excepthook, exit_now

assembled, planned = composition.assemble, inputs.make_plan
OTHERS = ("all_reduce", "all_gather", "all_gather_object", "all_to_all", "barrier", "broadcast", "reduce")
"""Of the training group, in which nothing of ours is exchanged."""
diary = []


def noted(letter, call, *, ours_alone=False):
    """The same call, with its letter in the diary."""

    def calling(*arguments, **named):
        caller = sys._getframe(1).f_globals["__name__"]
        if not ours_alone or caller.startswith("ds_stage2ab."):
            diary.append(letter)
        return call(*arguments, **named)

    return calling


def watched(loaded, world, start):
    run = assembled(loaded, world, start)
    run_step, engine = run.window.run, run.window.engine
    engine.backward, engine.step = noted("b", engine.backward), noted("u", engine.step)

    def step(number, channel):
        diary.clear()
        result = run_step(number, channel)
        with (Path(os.environ["DIARY"]) / f"rank-{world.rank}.txt").open("a") as file:
            file.write("".join(diary) + "\n")
        return result

    run.window.run = step
    return run


def parted(*arguments):
    plan = planned(*arguments)
    if plan.zero_stage == composition.PARTITIONED:
        zero = plan.deepspeed_config["zero_optimization"] | {"stage3_param_persistence_threshold": 0}
        plan = replace(plan, deepspeed_config=plan.deepspeed_config | {"zero_optimization": zero})
    return plan


if __name__ == "__main__":
    ControlGroup.all_reduce = noted("r", ControlGroup.all_reduce)
    for owner, names, ours_alone in ((ControlGroup, ("gather", "broadcast"), False), (dist, OTHERS, True)):
        for name in names:
            setattr(owner, name, noted("o", getattr(owner, name), ours_alone=ours_alone))
    deepspeed.zero.GatheredParameters = noted("w", deepspeed.zero.GatheredParameters, ours_alone=True)
    Loop.__call__ = noted("d", Loop.__call__)
    composition.assemble, inputs.make_plan = watched, parted
    sys.excepthook = excepthook
    exit_now(train.main())
