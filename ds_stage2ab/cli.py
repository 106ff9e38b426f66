"""The console script `ds-stage2ab`: one sub-command per job except training.

Each sub-command imports what it needs when it runs: `--help`, `validate` and `plan` import no torch. Errors
that a user can cause end as one message on stderr and the exit code of their class.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from ds_stage2ab import __version__, validate
from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.overrides import add_set_option, read_overrides
from ds_stage2ab.data.box_forms import FORMS
from ds_stage2ab.errors import EXIT_OK, ConfigError, Stage2Error, exit_code, printable, unusable_path
from ds_stage2ab.formats.options import add_export_options, add_import_options
from ds_stage2ab.launch.command import launch
from ds_stage2ab.launch.options import add_launch_options, whole_number
from ds_stage2ab.predict.options import add_predict_options
from ds_stage2ab.runtime.shutdown import (
    EXIT_INTERRUPTED,
    end_on_signals,
    end_with_parent,
    excepthook,
    exit_now,
    report_error,
)
from ds_stage2ab.runtime.streams import guard_streams

COMMAND = "ds-stage2ab"


def main(arguments: list[str] | None = None) -> int:
    """Run one sub-command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    if arguments is None:
        guard_streams(goes_on=words[:1] == ["launch"])
    if words[:1] == ["validate"]:
        return validate.main(words[1:])
    options = _parser().parse_args(words)
    try:
        return options.run(options) or EXIT_OK
    except Stage2Error as error:
        print(f"error: {error}", file=sys.stderr)
        return exit_code(error)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.filename is None:
            raise
        fault = unusable_path(error)
        print(f"error: {fault}", file=sys.stderr)
        return exit_code(fault)


def _plan(options: argparse.Namespace) -> None:
    from ds_stage2ab.preflight.report import as_data, preflight_report
    from ds_stage2ab.preflight.text import as_text

    report = preflight_report(
        options.config,
        read_overrides(options.overrides),
        learners=options.learners,
        rollout_devices=options.rollout_gpus,
        records=options.records,
        gpu_gib=options.gpu_memory,
    )
    if options.simulate is None and options.devices is not None:
        raise ConfigError("--devices is a question to a simulation", where="--devices", fix="name one with --simulate")
    if options.simulate is not None:
        from ds_stage2ab.simulation.command import simulate
        from ds_stage2ab.simulation.text import as_data, as_text

        report = simulate(report, options.simulate, options.devices)
    print(json.dumps(as_data(report), indent=2) if options.format == "json" else as_text(report))


def _evaluate(options: argparse.Namespace) -> None:
    rank = int(os.environ.get("RANK", "0"))
    try:
        _evaluate_on_ranks(options)
    except Stage2Error as error:
        exit_now(report_error(error, rank, speaks=os.environ.get("LOCAL_RANK", "0") == "0"))
    except OSError:  # at once: this process is in a group
        excepthook(*sys.exc_info())


def _evaluate_on_ranks(options: argparse.Namespace) -> None:
    sys.excepthook = excepthook
    if "RANK" in os.environ:
        end_with_parent()
    loaded = load_config(options.config, read_overrides(options.overrides))

    from rich.console import Console

    from ds_stage2ab.engine.build import quieten, start_process_group
    from ds_stage2ab.evaluation.command import as_data, as_tables, evaluate_checkpoint
    from ds_stage2ab.runtime.ranks import World, fill_launcher_variables

    quieten()
    fill_launcher_variables()
    world = World(start_process_group(loaded.config.deepspeed.collective_timeout_s))
    end_on_signals(world.rank, lambda: world.now)
    say = partial(print, file=sys.stderr, flush=True)
    evaluation = evaluate_checkpoint(loaded, options.checkpoint, world, options.pictures, say)
    world.close()
    if world.rank == 0 and options.format == "json":
        print(json.dumps(as_data(evaluation), indent=2))
    elif world.rank == 0:
        for table in as_tables(evaluation):
            Console().print(table)


def _add_coord_tokens(options: argparse.Namespace) -> None:
    from ds_stage2ab.tools.add_coord_tokens import add_coord_tokens

    source, destination = (printable(str(path)) for path in (options.source, options.destination))
    tell = partial(print, f"{destination}:", file=sys.stderr, flush=True)
    add_coord_tokens(options.source, options.destination, tell)
    print(f"{destination}: {source} with the 1,000 coordinate tokens")


def _report(options: argparse.Namespace) -> None:
    from ds_stage2ab.run_report.command import run_report

    _say(run_report(options))


def _checkpoints(options: argparse.Namespace) -> None:
    from rich.console import Console

    from ds_stage2ab.engine.listing import checkpoints_table

    Console().print(checkpoints_table(options.run_folder, verify=options.verify))


def _init(options: argparse.Namespace) -> None:
    from ds_stage2ab.tools.init_config import init_config

    hints = init_config(options.file, lora=options.lora, model=options.model, data=options.data)
    print(f"{printable(str(options.file))}: written; next")
    for hint in hints:
        print(f"  {printable(hint)}")


def _data(options: argparse.Namespace) -> None:
    from ds_stage2ab.data_report.command import run_data

    _say(run_data(options))


def _import(options: argparse.Namespace) -> None:
    from ds_stage2ab.formats.command import run_import

    _say(run_import(options))


def _export(options: argparse.Namespace) -> None:
    from ds_stage2ab.formats.command import run_export

    _say(run_export(options))


def _predict(options: argparse.Namespace) -> int:
    from ds_stage2ab.predict.command import run_predict

    return run_predict(options, partial(print, file=sys.stderr, flush=True))


