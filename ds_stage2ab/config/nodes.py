"""YAML 1.2 text -> a tree of nodes that know their places.

Read from the event stream, so that depth and size are limited before anything is built, and by the rules
of YAML's core schema: `1e-4` is a number, `yes` is text, `010` is ten. Explicit tags are refused.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.reader import ReaderError

from ds_stage2ab.config.problems import Place, Problem

MAX_DEPTH = 64  # the schema is 5 deep
MAX_NODES = 20_000  # after aliases are written out; a config has a few hundred

_TOO_DEEP = f"values are nested more than {MAX_DEPTH} deep"
_DEEP_FIX = "no key of a config lies deeper than 5"
_BYTE_ORDER_MARK = "\ufeff"
_MARK_FIX = "delete the character: save the file as UTF-8 without a byte order mark, or type the line again"
_ESCAPE_FIX = "write the character itself in the place of its escape, or leave it out"
_SYNTAX_FIX = "correct the syntax here or just above; indent with spaces and keep keys of one mapping in one column"

Scalar = str | int | float | bool | None
PlaceAt = Callable[[int, int], Place]
"""(line, column), both counted from 1 -> the place there."""

_NO_CHARACTER = re.compile("[\0\ud800-\udfff]")
"""What only an escape can write: no name of a file may hold NUL, and no file half of a surrogate pair."""
_INTEGER = re.compile(r"[-+]?[0-9]{1,300}")
_BASED = re.compile(r"0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value in (True, False) for word in (str(value), str(value).lower(), str(value).upper())
}


@dataclass(frozen=True, slots=True)
class Node:
    """A scalar, a list or a mapping; exactly one of `items` and `entries` is set unless it is a scalar."""

    place: Place
    text: str
    # a scalar as it was written; "a list" or "a mapping" for the others
    scalar: Scalar = None
    items: tuple[Node, ...] | None = None
    entries: dict[str, Entry] | None = None
    size: int = 1
    # nodes below and including this one, aliases written out
    depth: int = 0
    # lists and mappings on the longest way down, this one included


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value` of a mapping."""

    key_place: Place
    value: Node


class Unreadable(Exception):
    """The text is no YAML that can be read further; holds the one problem that says why."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.why)
        self.problem = problem


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not been read yet."""

    place: Place
    is_mapping: bool
    anchor: str | None
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    key: str | None = None
    key_place: Place | None = None

    def close(self) -> Node:
        children = [entry.value for entry in self.entries.values()] if self.is_mapping else self.items
        size = 1 + sum(child.size for child in children)
        depth = 1 + max((child.depth for child in children), default=0)
        if self.is_mapping:
            return Node(self.place, "a mapping", entries=self.entries, size=size, depth=depth)
        return Node(self.place, "a list", items=tuple(self.items), size=size, depth=depth)


def parse_yaml(text: str, file: str) -> tuple[Node, list[Problem]]:
    """The root node of a YAML text, and the problems that do not keep it from being read (duplicate keys).

    Args:
        text: the whole file.
        file: its name, for places.

    Raises:
        Unreadable: a syntax error, a tag, an unknown alias, more than one document, or a limit exceeded.
    """
    builder = _Builder(partial(Place, file))
    _build(builder, text, _SYNTAX_FIX)
    root = builder.root or Node(Place(file, 1, 1), "nothing")
    return root, builder.problems


def parse_value(text: str, at: PlaceAt, fix: str) -> Node:
    """A scalar, or a list or mapping in brackets, that is alone in one line.

    Args:
        text: the line. Blanks before the value are counted in its columns.
        at: makes the places.
        fix: what to do about a value of another form.

    Raises:
        Unreadable: as for a file; also no value, a second line, a comment, a key given twice, or a form that needs
            lines of its own (`- a`, `a: b`, `|`).
    """
    value = at(1, len(text) - len(text.lstrip(" ")) + 1)
    if len(text.splitlines()) > 1:
        raise Unreadable(Problem((), "has more than one line", fix, value))
    builder = _Builder(at)
    try:
        _build(builder, text, fix)
    except Unreadable as error:
        if builder.root is None:
            raise
        raise Unreadable(Problem((), "more text stands behind the value", fix, error.problem.where)) from error
    first, node = builder.first, builder.root
    if node is None or node.text == "":
        raise Unreadable(Problem((), "has no value", "write null for no value, or '\"\"' for an empty text", value))
    if isinstance(first, ScalarEvent) and first.style in ("|", ">"):
        raise Unreadable(Problem((), f"`{first.style}` begins a text of several lines", fix, value))
    if isinstance(first, SequenceStartEvent | MappingStartEvent) and not first.flow_style:
        form = "a list in lines" if node.items is not None else "a line `key: value`"
        raise Unreadable(Problem((), f"reads as {form}, which only a file can hold", fix, value))
    if text[builder.end :].strip():
        raise Unreadable(Problem((), "a comment stands behind the value", fix, at(1, text.index("#", builder.end) + 1)))
    if builder.problems:
        raise Unreadable(builder.problems[0])
    return node


def _build(builder: _Builder, text: str, fix: str) -> None:
    """Hand the events of a text to a builder; `fix` is what to do about a syntax error."""
    mark = text.find(_BYTE_ORDER_MARK)
    if mark >= 0:  # the parser leaves it out when it counts columns, and no editor shows it
        why = f"{'begins with' if mark == 0 else 'holds'} a byte order mark (U+FEFF)"
        raise Unreadable(Problem((), why, _MARK_FIX, _place_at(text, mark, builder.at)))
    try:
        for event in YAML(typ="safe", pure=True).parse(io.StringIO(text)):
            builder.take(event)
    except ReaderError as error:
        raise Unreadable(_control_character(error, text, builder.at)) from error
    except MarkedYAMLError as error:
        raise Unreadable(_syntax(error, text, builder.at, fix)) from error
    except YAMLError as error:
        raise Unreadable(Problem((), f"is not YAML: {error}", fix, builder.at(1, 1))) from error


