"""A resolved config as YAML lines, each with the place that its value came from.

The lines are a config themselves: read again, they are valid and resolve to the same values.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ds_stage2ab.config.document import Document
from ds_stage2ab.config.nodes import plain_value
from ds_stage2ab.config.problems import KeyPath

DEFAULT = "default"
_PLAIN = re.compile(r"[A-Za-z0-9_./](?:[\w./+-]|:(?=[\w/]))*", re.ASCII)
_LONGEST = 48  # columns; longer lines do not count for the alignment of the origins


def origin(path: KeyPath, document: Document) -> str:
    """`file:line`, the argument of the command line, or `default` for a value that was not set."""
    return document.origins[path].value.spot if path in document.origins else DEFAULT


def as_yaml(resolved: dict, document: Document) -> str:
    """Every value of a valid config in the order of the schema, with its origin in a comment."""
    lines = list(_lines(resolved, (), document))
    width = max((len(text) for text, _ in lines if len(text) <= _LONGEST), default=0)
    return "\n".join(f"{text:<{width}}  # {source}" if source else text for text, source in lines)


def origins(resolved: dict, document: Document) -> dict[str, str]:
    """Dotted key -> where its value came from; the keys of a list's entries with their index."""
    found: dict[str, str] = {}
    for path in _leaves(resolved, ()):
        found[".".join(path)] = origin(path, document)
    return found


def flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of a config; lists and empty mappings are values."""
    for key, value in values.items():
        here = f"{path}.{key}" if path else key
        if isinstance(value, Mapping) and value:
            yield from flat(value, here)
        else:
            yield here, value


def _lines(values: dict, path: KeyPath, document: Document) -> Iterator[tuple[str, str]]:
    indent = "  " * len(path)
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:", ""
            yield from _lines(value, here, document)
        elif _holds_mappings(value):
            yield f"{indent}{key}:", origin(here, document)
            for index, entry in enumerate(value):
                yield from _entry_lines(entry, (*here, str(index)), document)
        else:
            yield f"{indent}{key}: {_flow(value)}", origin(here, document)


def _entry_lines(entry: dict, path: KeyPath, document: Document) -> Iterator[tuple[str, str]]:
    """`- key: value` and the other keys of the entry below it."""
    indent = "  " * (len(path) - 1)
    for number, (key, value) in enumerate(entry.items()):
        yield f"{indent}{'- ' if number == 0 else '  '}{key}: {_flow(value)}", origin((*path, key), document)


def _leaves(values: dict, path: KeyPath) -> Iterator[KeyPath]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        elif _holds_mappings(value):
            for index, entry in enumerate(value):
                yield from _leaves(entry, (*path, key, str(index)))
        else:
            yield (*path, key)


def _holds_mappings(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _flow(value: object) -> str:
    """A scalar or a list of scalars in one line of YAML."""
    if isinstance(value, list):
        return f"[{', '.join(_flow(item) for item in value)}]"
    if isinstance(value, str) and not _reads_as_itself(value):
        quoted = json.dumps(value, ensure_ascii=False)
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in quoted)
    assert not isinstance(value, float) or math.isfinite(value), "the schema refuses other numbers"
    return value if isinstance(value, str) else json.dumps(value)


def _reads_as_itself(text: str) -> bool:
    return _PLAIN.fullmatch(text) is not None and plain_value(text) == text
