"""`train.py` whose rank 1 sends itself SIGTERM in the middle of the step after `STEP`, and every rank measures.

`PLACE=rollouts`: before the 40th pass of a rollout; `PLACE=pack`: in front of the second pack of the step. Each rank
writes to `OUT`/rank-N.json, in seconds: `decode`, the longest time between two looks whether the run shall stop, in the
rollouts of the steps before; `pack`, the longest forward and backward of one; `save`, the longest checkpoint from its
beginning until it is complete; `rollouts` and `packs`, all of a step before. And `signal`, `time.monotonic()` of it.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from ds_stage2ab import train
from ds_stage2ab.assemble import run as composition
from ds_stage2ab.runtime.shutdown import excepthook, exit_now

PASSES, PACKS = 40, 2
STEP, PLACE = int(os.environ["STEP"]), os.environ["PLACE"]
seen = {"decode": 0.0, "pack": 0.0, "save": 0.0, "rollouts": 0.0, "packs": 0.0, "signal": 0.0}
assembled = composition.assemble


class Looks:
    """`world.check_stop`, and when it was called last."""

    def __init__(self, world):
        self.check, self.stopped_rank = world.check_stop, world.rank == 1
        self.last, self.number, self.step = None, 0, 0

    def __call__(self):
        now = time.monotonic()
        if self.last is not None:
            longest("decode", now - self.last)
            self.last, self.number = now, self.number + 1
            if PLACE == "rollouts" and self.step == STEP and self.number == PASSES and self.stopped_rank:
                send()
        self.check()


def planted(loaded, world, start):
    world.check_stop = looks = Looks(world)
    run = assembled(loaded, world, start)
    backend, window = run.channels["B"].backend, run.window
    run_step, forward_backward = window.run, window._forward_backward
    generate, save = backend.generate, run.checkpoints.save
    packs = []

    def step(number, channel):
        looks.step = number
        packs.clear()
        result = run_step(number, channel)
        longest("packs", sum(packs))
        return result

    def drawn(*words, **options):
        looks.last, looks.number, begun = time.monotonic(), 0, time.monotonic()
        try:
            found = generate(*words, **options)
        finally:
            looks.last = None
        longest("rollouts", time.monotonic() - begun)
        return found

    def pack(*words):
        if PLACE == "pack" and looks.step == STEP and len(packs) == PACKS - 1 and world.rank == 1:
            send()
        begun = time.monotonic()
        loss = forward_backward(*words)
        packs.append(time.monotonic() - begun)
        longest("pack", packs[-1])
        return loss

    def saved(*words, **options):
        begun = time.monotonic()
        save(*words, **options)
        if not seen["signal"] and not world.stop.why:
            run.checkpoints.settle()
            longest("save", time.monotonic() - begun)

    window.run, backend.generate, window._forward_backward, run.checkpoints.save = step, drawn, pack, saved
    return run


def send():
    seen["signal"] = time.monotonic()
    os.kill(os.getpid(), signal.SIGTERM)


def longest(name, seconds):
    seen[name] = max(seen[name], seconds)


if __name__ == "__main__":
    composition.assemble = planted
    sys.excepthook = excepthook
    code = train.main()
    (Path(os.environ["OUT"]) / f"rank-{os.environ['RANK']}.json").write_text(json.dumps(seen))
    exit_now(code)
