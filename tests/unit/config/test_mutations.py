"""Every constraint counts: without any single one of them, some example is judged otherwise.

A mutant is the schema without one keyword (or one entry of `required`), the rules without one, or the table of removed
keys without a row. It is killed if one of the wrong values, or a file of tests/examples, gives other problems.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from ds_stage2ab.config import removed
from ds_stage2ab.config.load import check_config
from ds_stage2ab.config.nodes import Node
from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.config.removed import removed_keys
from ds_stage2ab.config.rules import RULES, Rule
from ds_stage2ab.config.schema import config_schema
from ds_stage2ab.config.topology_rules import topology_rules

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "tests" / "examples"
MINIMAL = EXAMPLES / "valid" / "minimal.yaml"
EVERY_RULE = (*topology_rules(None, None), *RULES)
CONSTRAINTS = {
    "type", "enum", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "minLength", "maxLength", "pattern",
    "uniqueItems", "additionalProperties",
}  # fmt: skip
WHOLE = {
    "training": {"effective_batch_size": 32},
    "stage2_ab": {"schedule": {"b_ratio": 0}},
    "model": {"path": "checkpoint"},
    "data": {"train": "train.jsonl", "user_prompt": "Detect every object."},
}
# What an editor has to mark and our own reading refuses by other means: it takes `extends` away and adds sections.
MARKED = (
    3,
    {"extends": 3},
    {"extends": [3]},
    *({name: value for name, value in WHOLE.items() if name != left_out} for left_out in WHOLE),
    {**WHOLE, "stage2_ab": {}},
)
TRIED_EVERY_TIME = 25  # schema mutants, evenly spread


@dataclass(frozen=True, slots=True)
class Case:
    """A config and the problems that it has, as `key: why` or the beginning of it."""

    file: Path
    arguments: tuple[str, ...]
    expected: tuple[str, ...]

    @property
    def first_key(self) -> tuple[str, ...]:
        return tuple(self.expected[0].split(": ")[0].split("."))

    def is_met(self, rules: tuple[Rule, ...] = EVERY_RULE) -> bool:
        seen = check_config(self.file, rules, self._overrides()).problems
        texts = [f"{problem.key}: {problem.why}" for problem in seen]
        return len(texts) == len(self.expected) and all(map(str.startswith, texts, self.expected))

    def _overrides(self) -> Node | None:
        return read_overrides(self.arguments)


@cache
def wrong_values() -> tuple[Case, ...]:
    lines = (EXAMPLES / "wrong_values.txt").read_text(encoding="utf-8").splitlines()
    parts = (line.split(" -> ") for line in lines if not line.startswith("#"))
    return tuple(Case(MINIMAL, tuple(words.split(" ; ")), (problem,)) for words, problem in parts)


@cache
def bad_files() -> tuple[Case, ...]:
    """The invalid examples with the problems that they have now; that these are right, test_examples shows."""
    cases = []
    for path in sorted((EXAMPLES / "invalid").glob("*.yaml")):
        problems = check_config(path, EVERY_RULE).problems
        cases.append(Case(path, (), tuple(f"{problem.key}: {problem.why}" for problem in problems)))
    return tuple(cases)


@cache
def cases_of_rules() -> tuple[Case, ...]:
    """Those that are judged otherwise without any rule: the others need none."""
    return tuple(case for case in (*wrong_values()[::-1], *bad_files()) if not case.is_met(()))


@pytest.fixture(scope="module")
def cases_of_removed_keys() -> tuple[Case, ...]:
    """Those that are judged otherwise without the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(removed, "removed_keys", tuple)
        return tuple(case for case in (*wrong_values()[::-1], *bad_files()) if not case.is_met())


def constraints(schema: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict, str]]:
    """(key, the schema that holds the constraint, keyword) of every constraint but `required`."""
    for keyword in sorted(CONSTRAINTS & schema.keys()):
        yield path, schema, keyword
    for key, child in schema.get("properties", {}).items():
        yield from constraints(child, (*path, key))
    if "items" in schema:
        yield from constraints(schema["items"], (*path, "0"))


