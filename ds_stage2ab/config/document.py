"""A YAML file, its bases and the command line -> one tree of plain values, each with its place.

Bases merge from left to right, the file itself wins over them, and the command line over the file; mappings
merge key by key, lists and scalars replace. Which keys exist is known to `schema` alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from ds_stage2ab.config.nodes import Entry, Node, Unreadable, parse_yaml
from ds_stage2ab.config.problems import KeyPath, Place, Problem, UnreadableFile

EXTENDS = "extends"
MAX_BYTES = 256 * 1024  # a config is a few kilobytes; the parser takes about 3 s per megabyte
_EXTENDS_FIX = "give the path of a YAML file, or a list of paths, relative to this file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a value of the merged tree was written."""

    key: Place
    # of the key itself
    value: Place
    text: str
    # the value as it was written; "a list" or "a mapping" if it is no scalar


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A merged config before any check of its keys."""

    values: dict
    # plain dicts, lists and scalars; without `extends`
    origins: dict[KeyPath, Origin]
    # every key of `values`; entries of lists by their index
    sources: dict[str, str]
    # the text of every file that was read
    problems: tuple[Problem, ...]
    complete: bool
    # False: some text could not be read, so a missing key is no problem

    def place_of_key(self, path: KeyPath) -> Place:
        """The place of a key, or of the nearest mapping above it that was written."""
        return self.origins[self._nearest(path)].key

    def place_of_value(self, path: KeyPath) -> Place:
        return self.origins[self._nearest(path)].value

    def text_of(self, path: KeyPath) -> str:
        return self.origins[path].text

    def _nearest(self, path: KeyPath) -> KeyPath:
        while path not in self.origins:
            path = path[:-1]
        return path


def read_document(path: Path, overrides: Node | None = None) -> Document:
    """Read a config file with everything that it extends.

    Args:
        path: the YAML file.
        overrides: a mapping from the command line (`overrides.read_overrides`), merged over the file.

    Raises:
        UnreadableFile: the file itself (not a base of it) cannot be opened or decoded.
    """
    loader = _Loader()
    root = loader.load(str(path), chain=())
    if overrides is not None:
        root = merge(root, overrides, sections_stay=True)
    values: dict = {}
    origins: dict[KeyPath, Origin] = {(): Origin(key=root.place, value=root.place, text=root.text)}
    for key, entry in (root.entries or {}).items():
        values[key] = _plain(entry.value)
        _note_origins((key,), entry.key_place, entry.value, origins)
    return Document(
        values=values,
        origins=origins,
        sources=loader.sources,
        problems=tuple(loader.problems),
        complete=loader.complete,
    )


class _Loader:
    """Reads each file once, however many paths lead to it (a diamond is legal, a cycle is not)."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.complete = True
        self.sources: dict[str, str] = {}
        self._merged: dict[str, Node] = {}

    def load(self, file: str, chain: tuple[str, ...]) -> Node:
        """The file's mapping merged over those of its bases; an empty one after a problem."""
        identity = os.path.realpath(file)
        if identity not in self._merged:
            self._merged[identity] = self._load_new(file, (*chain, identity))
        return self._merged[identity]

    def _load_new(self, file: str, chain: tuple[str, ...]) -> Node:
        nothing = Node(Place(file, 1, 1), "nothing", entries={})
        try:
            self.sources[file] = read_text(file)
            own, problems = parse_yaml(self.sources[file], file)
        except Unreadable as error:
            self._give_up(error.problem)
            return nothing
        self.problems.extend(problems)
        if own.entries is None:
            self._give_up(_not_a_mapping(own))
            return nothing
        merged = nothing
        for base in self._bases(own.entries.get(EXTENDS), file, chain):
            merged = merge(merged, self.load(base, chain))
        entries = {key: entry for key, entry in own.entries.items() if key != EXTENDS}
        return merge(merged, Node(own.place, own.text, entries=entries, size=own.size))

    def _bases(self, extends: Entry | None, file: str, chain: tuple[str, ...]) -> list[str]:
        if extends is None:
            return []
        named = extends.value.items if extends.value.items is not None else (extends.value,)
        bases = []
        for node in named:
            if not isinstance(node.scalar, str) or not node.scalar:
                self._give_up(Problem((EXTENDS,), f"must name files, got {node.text}", _EXTENDS_FIX, node.place))
                continue
            base = os.path.normpath(os.path.join(os.path.dirname(file), node.scalar))
            problem = _refused_base(base, node.place, chain)
            if problem is None:
                bases.append(base)
            else:
                self._give_up(problem)
        return bases

    def _give_up(self, problem: Problem) -> None:
        self.problems.append(problem)
        self.complete = False


