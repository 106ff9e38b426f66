"""Entry for `deepspeed ds_stage2ab/train.py --config X [--set KEY=VALUE]...`, and the loop.

The launcher runs this file as a script, which puts its folder first on sys.path: that is repaired before
anything else is imported, so that no module of ours can hide one of the standard library.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
from typing import TYPE_CHECKING

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.overrides import add_set_option, read_overrides
from ds_stage2ab.engine.resume import add_resume_options, check_resume_options
from ds_stage2ab.errors import EXIT_OK, ServerFault, Stage2Error, printable
from ds_stage2ab.runtime.shutdown import end_with_parent, excepthook, exit_now, install_sigterm_handler, report_error
from ds_stage2ab.runtime.streams import guard_streams

if TYPE_CHECKING:
    from ds_stage2ab.config.load import LoadedConfig
    from ds_stage2ab.engine.run import Run
    from ds_stage2ab.runtime.ranks import World


def train(run: "Run") -> None:
    """The loop: one optimizer step per turn."""
    plan = run.plan
    if run.evaluate and run.first_evaluation:
        _evaluate(run, run.first_step)
    for step in range(run.first_step, plan.total_steps):
        channel = run.channels[plan.channel_for_step(step)]
        result = run.window.run(step, channel)
        run.record(step, channel.name, result)
        if plan.save.due(step):
            run.save(step + 1)
        if run.evaluate and plan.evaluate.due(step):
            _evaluate(run, step + 1)
    run.verify_weights(plan.total_steps)


def _evaluate(run: "Run", finished_steps: int) -> None:
    """Evaluate and report; the answers take a while, so a line says first what is going on."""
    total = run.plan.total_steps
    if run.world.rank == 0:
        print(f"step {finished_steps:>{len(str(total))}}/{total}  eval  answering the held-out images", flush=True)
    run.record_evaluation(finished_steps, run.evaluate(finished_steps))


def main() -> int:
    """Train as the command line says; returns the process exit code."""
    parser = argparse.ArgumentParser(prog="train.py", description="Train both channels of stage 2.")
    parser.add_argument("--config", required=True, type=Path, help="YAML file")
    add_set_option(parser)
    add_resume_options(parser)
    parser.add_argument("--local_rank", type=int, default=0, help="set by the DeepSpeed launcher")
    arguments = parser.parse_args()
    rank = int(os.environ["RANK"]) if "RANK" in os.environ else 0
    if "RANK" in os.environ:
        end_with_parent()
    speaks = rank == 0 or os.environ.get("LOCAL_RANK") == "0"  # one per machine, until the ranks can tell each other
    try:
        check_resume_options(arguments)
        loaded, world = _meet(arguments.config, arguments.overrides, rank)
        speaks = rank == 0
        _run(loaded, world, arguments)
    except Stage2Error as error:
        return report_error(error, rank, speaks=speaks)
    return EXIT_OK


def _meet(config: Path, overrides: list[str], rank: int) -> tuple["LoadedConfig", "World"]:
    loaded = load_config(config, read_overrides(overrides))
    # Heavy imports wait until the config is known to be good.
    if rank == 0:
        print(f"{printable(str(config))}: valid; loading libraries, data and model", flush=True)
    from ds_stage2ab.engine.build import quieten, start_process_group
    from ds_stage2ab.runtime.ranks import World, fill_launcher_variables

    quieten()
    fill_launcher_variables()
    return loaded, World(start_process_group(loaded.config.deepspeed.collective_timeout_s))


def _run(loaded: "LoadedConfig", world: "World", arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from ds_stage2ab.assemble.run import assemble
    from ds_stage2ab.engine.run_folder import RunFolder
    from ds_stage2ab.engine.start import find_start
    from ds_stage2ab.metrics.report import summary_table, write_report
    from ds_stage2ab.preflight.opening import banner

    folder = RunFolder(loaded.config.logging.root / loaded.name, locked=loaded.config.logging.lock)
    install_sigterm_handler(world.rank, lambda: world.now, folder.newest_checkpoint_words)
    start = find_start(arguments.resume, folder, world, allow_change=arguments.allow_change)
    run = assemble(loaded, world, start)
    try:
        if world.rank == 0:
            print(banner(run.plan.batch_sentence, run.opening), flush=True)
        train(run)
    except ServerFault:
        run.save_finished()
        raise
    finally:
        run.close()
    with world.raise_together("writing the report"):
        if world.rank == 0:
            report = write_report(run.folder.path)
            Console().print(summary_table(report.rows, title=report.run))


if __name__ == "__main__":
    guard_streams(goes_on=True)
    sys.excepthook = excepthook
    exit_now(main())
