"""A pushdown automaton for one JSON value (RFC 8259, UTF-8), fed byte by byte.

Invariants:
- No byte is looked at twice; what was refused ends the value.
- A complete value has depth <= 8 (a scalar has 0, `[]` has 1) and <= 4,096 bytes; a byte that would exceed a
  limit is refused.
- A number at the top is complete only when a byte comes that cannot belong to it.
- A string holds valid UTF-8 alone and no control characters.
- A coordinate token stands for a value, or (`quoted`) for characters of a string, never for both; a string of one
  coordinate token and nothing else knows its place and its bin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

MAX_DEPTH = 8
MAX_VALUE_BYTES = 4_096

WHITESPACE = b" \t\n\r"
DIGITS = b"0123456789"
LITERALS = {ord("t"): b"true", ord("f"): b"false", ord("n"): b"null"}
NUMBER_STEPS: dict[str, dict[str, str]] = {
    # state -> class of the next byte (1-9 are "9", e and E are "e", + and - are "+") -> state
    "minus": {"0": "zero", "9": "integer"},
    "zero": {".": "point", "e": "exponent"},
    "integer": {"0": "integer", "9": "integer", ".": "point", "e": "exponent"},
    "point": {"0": "fraction", "9": "fraction"},
    "fraction": {"0": "fraction", "9": "fraction", "e": "exponent"},
    "exponent": {"0": "power", "9": "power", "+": "sign"},
    "sign": {"0": "power", "9": "power"},
    "power": {"0": "power", "9": "power"},
}
NUMBER_ENDS = ("zero", "integer", "fraction", "power")
BYTE_CLASS = {**dict.fromkeys(b"123456789", "9"), **dict.fromkeys(b"eE", "e"), **dict.fromkeys(b"+-", "+")}
BYTE_CLASS |= {ord("0"): "0", ord("."): "."}

Kind = Literal["object", "array", "string", "number", "literal", "coordinate"]
Fed = Literal["taken", "done", "done_before", "refused"]
"""What a value makes of a byte: goes on, is complete with it, was complete before it, cannot take it."""


@dataclass(slots=True)
class Node:
    """A JSON value, or the key of one. Of an object, `keys[i]` (a string) belongs to `children[i]`."""

    kind: Kind
    first: int
    # offset of its first byte
    last: int = -1
    # offset after its last byte; -1 while it is incomplete
    slot: int = -1
    # of a coordinate, and of a string that is one: its place among the ids
    number: int = -1
    # of a coordinate, and of a string that is one: its bin; of a value whose key has a number: that number
    keys: list[Node] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


class ValueScan:
    """Reads one value; `root` is its node from the first byte on.

    Args:
        quoted: a coordinate token stands for characters of a string, not for a value.
    """

    def __init__(self, quoted: bool) -> None:
        self._quoted = quoted
        self._step: Callable[[int, int], Fed] = self._begin
        self._open: list[Node] = []  # the containers around the current place
        self._scalar = Node("literal", -1)  # the string, number or literal being read
        self._rest = b""  # of a literal
        self._number = ""  # state of NUMBER_STEPS
        self._num_hex = 0  # hexadecimal digits still to come in an escape
        self._utf8: list[range] = []  # what the next bytes of a character must be
        self._coordinate_end = -1  # offset after the coordinate that a string began with
        self.root: Node | None = None

    def feed(self, byte: int, at: int) -> Fed:
        """Take one byte at offset `at`."""
        fed = self._step(byte, at)
        return "refused" if fed in ("taken", "done") and self._too_long(at + 1) else fed

    def coordinate(self, k: int, slot: int, first: int, last: int) -> Fed:
        """Take a coordinate token: a value, or characters of a string."""
        if self._quoted:
            fed = self._coordinate_in_string(k, slot, first, last)
        elif self._step in (self._begin, self._first_element):
            fed = self._complete(self._attach(Node("coordinate", first, slot=slot, number=k)), last)
        else:
            return "refused"
        return "refused" if fed == "refused" or self._too_long(last) else fed

    def _coordinate_in_string(self, k: int, slot: int, first: int, last: int) -> Fed:
        if self._step != self._in_string or self._utf8:
            return "refused"
        if first == self._scalar.first + 1:
            self._scalar.slot, self._scalar.number, self._coordinate_end = slot, k, last
        return "taken"

    def _too_long(self, last: int) -> bool:
        assert self.root is not None
        return last - self.root.first > MAX_VALUE_BYTES

    def _attach(self, node: Node) -> Node:
        if not self._open:
            self.root = node
        elif self._expects_key():
            self._open[-1].keys.append(node)
        else:
            self._open[-1].children.append(node)
        return node

    def _expects_key(self) -> bool:
        around = self._open[-1]
        return around.kind == "object" and len(around.keys) == len(around.children)

    def _complete(self, node: Node, last: int) -> Fed:
        node.last = last
        if not self._open:
            return "done"
        around = self._open[-1]
        is_key = around.kind == "object" and len(around.keys) > len(around.children)
        self._step = self._colon if is_key else self._after
        return "taken"

    def _begin(self, byte: int, at: int) -> Fed:
        if byte in WHITESPACE and self._open:
            return "taken"
        if byte in b"{[":
            return self._begin_container(byte, at)
        if byte == ord('"'):
            return self._begin_string(at)
        if byte == ord("-") or byte in DIGITS:
            self._scalar = self._attach(Node("number", at))
            self._number = "minus" if byte == ord("-") else NUMBER_STEPS["minus"][BYTE_CLASS[byte]]
            self._step = self._in_number
            return "taken"
        if byte in LITERALS:
            self._scalar = self._attach(Node("literal", at))
            self._rest = LITERALS[byte][1:]
            self._step = self._in_literal
            return "taken"
        return "refused"

    def _begin_container(self, byte: int, at: int) -> Fed:
        if len(self._open) == MAX_DEPTH:
            return "refused"
        is_object = byte == ord("{")
        self._open.append(self._attach(Node("object" if is_object else "array", at)))
        self._step = self._first_key if is_object else self._first_element
        return "taken"

    def _begin_string(self, at: int) -> Fed:
        self._scalar = self._attach(Node("string", at))
        self._step = self._in_string
        return "taken"

    def _first_element(self, byte: int, at: int) -> Fed:
        if byte in WHITESPACE:
            return "taken"
        return self._close(at) if byte == ord("]") else self._begin(byte, at)

    def _first_key(self, byte: int, at: int) -> Fed:
        return self._close(at) if byte == ord("}") else self._key(byte, at)

    def _key(self, byte: int, at: int) -> Fed:
        if byte in WHITESPACE:
            return "taken"
        return self._begin_string(at) if byte == ord('"') else "refused"

    def _colon(self, byte: int, at: int) -> Fed:
        if byte == ord(":"):
            self._step = self._begin
            return "taken"
        return "taken" if byte in WHITESPACE else "refused"

    def _after(self, byte: int, at: int) -> Fed:
        is_object = self._open[-1].kind == "object"
        if byte in WHITESPACE:
            return "taken"
        if byte == ord(","):
            self._step = self._key if is_object else self._begin
            return "taken"
        return self._close(at) if byte == ord("}" if is_object else "]") else "refused"

    def _close(self, at: int) -> Fed:
        return self._complete(self._open.pop(), at + 1)

    def _in_string(self, byte: int, at: int) -> Fed:
        if self._utf8:
            return "taken" if byte in self._utf8.pop(0) else "refused"
        if byte == ord('"'):
            return self._end_string(at)
        if byte == ord("\\"):
            self._step = self._in_escape
        elif byte >= 0x80:
            self._utf8 = continuation(byte)
            return "taken" if self._utf8 else "refused"
        return "taken" if byte >= 0x20 else "refused"

    def _end_string(self, at: int) -> Fed:
        if at != self._coordinate_end:
            self._scalar.slot = self._scalar.number = -1
        return self._complete(self._scalar, at + 1)

    def _in_escape(self, byte: int, at: int) -> Fed:
        if byte == ord("u"):
            self._num_hex = 4
            self._step = self._in_hex
            return "taken"
        self._step = self._in_string
        return "taken" if byte in b'"\\/bfnrt' else "refused"

    def _in_hex(self, byte: int, at: int) -> Fed:
        self._num_hex -= 1
        if self._num_hex == 0:
            self._step = self._in_string
        return "taken" if byte in b"0123456789abcdefABCDEF" else "refused"

    def _in_number(self, byte: int, at: int) -> Fed:
        state = NUMBER_STEPS[self._number].get(BYTE_CLASS.get(byte, ""), "")
        if state:
            self._number = state
            return "taken"
        if self._number not in NUMBER_ENDS:
            return "refused"
        if self._complete(self._scalar, at) == "done":
            return "done_before"
        return self._step(byte, at)

    def _in_literal(self, byte: int, at: int) -> Fed:
        if byte != self._rest[0]:
            return "refused"
        self._rest = self._rest[1:]
        return "taken" if self._rest else self._complete(self._scalar, at + 1)


def continuation(lead: int) -> list[range]:
    """What must follow the lead byte of a UTF-8 character; [] if it can lead none (Unicode, table 3-7)."""
    anything = range(0x80, 0xC0)
    if 0xC2 <= lead <= 0xDF:
        return [anything]
    if 0xE0 <= lead <= 0xEF:
        second = {0xE0: range(0xA0, 0xC0), 0xED: range(0x80, 0xA0)}
        return [second.get(lead, anything), anything]
    if 0xF0 <= lead <= 0xF4:
        second = {0xF0: range(0x90, 0xC0), 0xF4: range(0x80, 0x90)}
        return [second.get(lead, anything), anything, anything]
    return []