def _refused_base(base: str, place: Place, chain: tuple[str, ...]) -> Problem | None:
    identity = os.path.realpath(base)
    if identity in chain:
        loop = " -> ".join(os.path.basename(name) for name in (*chain[chain.index(identity) :], identity))
        return Problem((EXTENDS,), f"leads back to a file that is being read: {loop}", "delete one link", place)
    try:
        read_text(base)
    except UnreadableFile as error:
        return Problem((EXTENDS,), f"{base} {error.why}", _EXTENDS_FIX, place)
    except Unreadable as error:
        return replace(error.problem, path=(EXTENDS,), why=f"{base} {error.problem.why}", where=place)
    return None


def read_text(file: str) -> str:
    """The text of a config file.

    Raises:
        UnreadableFile: it cannot be opened, or is not UTF-8.
        Unreadable: it is too large.
    """
    try:
        if not Path(file).is_file():
            seen = "is a folder" if Path(file).is_dir() else "is no file" if Path(file).exists() else "does not exist"
            raise UnreadableFile(seen, where=file, fix="name a YAML file")
        with open(file, "rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise UnreadableFile(f"cannot be opened: {error.strerror}", where=file, fix="name a readable file") from error
    if len(data) > MAX_BYTES:
        why = f"is larger than {MAX_BYTES} bytes"
        raise Unreadable(Problem((), why, "name a config file, not data", Place(file, 1, 1)))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        why = f"is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
        raise UnreadableFile(why, where=file, fix="save the file as UTF-8") from error


def merge(base: Node, over: Node, *, sections_stay: bool = False) -> Node:
    """`over` wins; only two mappings merge, key by key.

    Args:
        base: what `over` is merged over.
        over: the later layer.
        sections_stay: a mapping of both keeps its place in `base`: a key that is missing from a section of the file is
            reported there, even if the command line adds to that section.
    """
    if base.entries is None or over.entries is None:
        return over
    entries = dict(base.entries)
    for key, entry in over.entries.items():
        below = entries.get(key)
        if below is None:
            entries[key] = entry
            continue
        is_section = below.value.entries is not None and entry.value.entries is not None
        key_place = below.key_place if sections_stay and is_section else entry.key_place
        entries[key] = Entry(key_place, merge(below.value, entry.value, sections_stay=sections_stay))
    upper = base if sections_stay else over
    return Node(upper.place, upper.text, entries=entries)


def _not_a_mapping(root: Node) -> Problem:
    if root.text == "nothing":
        seen = "is empty"
    else:
        shown = root.text if root.items is not None else f"the single value {root.text}"
        seen = f"holds {shown} where `key: value` lines are expected"
    return Problem((), seen, "write the config as `key: value` lines, beginning with a section", root.place)


def _plain(node: Node) -> object:
    if node.entries is not None:
        return {key: _plain(entry.value) for key, entry in node.entries.items()}
    if node.items is not None:
        return [_plain(item) for item in node.items]
    return node.scalar


def _note_origins(path: KeyPath, key: Place, node: Node, origins: dict[KeyPath, Origin]) -> None:
    origins[path] = Origin(key=key, value=node.place, text=node.text)
    for name, entry in (node.entries or {}).items():
        _note_origins((*path, name), entry.key_place, entry.value, origins)
    for index, item in enumerate(node.items or ()):
        _note_origins((*path, str(index)), item.place, item, origins)
