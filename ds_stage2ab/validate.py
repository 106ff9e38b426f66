"""`python -m ds_stage2ab.validate FILE... [--learners N] [--set KEY=VALUE]...`: every problem of every config.

Takes a fraction of a second, opens no data, model or socket and imports no torch. Exit code 0: all valid; 1: a file
has a problem; 2: a file cannot be opened or decoded, or the command line is wrong; of several files the largest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ds_stage2ab.config.batch import BatchShape, counted, implied_learners, shape_batch
from ds_stage2ab.config.load import CheckedConfig, check_config
from ds_stage2ab.config.overrides import add_set_option, read_overrides
from ds_stage2ab.config.problems import ArgumentPlace, UnreadableFile, as_block
from ds_stage2ab.config.rules import RULES, batch_rule
from ds_stage2ab.errors import ConfigError

EXIT_VALID = 0
EXIT_PROBLEM = 1
EXIT_UNREADABLE = 2


def main(arguments: list[str] | None = None) -> int:
    """Check the files named on the command line; returns the exit code."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)  # files may stand behind a --set
    try:
        overrides = read_overrides(options.overrides)
    except ConfigError as error:
        parser.error(str(error))
    codes, problems = [], 0
    for path in options.files:
        try:
            checked = check_config(path, (batch_rule(options.learners), *RULES), overrides)
        except UnreadableFile as error:
            print(error)
            codes.append(EXIT_UNREADABLE)
            problems += 1
            continue
        problems += len(checked.problems)
        codes.append(EXIT_PROBLEM if checked.problems else EXIT_VALID)
        print(_blocks(checked, len(options.files) > 1) or summary(checked, options.learners))
    if problems:
        faulty = sum(code != EXIT_VALID for code in codes)
        print(f"{counted(problems, 'problem')} in {faulty} of {counted(len(codes), 'file')}")
    return max(codes)


def _blocks(checked: CheckedConfig, is_one_of_several: bool) -> str:
    """The problems as text. A place on the command line says nothing of which file it made faulty."""
    names = [
        f"{checked.path}: " if is_one_of_several and isinstance(problem.where, ArgumentPlace) else ""
        for problem in checked.problems
    ]
    return "\n".join(name + as_block(problem) for name, problem in zip(names, checked.problems, strict=True))


def summary(checked: CheckedConfig, learners: int | None) -> str:
    """One line with the numbers that follow from a valid config."""
    shape = _shape(checked.resolved["training"], learners)
    b_ratio = checked.resolved["stage2_ab"]["schedule"]["b_ratio"]
    per_rank = counted(shape.samples_per_rank, "sample")
    return f"{checked.path}: valid: {shape.sentence}; {per_rank} per rank and step; b_ratio {b_ratio}"


def _shape(training: dict, learners: int | None) -> BatchShape:
    numbers = {
        "effective_batch_size": training["effective_batch_size"],
        "per_device": training["per_device_train_batch_size"],
        "accumulation": training["gradient_accumulation_steps"],
    }
    return shape_batch(**numbers, learners=learners or implied_learners(**numbers))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ds_stage2ab.validate", description="Check config files.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML files")
    parser.add_argument(
        "--learners",
        type=_positive,
        metavar="N",
        help="learner ranks for the batch rules (default: what gradient_accumulation_steps implies, else 1)",
    )
    add_set_option(parser)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
