"""A remedy is an instruction: followed to the letter, it leads to a config that is right, or to the next true message.

Here are those that a machine can follow in a config: set a key, write a value, delete a key. Others are followed beside
what they cure: in tests/unit/data those of boxes (test_box_forms.py), prompts (test_prompt.py) and workers
(test_feed.py), those of checkpoint folders in tests/unit/model_folder, those of run folders in
tests/unit/engine/test_run_folder.py.
"""

import ast
import json
import re
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest

from ds_stage2ab.config.load import check_config
from ds_stage2ab.config.problems import Problem
from ds_stage2ab.config.rules import RULES
from ds_stage2ab.config.schema import config_schema
from ds_stage2ab.config.topology_rules import topology_rules
from tests.architecture.sources import package_files, parse, relative
from tests.unit.config.test_mutations import Case, bad_files, wrong_values

EVERY_RULE = (*topology_rules(None, None), *RULES)
MOST_STEPS = 6
KEY = r"`?([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)+)"
SET_TO = re.compile(rf"\bset {KEY}`?(?:: | to )([^\s,;`]+)")
DELETE = re.compile(rf"\bdelete {KEY}")
DELETE_IT = re.compile(r"\bdelete (?:it|the key|this key)\b")
WRITE_ONE_OF = re.compile(r"^write one of (\w+)")
WRITE_NUMBER = re.compile(r"^write (-?[0-9][^\s,]*)")
NO_VALUES = {"a", "what", "the", "another", "more", "its"}
"""Words behind `set key to` that describe a value."""
Edit = tuple[tuple[str, ...], object]
"""A key and its new value; DELETED: it goes."""
DELETED = object()


def edits(problem: Problem) -> Iterator[list[Edit]]:
    """The alternatives of a remedy, each a list of edits; none if only a person can follow it."""
    for part in re.split(r",? or (?=set |delete )", problem.fix):
        found: list[Edit] = [
            (tuple(key.split(".")), plain(value)) for key, value in SET_TO.findall(part) if value not in NO_VALUES
        ]
        found += [(tuple(key.split(".")), DELETED) for key in DELETE.findall(part)]
        for pattern in (WRITE_ONE_OF, WRITE_NUMBER):
            found += [(problem.path, plain(value)) for value in pattern.findall(part)]
        if DELETE_IT.search(part) and problem.path:
            found.append((problem.path, DELETED))
        if found:
            yield found


def plain(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def applied(values: dict, changes: list[Edit]) -> dict:
    values = deepcopy(values)
    for path, value in changes:
        section = values
        for key in path[:-1]:
            section = section[int(key)] if isinstance(section, list) else section.setdefault(key, {})
        if value is DELETED:
            section.pop(path[-1], None)
        else:
            section[int(path[-1]) if isinstance(section, list) else path[-1]] = value
    return values


def problems_of(folder: Path, values: dict) -> list[Problem]:
    file = folder / "followed.yaml"
    file.write_text(json.dumps(values))
    return list(check_config(file, EVERY_RULE).problems)


def said(problem: Problem) -> str:
    return f"{problem.key}: {problem.why}"


def follow(folder: Path, values: dict, problem: Problem, seen: tuple[str, ...]) -> int:
    """Follow every alternative of a remedy, and those of the messages that it leads to; returns how many there were."""
    number = 0
    for changes in edits(problem):
        assert len(seen) < MOST_STEPS, f"no end: {seen}"
        followed = applied(values, changes)
        left = problems_of(folder, followed)
        again = [other for other in left if said(other) in seen]
        assert not again, f"{problem.fix!r} leads from {seen} back to {said(again[0])!r}"
        number += 1
        for other in left:
            if other.path[:1] and said(other) not in {said(one) for one in problems_of(folder, values)}:
                number += follow(folder, followed, other, (*seen, said(other)))
    return number


CASES = [*bad_files(), *wrong_values()]


def written(case: Case) -> dict:
    return check_config(case.file, EVERY_RULE, case._overrides()).document.values


def test_every_remedy_that_a_machine_can_follow_leads_on(tmp_path):
    followed = 0
    for case in CASES:
        values = written(case)
        for problem in problems_of(tmp_path, values):
            followed += follow(tmp_path, values, problem, (said(problem),))
    assert followed > 100  # a pattern that matches nothing must not pass


def test_a_circle_is_found(tmp_path):
    """Two remedies that answer each other, as `set pixel` and `set bins` did."""
    values = json.loads(json.dumps(written(bad_files()[0])))
    broken = applied(values, [(("training", "max_steps"), -1)])
    (first,) = [one for one in problems_of(tmp_path, broken) if one.key == "training.max_steps"]
    circle = Problem(first.path, first.why, "set training.max_steps to -1", first.where)
    with pytest.raises(AssertionError, match=r"back to 'training\.max_steps"):
        follow(tmp_path, broken, circle, (said(first),))


# -- what the messages name ------------------------------------------------------------------------------------------


def known_keys(schema: dict, path: tuple[str, ...] = ()) -> Iterator[str]:
    for key, child in schema.get("properties", {}).items():
        yield ".".join((*path, key))
        yield from known_keys(child, (*path, key))


KEYS = set(known_keys(config_schema()))
SECTIONS = {key.partition(".")[0] for key in KEYS}
NAMED = re.compile(rf"(?<![\w./<-])((?:{'|'.join(sorted(SECTIONS))})(?:\.[a-z][a-z0-9_]*)+)(?![\w(/])")
FILES = {"model.safetensors", "data.yaml"}


def told(tree: ast.Module) -> Iterator[str]:
    """Every text of several words of a module that is no docstring."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {id(one.value) for body in bodies for one in body if isinstance(one, ast.Expr)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in docstrings else None
        if isinstance(text, str) and " " in text:
            yield text


def test_every_key_that_a_message_names_is_one():
    texts = [(relative(path), text) for path in package_files() for text in told(parse(path))]
    named = [(path, key) for path, text in texts for key in NAMED.findall(text)]
    assert len(named) > 30
    assert [(path, key) for path, key in named if key not in KEYS | FILES] == []
