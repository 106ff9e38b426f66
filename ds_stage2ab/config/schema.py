"""The JSON Schema files: the keys, what they may hold, and their defaults.

Checking and filling are two passes: defaults are filled in only after everything written has been checked.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Set
from functools import cache
from pathlib import Path

from jsonschema import Draft202012Validator, ValidationError
from jsonschema.validators import extend

from ds_stage2ab.config import unknown_keys
from ds_stage2ab.config.document import EXTENDS, Document
from ds_stage2ab.config.nodes import plain_value
from ds_stage2ab.config.problems import KeyPath, Problem, dotted
from ds_stage2ab.errors import EnvironmentFault

ROOT_FILE = "config.schema.json"
UNKNOWN = "is no key of a config"
MISSING = "is required and missing"

_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def _is_whole(_checker: object, value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


# JSON Schema accepts 4.0 as an integer; in a config it is an error, and would arrive as a float.
Validator = extend(Draft202012Validator, type_checker=Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_whole))


def schema_folder() -> Path:
    """The folder of the schema files: inside an installed package, else beside the package in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "schemas", package.parent / "schemas"):
        if (folder / ROOT_FILE).is_file():
            return folder
    raise EnvironmentFault(
        "the schema files are missing from this installation", where=str(package), fix="install the package again"
    )


