"""Keys of earlier configs: each is refused with its replacement, and with the new value where it follows from the old.

Which keys these are, and what replaces them, is data: `schemas/removed_keys.json`.
"""

from __future__ import annotations

import json
import math
from fractions import Fraction
from functools import cache

from ds_stage2ab.config.document import Document
from ds_stage2ab.config.nodes import plain_value
from ds_stage2ab.config.problems import KeyPath, Problem, value_at
from ds_stage2ab.config.schema import accepted, accepts, config_schema, holds, read_json, schema_at, schema_folder

VALUE = "{value}"  # in a remedy: the value of the new key
SHARE_DIGITS = 6  # of a ratio that is no finite decimal
_SEPARATORS = str.maketrans("", "", " ,-_|/")


@cache
def removed_keys() -> tuple[dict, ...]:
    """The rows of the table, in the order of the file."""
    return tuple(read_json(schema_folder() / "removed_keys.json")["removed"])


def without_removed_keys(document: Document) -> tuple[dict, list[Problem], set[KeyPath]]:
    """(values without removed keys, one problem for each removed key, the keys that replace them)."""
    values, problems, asked_for = document.values, [], set()
    for row in removed_keys():
        path = tuple(row["key"].split("."))
        if not holds(values, path) or ("value" in row and value_at(values, path) != row["value"]):
            continue
        problems.append(
            Problem(path, row["why"], _remedy(row, value_at(values, path), document), document.place_of_key(path))
        )
        values = _without(values, path)
        if "replaced_by" in row:
            asked_for.add(tuple(row["replaced_by"].split(".")))
    return values, problems, asked_for


def _remedy(row: dict, old: object, document: Document) -> str:
    """The remedy for a removed key, given its value and what the config holds for its replacement."""
    if VALUE not in row["fix"]:
        return row["fix"]
    name = row["replaced_by"]
    path = tuple(name.split("."))
    schema = schema_at(config_schema(), path)
    new, note = _share_of_b(old) if "is_pattern" in row else (_unquoted(old, schema), "")
    usable = accepts(schema, new) and not (isinstance(new, float) and not math.isfinite(new))
    if holds(document.values, path):
        return _beside(name, value_at(document.values, path), new if usable else None, document.place_of_key(path).spot)
    if not usable:
        return f"set `{name}` ({accepted(schema)}) and delete this key"
    return row["fix"].replace(VALUE, json.dumps(new)) + note


def _beside(name: str, written: object, new: object, spot: str) -> str:
    """The remedy where the new key is set already."""
    if new == written:
        return f"delete this key: `{name}` says the same already ({spot})"
    here = "" if new is None else f" ({json.dumps(new)} here)"
    return f"delete this key: `{name}` is set to {json.dumps(written)} already ({spot}); put there what you mean{here}"


def _unquoted(value: object, schema: dict) -> object:
    """A number in quotes as the number, where the new key takes no text."""
    return plain_value(value) if isinstance(value, str) and not accepts(schema, value) else value


def _share_of_b(pattern: object) -> tuple[float | int | None, str]:
    """The share of B in [A, A, B] or "AAB", and a note if it had to be rounded; None if it is not a pattern."""
    letters = "".join(map(str, pattern)) if isinstance(pattern, list) else str(pattern)
    letters = letters.translate(_SEPARATORS).upper()
    if not letters or set(letters) - {"A", "B"}:
        return None, ""
    exact = Fraction(letters.count("B"), len(letters))
    rounded = round(float(exact), SHARE_DIGITS)
    if Fraction(str(rounded)) == exact:
        return int(rounded) if rounded.is_integer() else rounded, ""
    return rounded, f" (rounded: {exact.numerator} of {exact.denominator} steps train Channel B)"


def _without(values: dict, path: KeyPath) -> dict:
    """A copy without a key, and without the mappings above it that become empty."""
    rest = {key: value for key, value in values.items() if key != path[0]}
    if len(path) == 1:
        return rest
    inner = _without(values[path[0]], path[1:])
    return {key: inner if key == path[0] else value for key, value in values.items()} if inner else rest
