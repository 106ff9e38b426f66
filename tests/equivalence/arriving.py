"""`train.py` whose rollouts arrive one by one, late and out of order, as from a server: `ARRIVALS=scrambled|late`.

scrambled  a rank's rollouts arrive in the reverse order of groups of three, a few milliseconds apart
late       those of rank 1 begin to arrive after three seconds
"""

import os
import sys
import threading
import time
from concurrent.futures import Future

from ds_stage2ab import train
from ds_stage2ab.assemble import run as composition
from ds_stage2ab.runtime.shutdown import excepthook, exit_now

built = composition.make_backend
SCRIPT = os.environ["ARRIVALS"]
GROUP, APART_S, LATE_S = 3, 0.005, 3.0


class Arriving:
    """The rollouts of a real backend; `generate` hands out one after the other, each as soon as it has arrived."""

    streams = True

    def __init__(self, backend, rank):
        self.backend = backend
        self.delay = LATE_S if SCRIPT == "late" and rank == 1 else 0.0

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def generate(self, samples, sampling, *, finished_steps):
        rollouts = self.backend.generate(samples, sampling, finished_steps=finished_steps)
        waiting = [Future() for _ in rollouts]
        threading.Thread(target=self._deliver, args=(waiting, rollouts), daemon=True).start()
        return (future.result() for future in waiting)

    def _deliver(self, waiting, rollouts):
        time.sleep(self.delay)
        for first in range(0, len(waiting), GROUP):
            for place in reversed(range(first, min(first + GROUP, len(waiting)))):
                time.sleep(APART_S)
                waiting[place].set_result(rollouts[place])


def arriving(parts, whole_model, start_id):
    return Arriving(built(parts, whole_model, start_id), parts.world.rank)


if __name__ == "__main__":
    composition.make_backend = arriving
    sys.excepthook = excepthook
    exit_now(train.main())