def required(schema: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list, str]]:
    """(key, the list that holds it, its name) of every entry of a `required`."""
    for name in list(schema.get("required", ())):
        yield (*path, name), schema["required"], name
    for key, child in schema.get("properties", {}).items():
        yield from required(child, (*path, key))
    if "items" in schema:
        yield from required(schema["items"], (*path, "0"))
    if "else" in schema:
        yield from required(schema["else"], path)


def is_killed(path: tuple[str, ...]) -> bool:
    """Whether some case fails now; those at the key itself, which are likely to, come first."""
    near = [case for case in wrong_values() if case.first_key[: len(path)] == path]
    far = [case for case in wrong_values() if case not in near]
    try:
        if any(Draft202012Validator(config_schema()).is_valid(value) for value in MARKED):
            return True
        return any(not case.is_met() for cases in (near, bad_files(), far) for case in cases)
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ):  # code behind the schema meets what the schema should have stopped
        return True


def survives_without_keyword(path: tuple[str, ...], schema: dict, keyword: str) -> bool:
    kept = dict(schema)
    del schema[keyword]
    try:
        return not is_killed(path)
    finally:
        schema.clear()
        schema.update(kept)


def survives_without_entry(path: tuple[str, ...], entries: list, name: str) -> bool:
    at = entries.index(name)
    del entries[at]
    try:
        return not is_killed(path)
    finally:
        entries.insert(at, name)


def told(path: tuple[str, ...], keyword: str) -> str:
    return f"{'.'.join(path) or 'the root'}: {keyword}"


@pytest.fixture(autouse=True)
def _cases_before_any_mutant():
    assert wrong_values()
    assert bad_files()


@pytest.mark.parametrize("case", wrong_values(), ids=lambda case: " ; ".join(case.arguments))
def test_a_wrong_value_gives_exactly_its_own_problem(case):
    assert case.is_met(), check_config(case.file, EVERY_RULE, read_overrides(case.arguments)).problems


def test_without_a_mutant_no_case_fails():
    assert not is_killed(())
    assert Draft202012Validator(config_schema()).is_valid(WHOLE)


def test_a_sample_of_the_constraints_counts():
    found = list(constraints(config_schema()))
    sample = found[:: len(found) // TRIED_EVERY_TIME]
    survivors = [
        told(path, keyword) for path, schema, keyword in sample if survives_without_keyword(path, schema, keyword)
    ]
    assert survivors == []


def test_every_required_key_counts():
    found = list(required(config_schema()))
    assert [
        told(path, "required") for path, entries, name in found if survives_without_entry(path, entries, name)
    ] == []


@pytest.mark.soak
def test_every_constraint_counts(capsys):
    found = list(constraints(config_schema()))
    survivors = [
        told(path, keyword) for path, schema, keyword in found if survives_without_keyword(path, schema, keyword)
    ]
    with capsys.disabled():
        print(f"\n{len(found)} constraints taken away one at a time; survivors: {survivors or 'none'}")
    assert survivors == []


@pytest.mark.parametrize("number", range(len(EVERY_RULE)), ids=lambda i: EVERY_RULE[i].check.__name__)
def test_every_rule_counts(number):
    others = EVERY_RULE[:number] + EVERY_RULE[number + 1 :]
    assert any(not case.is_met(others) for case in cases_of_rules())


@pytest.mark.parametrize("row", removed_keys(), ids=lambda row: row["key"])
def test_every_removed_key_counts(row, monkeypatch, cases_of_removed_keys):
    others = tuple(other for other in removed_keys() if other is not row)
    monkeypatch.setattr(removed, "removed_keys", lambda: others)
    assert any(not case.is_met() for case in cases_of_removed_keys)
