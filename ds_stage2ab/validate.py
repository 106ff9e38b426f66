"""`python -m ds_stage2ab.validate FILE...`: every problem of every config, with its line and a remedy.

Takes a fraction of a second, opens no data, model or socket and imports no torch. Exit code 0: all valid; 1: a file
has a problem; 2: a file cannot be opened or decoded, or the command line is wrong; of several files the largest.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from ds_stage2ab.config.batch import counted
from ds_stage2ab.config.derived import Derived, derive
from ds_stage2ab.config.load import CheckedConfig, check_config
from ds_stage2ab.config.nodes import Node
from ds_stage2ab.config.overrides import add_set_option, read_overrides
from ds_stage2ab.config.problems import ArgumentPlace, Problem, UnreadableFile
from ds_stage2ab.config.report import as_block, redacted
from ds_stage2ab.config.resolved import as_yaml, origins
from ds_stage2ab.config.rules import RULES
from ds_stage2ab.config.topology_rules import topology_rules
from ds_stage2ab.errors import ConfigError, printable
from ds_stage2ab.runtime.streams import guard_streams

EXIT_VALID = 0
EXIT_PROBLEM = 1
EXIT_UNREADABLE = 2
MAX_DEVICES = 1_000_000  # more is a typing error


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result for one file; exactly one of the last two is None."""

    path: Path
    derived: Derived | None
    # of a valid config
    checked: CheckedConfig | None
    unreadable: UnreadableFile | None

    @property
    def num_problems(self) -> int:
        return len(self.checked.problems) if self.checked else 1

    @property
    def code(self) -> int:
        if self.checked is None:
            return EXIT_UNREADABLE
        return EXIT_PROBLEM if self.checked.problems else EXIT_VALID


def main(arguments: list[str] | None = None) -> int:
    """Check the files named on the command line; returns the exit code."""
    if arguments is None:
        guard_streams(goes_on=False)
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)  # files may follow a --set
    try:
        overrides = read_overrides(options.overrides)
    except ConfigError as error:
        parser.error(str(error))
    outcomes = [_check(path, options.learners, options.rollout_gpus, overrides) for path in options.files]
    if options.format == "json":
        print(json.dumps(_as_data(outcomes, options.show), indent=2))
    else:
        print(_as_text(outcomes, options.show))
    return max(outcome.code for outcome in outcomes)


def _check(path: Path, learners: int | None, rollout_devices: int | None, overrides: Node | None) -> Outcome:
    try:
        checked = check_config(path, (*topology_rules(learners, rollout_devices), *RULES), overrides)
    except UnreadableFile as error:
        return Outcome(path=path, derived=None, checked=None, unreadable=error)
    derived = None if checked.problems else derive(checked.resolved, learners, rollout_devices)
    return Outcome(path=path, derived=derived, checked=checked, unreadable=None)


# -- text ------------------------------------------------------------------------------------------------------------


def _as_text(outcomes: list[Outcome], show: bool) -> str:
    """The outcomes one after another; where there are problems, their number at the end."""
    parts = [_of_one(outcome, show, len(outcomes) > 1) for outcome in outcomes]
    problems = sum(outcome.num_problems for outcome in outcomes)
    if problems:
        faulty = sum(outcome.code != EXIT_VALID for outcome in outcomes)
        parts.append(f"{counted(problems, 'problem')} in {faulty} of {counted(len(outcomes), 'file')}")
    return "\n".join(parts)


def _of_one(outcome: Outcome, show: bool, is_one_of_several: bool) -> str:
    if outcome.checked is None:
        return str(outcome.unreadable)
    if outcome.derived is None:
        blocks = (_block(outcome.checked, problem, is_one_of_several) for problem in outcome.checked.problems)
        return "\n".join(blocks)
    line = f"{printable(str(outcome.path))}: valid: {outcome.derived.sentence}"
    return f"# {line}\n{as_yaml(outcome.checked.resolved, outcome.checked.document)}" if show else line


def _block(checked: CheckedConfig, problem: Problem, is_one_of_several: bool) -> str:
    """Name the file where a place on the command line does not tell which of several files is faulty."""
    name = f"{checked.path}: " if is_one_of_several and isinstance(problem.where, ArgumentPlace) else ""
    return name + as_block(problem, checked.document.sources)


# -- JSON ------------------------------------------------------------------------------------------------------------


def _as_data(outcomes: list[Outcome], show: bool) -> dict:
    return {
        "exit_code": max(outcome.code for outcome in outcomes),
        "num_problems": sum(outcome.num_problems for outcome in outcomes),
        "files": [_file_as_data(outcome, show) for outcome in outcomes],
    }


def _file_as_data(outcome: Outcome, show: bool) -> dict:
    data: dict = {"file": str(outcome.path), "exit_code": outcome.code, "problems": []}
    if outcome.checked is None:
        data["problems"] = [{"file": str(outcome.path), "why": outcome.unreadable.why, "fix": outcome.unreadable.fix}]
        return data
    data["problems"] = [_problem_as_data(problem) for problem in outcome.checked.problems]
    if outcome.derived is not None:
        data["derived"] = outcome.derived.numbers
        if show:
            data["resolved"] = outcome.checked.resolved
            data["origins"] = origins(outcome.checked.resolved, outcome.checked.document)
    return data


def _problem_as_data(problem: Problem) -> dict:
    place = problem.where
    is_argument = isinstance(place, ArgumentPlace)
    return {
        "argument" if is_argument else "file": redacted(place.file),
        "line": None if is_argument else place.line,
        "column": place.column,
        "key": problem.key,
        "why": redacted(problem.why),
        "fix": redacted(problem.fix),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m ds_stage2ab.validate", description="Check config files.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML files")
    add_topology_options(parser)
    parser.add_argument("--format", choices=("text", "json"), default="text", help="of the answer (default: text)")
    parser.add_argument("--show", action="store_true", help="print every value of a valid config and where it is from")
    add_set_option(parser)
    return parser


def add_topology_options(parser: argparse.ArgumentParser) -> None:
    """The devices of a run: `learners` and `rollout_gpus`, both None when they are not given."""
    parser.add_argument(
        "--learners",
        type=_positive,
        metavar="N",
        help="learner ranks (default: what gradient_accumulation_steps implies, else 1)",
    )
    parser.add_argument(
        "--rollout-gpus",
        type=_positive,
        metavar="S",
        help="devices of all rollout servers together (default: one replica per server of the config)",
    )


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= MAX_DEVICES:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MAX_DEVICES}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
