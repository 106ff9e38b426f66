"""Entry for `deepspeed ds_stage2ab/train.py --config X [--set KEY=VALUE]...`, and the loop.

The launcher runs this file as a script, which puts its folder first on sys.path: that is repaired before
anything else is imported, so that no module of ours can hide one of the standard library.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import ctypes
import os
import signal
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.overrides import add_set_option, read_overrides
from ds_stage2ab.errors import EXIT_OK, Stage2Error, exit_code

if TYPE_CHECKING:
    from ds_stage2ab.assemble import Run

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends a process when its parent ends."""


def train(run: "Run") -> None:
    """The loop: one optimizer step per turn."""
    plan = run.plan
    if run.evaluator and plan.evaluate.at_start:
        run.record_evaluation(0, run.evaluator.run(0).figures)
    for step in range(plan.total_steps):
        channel = run.channels[plan.channel_for_step(step)]
        result = run.window.run(step, channel)
        run.record(step, channel.name, result)
        if plan.save.due(step):
            run.checkpoints.save(step + 1)
        if run.evaluator and plan.evaluate.due(step):
            run.record_evaluation(step + 1, run.evaluator.run(step + 1).figures)


def main() -> int:
    """Train as the command line says; returns the process exit code."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train both channels of stage 2.")
    parser.add_argument("--config", required=True, type=Path, help="YAML file")
    add_set_option(parser)
    parser.add_argument("--local_rank", type=int, default=0, help="set by the DeepSpeed launcher")
    arguments = parser.parse_args()
    rank = int(os.environ["RANK"]) if "RANK" in os.environ else 0
    if "RANK" in os.environ and sys.platform == "linux":
        _end_with_launcher()
    try:
        _run(arguments.config, arguments.overrides)
    except Stage2Error as error:
        if rank == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return exit_code(error)
    return EXIT_OK


def _run(config: Path, overrides: list[str]) -> None:
    loaded = load_config(config, read_overrides(overrides))
    # Heavy imports wait until the config is known to be good.
    from rich.console import Console

    from ds_stage2ab.assemble import assemble
    from ds_stage2ab.engine.build import quieten, start_process_group
    from ds_stage2ab.metrics.report import banner, summary_table, write_report
    from ds_stage2ab.world import World, fill_launcher_variables

    quieten()
    fill_launcher_variables()
    world = World(start_process_group())
    run = assemble(loaded, world)
    try:
        if world.rank == 0:
            print(banner(run.plan.batch_sentence, run.facts), flush=True)
        train(run)
    finally:
        run.close()
    with world.agree_on_failure():
        if world.rank == 0:
            report = write_report(run.folder.path)
            Console().print(summary_table(report.rows, title=report.run))


def _end_with_launcher() -> None:
    """Ask the kernel for SIGTERM when the launcher dies: a killed launcher must not leave ranks behind."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an uncaught error and leave at once: a failed rank must not wait for the others while it shuts down.

    To the real stderr: torch.distributed puts a buffer in its place around this hook.
    """
    traceback.print_exception(kind, error, trace, file=sys.__stderr__)
    sys.__stderr__.flush()
    os._exit(exit_code(error))


if __name__ == "__main__":
    sys.excepthook = _leave
    code = main()
    # At once after a good end too: everything is closed, and on the interpreter's own way down a thread of the
    # process group that still runs aborts the process now and then ("terminate called without an active exception").
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
