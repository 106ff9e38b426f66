"""`train.py` whose rank 0 kills itself at a named point: `KILL=evaluation:4`, by finished steps.

rollouts    in the rollouts of the step after
manifest    when the files of the checkpoint are there, and its manifest is not
latest      when the checkpoint has its name, and `latest` names another one
evaluation  in the evaluation

In rollouts and evaluations once the checkpoint before is complete, which it becomes beside them.
"""

import os
import signal
import sys

from ds_stage2ab import train
from ds_stage2ab.assemble import run as composition
from ds_stage2ab.engine import publish
from ds_stage2ab.runtime.shutdown import excepthook, exit_now

kind, _, place = os.environ["KILL"].partition(":")
assembled, manifest_text, replace_file = composition.assemble, publish.manifest_text, publish.replace_file


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def planted(loaded, world, start):
    run = assembled(loaded, world, start)
    if world.rank == 0:
        run_step, evaluate = run.window.run, run.evaluate

        def settled_kill(*words, **options):
            run.checkpoints.publisher.settle()
            kill()

        def step(number, channel):
            if kind == "rollouts" and number == int(place):
                channel.backend.generate = settled_kill
            return run_step(number, channel)

        def evaluation(finished_steps):
            return settled_kill() if kind == "evaluation" and finished_steps == int(place) else evaluate(finished_steps)

        run.window.run = step
        object.__setattr__(run, "evaluate", evaluation)
    return run


def manifest(folder):
    return kill() if kind == "manifest" and int(place) == steps_of(folder.name) else manifest_text(folder)


def replace(path, text):
    return kill() if kind == "latest" and int(place) == steps_of(text) else replace_file(path, text)


def steps_of(name):
    return int("".join(filter(str.isdigit, name)))


if __name__ == "__main__":
    composition.assemble = planted
    publish.manifest_text, publish.replace_file = manifest, replace
    sys.excepthook = excepthook
    exit_now(train.main())
