"""The problems of a config file as `validate` finds them, for the tests beside it."""

from pathlib import Path

from ds_stage2ab.config.load import check_config
from ds_stage2ab.config.problems import Problem
from ds_stage2ab.config.rules import RULES
from ds_stage2ab.config.topology_rules import topology_rules


def check_file(path: Path, learners: int | None = None) -> list[Problem]:
    """In reading order; without `learners` of the ranks that the config speaks of by itself, else 1."""
    return list(check_config(path, (*topology_rules(learners, None), *RULES)).problems)