@cache
def config_schema() -> dict:
    """The whole schema as one tree: each `$ref` to a section's file is replaced by what that file holds."""
    folder = schema_folder()

    def resolved(node: object) -> object:
        if isinstance(node, list):
            return [resolved(item) for item in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return resolved(read_json(folder / node["$ref"]))
        return {key: resolved(value) for key, value in node.items() if key != "$schema"}

    return resolved(read_json(folder / ROOT_FILE))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def leaves(schema: dict, path: KeyPath = ()) -> Iterator[tuple[KeyPath, dict]]:
    """Every key that holds a value (not a section), with its own schema; a list is one value, whatever it holds."""
    for key, child in schema["properties"].items():
        if child.get("type") == "object":
            yield from leaves(child, (*path, key))
        elif (*path, key) != (EXTENDS,):
            yield (*path, key), child


def schema_at(schema: dict, path: KeyPath) -> dict:
    """The schema of a key, or of an entry of a list by its index."""
    for key in path:
        schema = schema["items"] if "items" in schema else schema["properties"][key]
    return schema


def holds(values: object, path: KeyPath) -> bool:
    """Whether a key was written, or an entry of a list by its index."""
    for key in path:
        if isinstance(values, list) and key.isdecimal() and int(key) < len(values):
            values = values[int(key)]
        elif isinstance(values, dict) and key in values:
            values = values[key]
        else:
            return False
    return True


# -- filling ---------------------------------------------------------------------------------------------------------


def with_sections(values: dict, schema: dict) -> dict:
    """A copy in which every section that was left out is an empty one, so that each missing key is named itself."""
    filled = dict(values)
    for key, child in schema["properties"].items():
        if child.get("type") == "object":
            section = filled.get(key, {})
            filled[key] = with_sections(section, child) if isinstance(section, dict) else section
    return filled


def _with_entries(value: object, schema: dict) -> object:
    """A value as it is, or a list of mappings in which each has its defaults."""
    if "items" not in schema or not isinstance(value, list):
        return value
    return [with_defaults(item, schema["items"]) if isinstance(item, dict) else item for item in value]


def with_defaults(values: dict, schema: dict) -> dict:
    """A copy in which every key that was left out has its default; in the order of the schema.

    Keys that have no default and are missing stay missing, so this also serves configs with problems.
    """
    filled = {}
    for key, child in schema["properties"].items():
        if child.get("type") == "object":
            section = values.get(key, {})
            filled[key] = with_defaults(section, child) if isinstance(section, dict) else section
        elif key in values:
            filled[key] = _with_entries(values[key], child)
        elif "default" in child:
            filled[key] = child["default"]
    return filled


# -- checking --------------------------------------------------------------------------------------------------------


def accepts(schema: dict, value: object) -> bool:
    """Whether a key with this schema may have this value."""
    return Validator(schema).is_valid(value)


def accepted(schema: dict) -> str:
    """What a key with this schema takes, in words: "a whole number, at least 1"."""
    if "enum" in schema:
        return _one_of(schema["enum"])
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return ", ".join(filter(None, (" or ".join(_KINDS[kind] for kind in kinds), _range(schema))))


def check_values(values: dict, document: Document, doubtful: Set[KeyPath] = frozenset()) -> list[Problem]:
    """Everything in which the values differ from the schema, at most one problem per key.

    Args:
        values: the merged config without removed keys.
        document: where they were written.
        doubtful: keys that another problem tells the user to set: they are not reported as missing.
    """
    schema = config_schema()
    problems: dict[KeyPath, Problem] = {}
    for path, text in _not_finite(values, document):
        where = document.place_of_value(path)
        problems[path] = Problem(path, f"must be a finite number, got {text}", "write a number", where)
    errors = Validator(schema).iter_errors(with_sections(values, schema))
    # The type first: a value of the wrong type is often out of range too, and that is no second mistake.
    for error in sorted(errors, key=lambda e: e.validator != "type"):
        for problem in _translate(error, document, schema):
            problems.setdefault(problem.path, problem)
    found = list(problems.values())
    meant = {p.path for p in found if p.why == MISSING and _stands_elsewhere(p.path, found, values)}
    return [p for p in found if p.why != MISSING or p.path not in doubtful | meant]


def _stands_elsewhere(path: KeyPath, problems: list[Problem], values: dict) -> bool:
    """Whether a missing key is present under a wrong name or in a wrong place, which is one mistake and not two."""
    unknown = (problem.path for problem in problems if problem.why == UNKNOWN)
    meant = ((wrong, right) for wrong in unknown for right in similar_keys(wrong))
    return any(path[: len(right)] == right and holds(values, (*wrong, *path[len(right) :])) for wrong, right in meant)


def keys_in_doubt(problems: list[Problem]) -> set[KeyPath]:
    """The keys that an unknown one may have been meant for: their values are unknown."""
    return {key for problem in problems if problem.why == UNKNOWN for key in similar_keys(problem.path)}


def _not_finite(values: object, document: Document, path: KeyPath = ()) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(values, float) and not math.isfinite(values):
        yield path, document.text_of(path)
    children = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, child in children:
        yield from _not_finite(child, document, (*path, str(key)))


def _translate(error: ValidationError, document: Document, schema: dict) -> Iterator[Problem]:
    """One error of jsonschema in plain words (an unknown-key error may name several keys)."""
    path = tuple(str(part) for part in error.absolute_path)
    if error.validator == "additionalProperties":
        for key in error.instance:
            if key not in error.schema["properties"]:
                yield _unknown_key((*path, key), document, schema)
    elif error.validator == "required":
        for key in error.validator_value:
            if key not in error.instance:
                yield _missing_key((*path, key), document, schema)
    else:
        why, fix = _wrong_value(error, document.text_of(path))
        yield Problem(path, why, fix, document.place_of_value(path))


def _missing_key(path: KeyPath, document: Document, schema: dict) -> Problem:
    meaning = schema_at(schema, path)["description"].split(". ")[0].rstrip(".")
    return Problem(path, MISSING, f"add it: {meaning}", document.place_of_key(path[:-1]))


def _unknown_key(path: KeyPath, document: Document, schema: dict) -> Problem:
    foreign, found = unknown_keys.row_of(path[-1], foreign_keys()), similar_keys(path)
    if path[-1] == "<<":
        fix = "YAML 1.2 has no merge keys: move what is shared into a file and name it in `extends`"
    elif foreign and found in ([], _ours(foreign)):
        fix = foreign["fix"]
    elif found and "." in path[-1]:
        fix = f"keys are nested, not joined by dots: write `{found[0][-1]}` below `{dotted(found[0][:-1])}`, indented"
    elif found:
        fix = "did you mean " + " or ".join(f"`{dotted(key)}`" for key in found) + "?"
    else:
        siblings = ", ".join(schema_at(schema, path[:-1])["properties"])
        parent = f"`{dotted(path[:-1])}`" if path[:-1] else "the top level"
        fix = f"delete it; the keys of {parent} are {siblings}"
    return Problem(path, UNKNOWN, fix, document.place_of_key(path))


@cache
def foreign_keys() -> tuple[dict, ...]:
    """Keys of other packages, in the order of the file."""
    return tuple(read_json(schema_folder() / "foreign_keys.json")["foreign"])


def _ours(row: dict) -> list[KeyPath]:
    return [tuple(key.split(".")) for key in row["ours"]]


@cache
def similar_keys(path: KeyPath) -> list[KeyPath]:
    """Keys that a user may have meant, best first."""
    schema = config_schema()
    foreign = unknown_keys.row_of(path[-1], foreign_keys())
    siblings = list(schema_at(schema, path[:-1])["properties"])
    ours = _ours(foreign) if foreign else []
    if foreign and not ours:
        return []
    return unknown_keys.similar_keys(path, siblings, _known_keys(), ours)


@cache
def _known_keys() -> tuple[KeyPath, ...]:
    return tuple(_all_keys(config_schema()))


def _all_keys(schema: dict, path: KeyPath = ()) -> Iterator[KeyPath]:
    for key, child in schema.get("properties", {}).items():
        yield (*path, key)
        yield from _all_keys(child, (*path, key))
    if "items" in schema:
        yield from _all_keys(schema["items"], path)


def _wrong_value(error: ValidationError, text: str) -> tuple[str, str]:
    """(what is wrong, what to do) for a value that breaks one keyword of its schema."""
    limit = error.validator_value
    match error.validator:
        case "type":
            return _wrong_type(error, text)
        case "enum":
            return _wrong_choice(error, text)
        case "minimum" | "exclusiveMinimum" | "maximum" | "exclusiveMaximum":
            return f"must be {_LIMITS[error.validator]} {limit}, got {text}", f"write a number {_range(error.schema)}"
        case "minLength":
            return "must not be empty", "write the text, or delete the key if it has a default"
        case "maxLength":
            return f"must have at most {limit} characters, got {len(error.instance)}", "write a shorter text"
        case "pattern":
            seen = "" if "writeOnly" in error.schema else f", got {text}"  # it may be a secret
            return f"{error.schema['patternErrorMessage']}{seen}", "write it in that form"
        case "uniqueItems":
            return f"names an entry twice: {', '.join(map(str, error.instance))}", "name each entry once"
    raise AssertionError(f"the schemas use `{error.validator}`, which has no message here")


def _wrong_type(error: ValidationError, text: str) -> tuple[str, str]:
    allowed = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
    wanted = " or ".join(_KINDS[kind] for kind in allowed)
    seen = _seen(error.instance, text)
    fix = f"write {wanted}"
    if error.instance is None:
        fix = f"write {wanted}, or leave the key out"
    elif isinstance(error.instance, float) and "integer" in allowed and error.instance.is_integer():
        fix = f"write {int(error.instance)}"
    elif isinstance(error.instance, str) and _is_quoted_number(error.instance, allowed):
        fix = f"write {error.instance} without quotes"
    elif "array" in allowed and isinstance(error.instance, str):
        fix = f"write a list: [{text}]"
    elif "array" in allowed and isinstance(error.instance, dict):
        fix = "write a list: begin each entry with `- `"
    elif "object" in allowed and isinstance(error.instance, str) and ":" in error.instance:
        fix = f"put a blank behind the colon: `{error.instance.replace(':', ': ', 1)}`"
    elif "object" in allowed:
        fix = "write its keys below it, indented: `key: value`"
    return f"must be {wanted}, got {seen}", fix


def _is_quoted_number(text: str, allowed: list[str]) -> bool:
    value = plain_value(text)
    kinds = [kind for name, kind in (("integer", int), ("number", int | float)) if name in allowed]
    return not isinstance(value, bool) and any(isinstance(value, kind) for kind in kinds)


def _wrong_choice(error: ValidationError, text: str) -> tuple[str, str]:
    allowed = _one_of(error.validator_value)
    near = difflib.get_close_matches(str(error.instance), map(str, filter(None, error.validator_value)), n=1)
    return f"must be {allowed}, got {text}", f"did you mean {near[0]}?" if near else f"write {allowed}"


def _one_of(choices: list) -> str:
    words = ["null" if choice is None else str(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"one of {', '.join(words)}"


def _range(schema: dict) -> str:
    """`at least 0 and below 1`."""
    return " and ".join(f"{words} {schema[keyword]}" for keyword, words in _LIMITS.items() if keyword in schema)


def _seen(value: object, text: str) -> str:
    """A value of the wrong type as the user wrote it, with what it is taken for."""
    if value is None:
        return "null"
    if isinstance(value, dict | list):
        return text
    kind = "text" if isinstance(value, str) else "truth value" if isinstance(value, bool) else "number"
    return f"the {kind} {text}"
