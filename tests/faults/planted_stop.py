"""`train.py` whose rank `STOPPED_RANK` sends itself `SIGNALS=SIGTERM,...` at a named point: `STOP=evaluation:4`.

reading     in front of the samples of the step after so many, which worker processes read
rollouts    in the rollouts of that step
passes      in front of a forward pass of it, which then takes PASS_S seconds
evaluation  in the evaluation after so many steps
waiting     while this rank waits for another one, which draws the rollouts of that step and takes its time
slow        no signal: all ranks draw the rollouts of that step until the run shall stop
"""

import os
import signal
import sys
import threading
import time

from ds_stage2ab import train
from ds_stage2ab.assemble import run as composition
from ds_stage2ab.runtime.shutdown import excepthook, exit_now

kind, _, place = os.environ["STOP"].partition(":")
PASS_S = float(os.environ.get("PASS_S", "0"))
PAUSE_S = float(os.environ.get("PAUSE_S", "0"))
"""Between two signals."""
MANY = 10_000
assembled = composition.assemble


def send():
    for number, name in enumerate(os.environ["SIGNALS"].split(",")):
        time.sleep(PAUSE_S if number else 0)
        os.kill(os.getpid(), getattr(signal, name))


def planted(loaded, world, start):
    run = assembled(loaded, world, start)
    backend, is_stopped = run.channels["B"].backend, world.rank == int(os.environ["STOPPED_RANK"])
    generate, run_step, evaluate = backend.generate, run.window.run, run.evaluate

    def signalled(drawing):
        def signalled_first(*words, **options):
            if is_stopped:
                send()
            return drawing(*words, **options)

        return signalled_first

    def slow(*words, **options):
        for _ in range(MANY):
            world.check_stop()
            time.sleep(0.01)
        raise AssertionError("nobody told this rank to stop")

    draw = run.window.draw

    def read(number, micro_step):
        if number == int(place) and kind == "reading" and is_stopped:
            send()
        return draw(number, micro_step)

    def step(number, channel):
        if number == int(place) and kind == "rollouts":
            backend.generate = signalled(generate)
        if number == int(place) and kind == "waiting":
            backend.generate = late if is_stopped else slow
        if number == int(place) and kind == "slow":
            backend.generate = slow
        if number == int(place) and kind == "passes" and is_stopped:
            forward = run.window._forward_backward
            run.window._forward_backward = lambda *words: (send_beside(), time.sleep(PASS_S), forward(*words))[2]
        return run_step(number, channel)

    def late(*words, **options):
        threading.Timer(1.0, send).start()  # when this rank has drawn its own, and waits
        return generate(*words, **options)

    def evaluation(finished_steps):
        if finished_steps == int(place) and kind == "evaluation":
            backend.generate_lazily = signalled(backend.generate_lazily)
        return evaluate(finished_steps)

    run.window.run, run.window.draw = step, read
    object.__setattr__(run, "evaluate", evaluation)
    return run


def send_beside():
    threading.Thread(target=send).start()


if __name__ == "__main__":
    composition.assemble = planted
    sys.excepthook = excepthook
    exit_now(train.main())
