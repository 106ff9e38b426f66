"""A random valid config with one mistake planted in it: that one is reported, at its line and column, and no other."""

import string
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ds_stage2ab.config.problems import KeyPath
from ds_stage2ab.config.rules import RULES
from ds_stage2ab.config.schema import config_schema, leaves
from ds_stage2ab.config.topology_rules import topology_rules
from tests.unit.config.checked import check_file
from tests.unit.config.test_mutations import WHOLE

LEAVES = {path: schema for path, schema in leaves(config_schema()) if schema["type"] != "array"}
READ_BY_RULES = {path for rule in (*topology_rules(None, None), *RULES) for path in rule.paths}
REQUIRED = {
    (section, *rest)
    for section, values in WHOLE.items()
    for rest in ([("schedule", "b_ratio")] if section == "stage2_ab" else [(key,) for key in values])
}
FREE = sorted(path for path in LEAVES if path not in READ_BY_RULES | REQUIRED)
FIXED = {
    ("training", "effective_batch_size"): "32",
    ("stage2_ab", "schedule", "b_ratio"): "0.25",
    ("checkpoint", "save_by"): "03:45:00",
}
WORDS = st.text(string.ascii_letters, min_size=1, max_size=8).map(lambda word: f"w{word}")
KINDS = ("typo", "wrong type", "out of range", "twice", "unknown", "missing")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a YAML file: `key: value`, or `key:` above what it holds."""

    path: KeyPath
    value: str
    # empty for a section

    @property
    def indent(self) -> str:
        return "  " * (len(self.path) - 1)

    @property
    def text(self) -> str:
        return f"{self.indent}{self.path[-1]}:" + (f" {self.value}" if self.value else "")

    @property
    def key_column(self) -> int:
        return len(self.indent) + 1

    @property
    def value_column(self) -> int:
        return len(self.indent) + len(self.path[-1]) + 3  # behind `: `, counted from 1


def kinds_of(schema: dict) -> list[str]:
    return schema["type"] if isinstance(schema["type"], list) else [schema["type"]]


def good_values(schema: dict) -> st.SearchStrategy[str]:
    """Values of a key as text that the schema allows."""
    if "enum" in schema:
        return st.sampled_from([str(choice) for choice in schema["enum"]])
    kinds = kinds_of(schema)
    if "boolean" in kinds:
        return st.sampled_from(["true", "false"])
    if "string" in kinds:
        return WORDS
    low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
    high = schema.get("maximum", schema.get("exclusiveMaximum", low + 1000))
    if "integer" in kinds:
        return st.integers(low, min(high, low + 1000)).map(str)
    return st.integers(1, 99).map(lambda part: str(round(low + (high - low) * part / 100, 6)))


@st.composite
def configs(draw) -> list[Line]:
    """The lines of a valid config: every required key, and some of the others."""
    chosen = {*REQUIRED, *draw(st.sets(st.sampled_from(FREE), max_size=12))}
    order = [path for path in LEAVES if path in chosen]
    lines: list[Line] = []
    for path in order:
        for depth in range(1, len(path)):
            if all(line.path != path[:depth] for line in lines):
                lines.append(Line(path[:depth], ""))
        lines.append(Line(path, FIXED[path] if path in FIXED else draw(good_values(LEAVES[path]))))
    return lines


@dataclass(frozen=True, slots=True)
class Planted:
    """A config with one mistake, and where it is."""

    lines: list[Line]
    path: KeyPath
    number: int
    column: int


def wrong_type(schema: dict) -> str:
    kinds = kinds_of(schema)
    if "string" in kinds:
        return "[1]"
    return "maybe" if "boolean" in kinds or "enum" in schema else "word"


def out_of_range(schema: dict) -> str | None:
    """A value of the right type that the schema refuses; None where every such value is allowed."""
    if "enum" in schema:
        return "nonesuch" if "string" in kinds_of(schema) else "777"
    for keyword, step in (("minimum", -1), ("maximum", 1), ("exclusiveMinimum", 0), ("exclusiveMaximum", 0)):
        if keyword in schema:
            return str(schema[keyword] + step)
    return None


@st.composite
def mistakes(draw) -> Planted:
    lines, kind = draw(configs()), draw(st.sampled_from(KINDS))
    values = [at for at, line in enumerate(lines) if line.value]
    at = draw(st.sampled_from(values))
    line = lines[at]
    if kind == "typo":
        at = draw(st.sampled_from(range(len(lines))))
        return misspelt(lines, at, draw(st.integers(1, len(lines[at].path[-1]) - 1)))
    if kind == "unknown":
        below = (*line.path[:-1], "zqxj")
        return Planted([*lines[: at + 1], Line(below, "1"), *lines[at + 1 :]], below, at + 2, line.key_column)
    if kind == "twice":
        return Planted([*lines[: at + 1], line, *lines[at + 1 :]], line.path, at + 2, line.key_column)
    if kind == "missing":
        return without_a_required_key(lines, draw(st.sampled_from(sorted(REQUIRED))))
    schema = LEAVES[line.path]
    value = out_of_range(schema) if kind == "out of range" else None
    changed = replace(line, value=wrong_type(schema) if value is None else value)
    return Planted([*lines[:at], changed, *lines[at + 1 :]], line.path, at + 1, line.value_column)


def misspelt(lines: list[Line], at: int, letter: int) -> Planted:
    """One letter of a key twice; what stands below a section follows it."""
    old = lines[at].path
    new = (*old[:-1], old[-1][:letter] + old[-1][letter - 1] + old[-1][letter:])
    renamed = [replace(x, path=(*new, *x.path[len(old) :])) if x.path[: len(old)] == old else x for x in lines]
    return Planted(renamed, new, at + 1, lines[at].key_column)


def without_a_required_key(lines: list[Line], path: KeyPath) -> Planted:
    """The key alone: a comment stands in its place, so that its section is there, if need be with another key."""
    at = next(number for number, line in enumerate(lines) if line.path == path)
    sisters = any(line.path[:-1] == path[:-1] and line.path != path for line in lines)
    section = next(number for number, line in enumerate(lines) if line.path == path[:-1])
    rest = [*lines[:at], *lines[at + 1 :]]
    if not sisters:
        rest[section] = replace(lines[section], value="{}")
    return Planted(rest, path, section + 1, lines[section].key_column)


def written(lines: list[Line], path: Path) -> Path:
    path.write_text("".join(f"{line.text}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("planted") / "config.yaml"


@given(lines=configs())
@settings(max_examples=60)
def test_what_is_planted_into_is_valid(file, lines):
    assert check_file(written(lines, file)) == []


def check(planted: Planted, file: Path) -> None:
    found = check_file(written(planted.lines, file))
    assert [(p.path, p.where.line, p.where.column) for p in found] == [(planted.path, planted.number, planted.column)]


@given(planted=mistakes())
@settings(max_examples=150)
def test_exactly_the_planted_mistake_is_reported(file, planted):
    check(planted, file)


@pytest.mark.soak
@given(planted=mistakes())
@settings(settings.get_profile("random"), max_examples=5000)
def test_exactly_the_planted_mistake_is_reported_of_thousands(file, planted):
    check(planted, file)
