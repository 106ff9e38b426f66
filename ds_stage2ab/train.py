"""Entry for `deepspeed ds_stage2ab/train.py --config X [--set KEY=VALUE]...`, and the loop.

The launcher runs this file as a script, which puts its folder first on sys.path: that is repaired before
anything else is imported, so that no module of ours can hide one of the standard library. What takes long to import
waits until the process listens to signals.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import time
from typing import TYPE_CHECKING

from ds_stage2ab.errors import EXIT_OK, ServerFault, Stage2Error, Stopped, printable
from ds_stage2ab.runtime.shutdown import end_with_parent, excepthook, exit_now, report_error
from ds_stage2ab.runtime.stop import StopRequest
from ds_stage2ab.runtime.streams import guard_streams

if TYPE_CHECKING:
    from ds_stage2ab.config.load import LoadedConfig
    from ds_stage2ab.engine.run import Run
    from ds_stage2ab.runtime.ranks import World

STARTED = time.monotonic()
"""When this process began, for limits of time."""
HOUR_S = 3600
REQUEUE = "requeue"
"""`vllm.server.on_lost`: end as a run that was stopped."""


def train(run: "Run") -> None:
    """The loop: one optimizer step per turn."""
    plan = run.plan
    if run.evaluate and run.first_evaluation:
        _evaluate(run, run.first_step)
    for step in range(run.first_step, plan.total_steps):
        if run.best.is_over:
            break
        channel = run.channels[plan.channel_for_step(step)]
        result = run.window.run(step, channel)
        run.record(step, channel.name, result)
        if plan.save.due(step):
            run.save(step + 1)
        if run.evaluate and plan.evaluate.due(step):
            _evaluate(run, step + 1)
    if run.best.is_over and run.world.rank == 0:
        print(run.best.words(), flush=True)
    run.save_finished()
    run.verify_weights(run.window.finished_steps)
    run.tell_of_servers()


def _evaluate(run: "Run", finished_steps: int) -> None:
    """Evaluate and report; the answers take a while, so a line says first what is going on."""
    total = run.plan.total_steps
    if run.world.rank == 0:
        print(f"step {finished_steps:>{len(str(total))}}/{total}  eval  answering the held-out images", flush=True)
    run.record_evaluation(finished_steps, run.evaluate(finished_steps))


def main() -> int:
    """Train as the command line says; returns the process exit code."""
    rank = int(os.environ["RANK"]) if "RANK" in os.environ else 0
    if "RANK" in os.environ:
        end_with_parent()
    stop = StopRequest(rank)
    stop.listen()
    speaks = rank == 0 or os.environ.get("LOCAL_RANK") == "0"  # one per machine, until the ranks can tell each other
    arguments = _command_line()
    try:
        loaded, world = _meet(arguments, stop)
        speaks = rank == 0
        _run(loaded, world, arguments, stop)
    except Stage2Error as error:
        return report_error(error, rank, speaks=speaks)
    return EXIT_OK


def _command_line() -> argparse.Namespace:
    from ds_stage2ab.config.overrides import add_set_option
    from ds_stage2ab.engine.resume import add_resume_options

    parser = argparse.ArgumentParser(prog="train.py", description="Train both channels of stage 2.")
    parser.add_argument("--config", required=True, type=Path, help="YAML file")
    add_set_option(parser)
    add_resume_options(parser)
    parser.add_argument("--local_rank", type=int, default=0, help="set by the DeepSpeed launcher")
    return parser.parse_args()


def _meet(arguments: argparse.Namespace, stop: StopRequest) -> tuple["LoadedConfig", "World"]:
    from ds_stage2ab.config.load import load_config
    from ds_stage2ab.config.overrides import read_overrides
    from ds_stage2ab.engine.resume import check_resume_options

    check_resume_options(arguments)
    loaded = load_config(arguments.config, read_overrides(arguments.overrides))
    # Heavy imports wait until the config is known to be good.
    if stop.rank == 0:
        print(f"{printable(str(arguments.config))}: valid; loading libraries, data and model", flush=True)
    from ds_stage2ab.engine.build import quieten, start_process_group
    from ds_stage2ab.runtime.ranks import World, fill_launcher_variables

    quieten()
    fill_launcher_variables()
    return loaded, World(start_process_group(loaded.config.deepspeed.collective_timeout_s), stop)


def _run(loaded: "LoadedConfig", world: "World", arguments: argparse.Namespace, stop: StopRequest) -> None:
    from rich.console import Console

    from ds_stage2ab.assemble.run import assemble
    from ds_stage2ab.engine.run_folder import RunFolder
    from ds_stage2ab.engine.start import find_start
    from ds_stage2ab.metrics.report import summary_table, write_report
    from ds_stage2ab.preflight.opening import banner
    from ds_stage2ab.run_report.closing import closing_lines

    folder = RunFolder(loaded.config.logging.root / loaded.name, locked=loaded.config.logging.lock)
    stop.doing, stop.saved = lambda: world.now, folder.newest_checkpoint_words
    start = find_start(arguments.resume, folder, world, allow_change=arguments.allow_change)
    try:
        run = assemble(loaded, world, start)
    except Stopped as stopped:
        raise Stopped(f"{stopped.why}, before the first step; {folder.newest_checkpoint_words()}") from None
    _limit(stop, loaded, run)
    try:
        if world.rank == 0:
            print(banner(run.plan.batch_sentence, run.opening), flush=True)
        train(run)
        run.note_memory()
    except ServerFault as fault:
        run.tell_of_servers()
        run.save_finished()
        if loaded.config.rollout_matching.vllm.server.on_lost == REQUEUE:
            raise Stopped(f"{fault}\n  {folder.newest_checkpoint_words()}") from fault
        raise
    except Stopped as stopped:
        run.save_finished()
        run.leave()
        done = f"after step {run.window.finished_steps:,} of {run.plan.total_steps:,}"
        raise Stopped(f"{stopped.why}, {done}; {folder.newest_checkpoint_words()}") from None
    finally:
        run.close()
    with world.raise_together("writing the report"):
        if world.rank == 0:
            report = write_report(run.folder.path)
            Console().print(summary_table(report.rows, title=report.run))
            print(*closing_lines(run.folder.path), sep="\n", flush=True)


def _limit(stop: StopRequest, loaded: "LoadedConfig", run: "Run") -> None:
    """The limits of time of the config, which rank 0 keeps for all."""
    from ds_stage2ab.schedule import seconds_of

    hours, save_by = loaded.config.training.max_hours, loaded.config.checkpoint.save_by
    if run.world.rank == 0 and hours is not None:
        stop.limit("training.max_hours", lambda: STARTED + hours * HOUR_S)
    if run.world.rank == 0 and save_by is not None:
        budget = seconds_of(save_by)
        stop.limit("checkpoint.save_by", lambda: STARTED + budget - run.checkpoints.seconds_to_save(budget))


if __name__ == "__main__":
    guard_streams(goes_on=True)
    sys.excepthook = excepthook
    exit_now(main())
