"""`train.py` with a NaN in one weight of rank 1 during the steps of the environment variable BAD_STEPS (from 0)."""

import os
import sys

import torch

from ds_stage2ab import assemble as composition
from ds_stage2ab import train

assembled = composition.assemble
BAD_STEPS = {int(step) for step in os.environ["BAD_STEPS"].split(",")}


def planted(loaded, world):
    run = assembled(loaded, world)
    window = run.window
    weight = window.engine.module.model.model.language_model.norm.weight
    run_step = window.run

    def step_with_a_bad_weight(step, channel):
        good = weight.detach().clone()
        if step in BAD_STEPS and world.rank == 1:
            weight.data[0] = torch.nan
        result = run_step(step, channel)
        if step in BAD_STEPS:
            weight.data.copy_(good)
        return result

    window.run = step_with_a_bad_weight
    return run


composition.assemble = planted
sys.excepthook = train._leave
code = train.main()
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
