"""A config file and command-line overrides -> typed sections, or every problem in them.

Order: merge, removed keys, schema, defaults, rules, sections.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

from ds_stage2ab.config.document import Document, read_document
from ds_stage2ab.config.nodes import Node
from ds_stage2ab.config.problems import ArgumentPlace, KeyPath, Problem, in_reading_order, value_at
from ds_stage2ab.config.removed import without_removed_keys
from ds_stage2ab.config.report import as_error
from ds_stage2ab.config.resolved import origins
from ds_stage2ab.config.rules import B_RATIO, RULES, Rule, broken_rules
from ds_stage2ab.config.schema import check_values, config_schema, keys_in_doubt, with_defaults
from ds_stage2ab.config.sections import Config, build_config


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedConfig:
    """Result of all checks of a config file that need nothing but the file."""

    path: Path
    problems: tuple[Problem, ...]
    # in reading order; empty: the config can be run
    resolved: dict
    # plain values that JSON can hold, defaults filled in; incomplete if there are problems
    document: Document
    # what was written, and where


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A config without problems."""

    name: str
    # of the run: `logging.name`, else the name of the file without its ending
    config: Config
    resolved: dict
    # the same as plain values: a valid config that resolves to itself
    origins: dict[str, str]
    # dotted key -> `file:line`, argument, or `default`


def check_config(path: Path, rules: tuple[Rule, ...] = RULES, overrides: Node | None = None) -> CheckedConfig:
    """Read a config file and apply every check that needs no data, model or socket.

    Args:
        path: the YAML file.
        rules: rules between keys.
        overrides: from `overrides.read_overrides`; merged last.

    Raises:
        UnreadableFile: the file cannot be opened or decoded.
    """
    document = read_document(path, overrides)
    problems = list(document.problems)
    resolved: dict = {}
    if document.complete:
        values, removed, asked_for = without_removed_keys(document)
        problems += removed
        problems += check_values(values, document, asked_for)
        resolved = with_defaults(values, config_schema())
        problems += _inexact_ratio(document, problems)
        faulty = {problem.path for problem in problems} | asked_for | keys_in_doubt(problems)
        problems += _rule_problems(resolved, document, faulty, rules)
    return CheckedConfig(path=path, problems=tuple(in_reading_order(problems)), resolved=resolved, document=document)


def load_config(path: Path, overrides: Node | None = None) -> LoadedConfig:
    """A config file as typed sections.

    The batch rules are applied by `plan.make_plan`, which knows the number of learners.

    Args:
        path: the YAML file.
        overrides: from `overrides.read_overrides`; merged last.

    Raises:
        ConfigError: the file cannot be read, or has problems: all of them are in the message.
    """
    checked = check_config(path, overrides=overrides)
    if checked.problems:
        raise as_error(checked.problems, str(path), checked.document.sources)
    config = build_config(checked.resolved)
    return LoadedConfig(
        name=config.logging.name or path.stem,
        config=config,
        resolved=checked.resolved,
        origins=origins(checked.resolved, checked.document),
    )


def _rule_problems(resolved: dict, document: Document, faulty: set[KeyPath], rules: tuple[Rule, ...]) -> list[Problem]:
    found = []
    for rule, error in broken_rules(resolved, rules, faulty):
        path = tuple(error.where.split("."))
        written = [key for key in (path, *rule.paths) if key in document.origins]
        why = error.why if path in written else f"{error.why} ({path[-1]} is at its default)"
        where = document.place_of_value(written[0] if written else path)
        causes = dict.fromkeys(str(document.place_of_value(key)) for key in written if _is_set(document, key))
        why += "".join(f" (with {cause})" for cause in causes if cause != str(where))
        found.append(Problem(path, why, error.fix, where))
    return found


def _is_set(document: Document, path: tuple[str, ...]) -> bool:
    """Whether a value comes from the command line."""
    return isinstance(document.place_of_value(path), ArgumentPlace)


def _inexact_ratio(document: Document, problems: list[Problem]) -> list[Problem]:
    """A problem if the ratio as written loses digits as a float: the schedule must be exact."""
    path = tuple(B_RATIO.split("."))
    if path not in document.origins or any(problem.path == path[: len(problem.path)] for problem in problems):
        return []
    text = document.text_of(path)
    value = value_at(document.values, path)
    if isinstance(value, int) or Fraction(Decimal(text)) == Fraction(str(value)):
        return []
    why = f"{text} has more digits than the schedule can keep exactly"
    return [Problem(path, why, f"round it to 15 digits or fewer: {float(text):.15g}", document.place_of_value(path))]