class _Builder:
    """Takes parser events one by one; holds what is open on a stack instead of recursing."""

    def __init__(self, at: PlaceAt) -> None:
        self.at = at
        self.root: Node | None = None
        self.first: Event | None = None
        # of the root
        self.end = 0
        # the column, from 0, after the last event with content
        self.problems: list[Problem] = []
        self._open: list[_Open] = []
        self._anchors: dict[str, Node] = {}

    def take(self, event: Event) -> None:
        place = self.at(event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, NodeEvent | CollectionEndEvent):
            self.first, self.end = self.first or event, event.end_mark.column
        if isinstance(event, DocumentStartEvent) and self.root is not None:
            self._refuse(place, "a second document begins here", "keep one document per file: delete the `---`")
        tag = getattr(event, "tag", None)
        if tag is not None:
            shown = str(tag).replace("tag:yaml.org,2002:", "!!")
            self._refuse(place, f"the tag {shown} is not allowed", "delete the tag and write the plain value")
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            self._start(event, place)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            done = self._open.pop()
            self._place_node(done.close(), done.anchor)
        elif isinstance(event, ScalarEvent):
            self._scalar(event, place)
        elif isinstance(event, AliasEvent):
            self._alias(event.anchor, place)

    def _start(self, event: Event, place: Place) -> None:
        if len(self._open) >= MAX_DEPTH:
            self._refuse(place, _TOO_DEEP, _DEEP_FIX)
        if self._expects_key():
            self._refuse(place, "a key must be a single word, not a list or mapping", "write `key: value`")
        self._open.append(_Open(place, isinstance(event, MappingStartEvent), event.anchor))

    def _scalar(self, event: Event, place: Place) -> None:
        if wrong := _NO_CHARACTER.search(event.value):
            self._refuse(place, f"holds U+{ord(wrong[0]):04X}, which is no character of a text", _ESCAPE_FIX)
        if self._expects_key():
            self._open[-1].key, self._open[-1].key_place = event.value, place
            return
        plain = event.implicit[0]
        if plain and not event.value and self._open and self._open[-1].is_mapping:
            place = self._open[-1].key_place  # an empty value has no place of its own
        value = plain_value(event.value) if plain else event.value
        shown = event.value if plain else f'"{event.value}"'
        self._place_node(Node(place, shown, scalar=value), event.anchor)

    def _alias(self, anchor: str, place: Place) -> None:
        if self._expects_key():
            self._refuse(place, "a key must be a single word, not an alias", "write the key itself")
        if anchor not in self._anchors:
            self._refuse(place, f"no anchor &{anchor} ends before this alias", "define it above, or write the value")
        node = self._anchors[anchor]
        if len(self._open) + node.depth > MAX_DEPTH:
            self._refuse(place, _TOO_DEEP, _DEEP_FIX)
        self._place_node(node, None)

    def _place_node(self, node: Node, anchor: str | None) -> None:
        if node.size > MAX_NODES:
            self._refuse(node.place, f"holds more than {MAX_NODES} values", "a config holds a few hundred")
        if anchor is not None:
            self._anchors[anchor] = node
        if not self._open:
            self.root = node
            return
        parent = self._open[-1]
        if not parent.is_mapping:
            parent.items.append(node)
            return
        self._add_entry(parent, node)
        parent.key = parent.key_place = None

    def _add_entry(self, parent: _Open, node: Node) -> None:
        assert parent.key is not None and parent.key_place is not None, "a value follows its key"
        first = parent.entries.get(parent.key)
        if first is None:
            parent.entries[parent.key] = Entry(parent.key_place, node)
            return
        path = (*(part.key for part in self._open[:-1] if part.key is not None), parent.key)
        why = f"is given twice in the same mapping, first in {first.key_place.within}"
        self.problems.append(Problem(path, why, "keep one of the two", parent.key_place))

    def _expects_key(self) -> bool:
        return bool(self._open) and self._open[-1].is_mapping and self._open[-1].key is None

    def _refuse(self, place: Place, why: str, fix: str) -> None:
        raise Unreadable(Problem((), why, fix, place))


def plain_value(text: str) -> Scalar:
    """An unquoted scalar by YAML 1.2's core schema."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


def _syntax(error: MarkedYAMLError, text: str, at: PlaceAt, fix: str) -> Problem:
    lines = text.splitlines()
    mark = error.problem_mark or error.context_mark
    if error.context_mark and mark.line >= len(lines):
        mark = error.context_mark  # what was never closed, rather than the end of the file
    place = at(mark.line + 1, mark.column + 1) if mark else at(1, 1)
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if "\t" in line[: place.column]:
        return Problem((), "a tab stands where YAML wants spaces", "indent with spaces", place)
    start = error.context_mark and at(error.context_mark.line + 1, error.context_mark.column + 1)
    began = f" that began in {start.within}" if start else ""
    reading = f" ({error.context}{began})" if error.context else ""
    return Problem((), f"is not YAML: {error.problem}{reading}", fix, place)


def _control_character(error: ReaderError, text: str, at: PlaceAt) -> Problem:
    why = f"holds the control character U+{ord(text[error.position]):04X}, which YAML does not allow"
    return Problem((), why, "delete the character", _place_at(text, error.position, at))


def _place_at(text: str, position: int, at: PlaceAt) -> Place:
    before = text[:position]
    return at(before.count("\n") + 1, position - (before.rfind("\n") + 1) + 1)