def _say(parts: Iterable[object]) -> None:
    """Lines and tables."""
    from rich.console import Console

    for part in parts:
        if isinstance(part, str):
            print(part)
        else:
            Console().print(part)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Second-stage training of vision-language detectors. Training itself: "
        "deepspeed ds_stage2ab/train.py --config FILE",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    # For the help text only: `validate` has its own parser.
    commands.add_parser("validate", help="check config files: every problem, no torch, no data opened")

    _add_plan(commands.add_parser("plan", help="say what a run would do and take: no torch, no GPU, from anywhere"))

    _add_evaluate(commands.add_parser("evaluate", help="judge a checkpoint on data.validation, by description too"))

    predict = commands.add_parser("predict", help="find objects in images: pictures, JSONL and COCO's results")
    add_predict_options(predict)
    predict.set_defaults(run=_predict)

    together = commands.add_parser(
        "launch", help="start the rollout servers of a config and the learner, end all together"
    )
    add_launch_options(together)
    together.set_defaults(run=launch)

    tokens = commands.add_parser("add-coord-tokens", help="give a Qwen3-VL checkpoint the 1,000 coordinate tokens")
    tokens.add_argument("source", type=Path, metavar="SRC", help="checkpoint folder (Hugging Face layout)")
    tokens.add_argument("destination", type=Path, metavar="DST", help="folder to make")
    tokens.set_defaults(run=_add_coord_tokens)

    checkpoints = commands.add_parser("checkpoints", help="list what a run can go on from, and what is damaged")
    checkpoints.add_argument("run_folder", type=Path, metavar="RUN_DIR", help="folder of one run")
    checkpoints.add_argument("--verify", action="store_true", help="read every file and compare its digest")
    checkpoints.set_defaults(run=_checkpoints)

    _add_data(commands.add_parser("data", help="say what is in a JSONL, or in those of a config"))

    _add_init(commands.add_parser("init", help="write a config for your own model and data"))

    importing = commands.add_parser("import", help="make JSONL of COCO, YOLO, VOC, LVIS, ODVG or ms-swift annotations")
    add_import_options(importing)
    importing.set_defaults(run=_import)

    exporting = commands.add_parser("export", help="write predictions or truth as COCO's JSON")
    add_export_options(exporting)
    exporting.set_defaults(run=_export)

    _add_report(commands.add_parser("report", help="draw the curves of runs again, print tables, write a page"))
    return parser


def _add_plan(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("config", type=Path, metavar="FILE", help="YAML file")
    validate.add_topology_options(plan)
    plan.add_argument(
        "--records", type=whole_number, metavar="N", help="training records, if data.train is not on this machine"
    )
    what = "memory of one GPU: say whether a learner fits, and what to change if not"
    plan.add_argument("--gpu-memory", type=whole_number, metavar="GIB", help=what)
    what = "say instead what a step would take, by the folders of recorded runs, or by a file that states it"
    plan.add_argument("--simulate", type=Path, nargs="+", metavar="RUN_DIR|YAML", help=what)
    what = "with --simulate: which split of so many devices into learners and servers is the fastest"
    plan.add_argument("--devices", type=whole_number, metavar="N", help=what)
    plan.add_argument("--format", choices=("text", "json"), default="text", help="of the answer (default: text)")
    add_set_option(plan)
    plan.set_defaults(run=_plan)


def _add_data(data: argparse.ArgumentParser) -> None:
    data.add_argument("source", type=Path, metavar="CONFIG|JSONL", help="YAML file, or a JSONL of the data contract")
    data.add_argument("--html", type=Path, metavar="FILE", help="also write one HTML file with pictures")
    what = "how the boxes of a JSONL are written (default: bins); of a config, data.box_format says it"
    data.add_argument("--box-format", choices=FORMS, default="bins", help=what)
    what = "where the image paths of a JSONL start (default: its folder); of a config, data.image_root says it"
    data.add_argument("--image-root", type=Path, metavar="DIR", help=what)
    add_set_option(data)
    data.set_defaults(run=_data)


def _add_report(report: argparse.ArgumentParser) -> None:
    report.add_argument("run_folders", type=Path, nargs="+", metavar="RUN_DIR", help="folder of a run")
    what = "also write one HTML file of all of them (default: report.html in the first folder)"
    report.add_argument("--html", type=Path, nargs="?", const=Path(), metavar="FILE", help=what)
    report.set_defaults(run=_report)


def _add_init(init: argparse.ArgumentParser) -> None:
    init.add_argument("file", type=Path, metavar="FILE", help="YAML file to write")
    init.add_argument("--lora", action="store_true", help="train adapters (default: the whole language model)")
    init.add_argument("--model", type=Path, metavar="DIR", help="checkpoint folder (Hugging Face layout)")
    init.add_argument("--data", type=Path, metavar="DIR", help="folder with train.jsonl and validation.jsonl")
    init.set_defaults(run=_init)


def _add_evaluate(evaluate: argparse.ArgumentParser) -> None:
    evaluate.add_argument("--config", required=True, type=Path, metavar="FILE", help="YAML file")
    what = "Hugging Face folder, a run's checkpoint, or a run (its newest checkpoint)"
    evaluate.add_argument("--checkpoint", required=True, type=Path, metavar="DIR", help=what)
    evaluate.add_argument("--pictures", type=Path, metavar="DIR", help="draw predictions over truth here")
    evaluate.add_argument("--format", choices=("text", "json"), default="text", help="of the answer (default: text)")
    add_set_option(evaluate)
    evaluate.set_defaults(run=_evaluate)


if __name__ == "__main__":
    sys.exit(main())
