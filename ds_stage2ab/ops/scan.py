"""One pass over the bytes of a rollout: which JSON values of the answer's grammar are complete, and where.

The grammar is strict JSON (RFC 8259, UTF-8) of one document: white space, the opening lexemes, values separated by
commas (each after a numbered key, if the form has keys), the closing lexemes, white space wherever JSON allows it. A
coordinate token stands for a value, or for characters of a string. This file is the meaning of the scan; the compiled
one in `csrc/` gives equal results.

Invariants:
- No byte is looked at twice, and none after the first that cannot continue the grammar.
- A byte is counted by the text of its token; a coordinate token counts as the bytes of `<|coord_k|>`, any
  other added token has no bytes and ends the scan.
- A value is what `json_value` says, with its limits on depth and length.
- A number is complete only when the byte after it continues the grammar: `12` at the end of the ids, or
  before a letter, may be half a number.
- A key is its head and a number below 10^9 without leading zeros, spelled out: no escapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from ds_stage2ab.ops.json_value import DIGITS, WHITESPACE, Fed, Node, ValueScan

MAX_KEY_DIGITS = 9
SPECIAL = -2
"""Kind of an id that is neither text nor a coordinate."""
TEXT = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Grammar:
    """The answer around its values."""

    opening: tuple[bytes, ...]
    # lexemes, white space between them
    closing: tuple[bytes, ...]
    key_head: bytes
    # what a key begins with, its quote included; empty: values have no keys
    quoted: bool
    # a coordinate token stands for characters of a string, not for a value


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What one pass found."""

    values: tuple[Node, ...]
    # the complete values, in generated order
    opening_end: int
    # offset after the opening; -1 if it was not read
    ended: Literal["closed", "refused", "end"]
    # at the outermost close, by a byte or token that cannot continue, or because there is no more
    behind: bool
    # closed, and something follows the close
    starts: tuple[int, ...]
    # [T+1] offset of each token's first byte; the last entry is the number of bytes


class _Document:
    """The answer around the values: opening, keys, commas, closing."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._lexemes = list(grammar.opening)  # still to be read, the first of them perhaps in part
        self._num_read = 0  # bytes of the first of them
        self._step: Callable[[int, int], bool] = self._in_opening
        self._digits = b""  # of the key
        self._value = ValueScan(grammar.quoted)
        self.values: list[Node] = []
        self.opening_end = -1
        self.closed = False

    def feed(self, byte: int, at: int) -> bool:
        """Take one byte at offset `at`; False if it cannot continue the grammar."""
        return self._step(byte, at)

    def coordinate(self, k: int, slot: int, first: int, last: int) -> bool:
        """Take a coordinate token; False if it cannot continue the grammar."""
        if self._may_begin_with_a_coordinate():
            self._begin_value()
        if self._step != self._in_value:
            return False
        return self._progress(self._value.coordinate(k, slot, first, last))

    def _may_begin_with_a_coordinate(self) -> bool:
        if self._grammar.quoted:
            return False
        return self._step == self._value_start or (self._step == self._first_item and not self._grammar.key_head)

    def _begin_value(self) -> None:
        self._value = ValueScan(self._grammar.quoted)
        self._step = self._in_value

    def _in_opening(self, byte: int, at: int) -> bool:
        ok = self._lexeme(byte)
        if not self._lexemes:
            self.opening_end = at + 1
            self._step = self._first_item
        return ok

    def _in_closing(self, byte: int, at: int) -> bool:
        ok = self._lexeme(byte)
        self.closed = not self._lexemes
        return ok

    def _in_key(self, byte: int, at: int) -> bool:
        ok = self._lexeme(byte)
        if not self._lexemes:
            self._digits = b""
            self._step = self._in_number
        return ok

    def _in_number(self, byte: int, at: int) -> bool:
        if byte in DIGITS:
            self._digits += bytes([byte])
            return len(self._digits) <= MAX_KEY_DIGITS and (len(self._digits) == 1 or self._digits[0] != ord("0"))
        self._expect((b'"', b":"), self._behind_number)
        return bool(self._digits) and byte == ord('"') and self._behind_number(byte, at)

    def _behind_number(self, byte: int, at: int) -> bool:
        ok = self._lexeme(byte)
        if not self._lexemes:
            self._step = self._value_start
        return ok

    def _expect(self, lexemes: Sequence[bytes], step: Callable[[int, int], bool]) -> None:
        self._lexemes, self._num_read, self._step = list(lexemes), 0, step

    def _lexeme(self, byte: int) -> bool:
        if byte in WHITESPACE and not self._num_read:
            return True
        if byte != self._lexemes[0][self._num_read]:
            return False
        self._num_read += 1
        if self._num_read == len(self._lexemes[0]):
            self._lexemes.pop(0)
            self._num_read = 0
        return True

    def _first_item(self, byte: int, at: int) -> bool:
        if byte in WHITESPACE:
            return True
        return self._close(byte, at) if byte == self._grammar.closing[0][0] else self._item(byte, at)

    def _item(self, byte: int, at: int) -> bool:
        if not self._grammar.key_head:
            self._step = self._value_start
            return self._value_start(byte, at)
        self._expect((self._grammar.key_head,), self._in_key)
        return self._in_key(byte, at)

    def _value_start(self, byte: int, at: int) -> bool:
        if byte in WHITESPACE:
            return True
        self._begin_value()
        return self._in_value(byte, at)

    def _in_value(self, byte: int, at: int) -> bool:
        fed = self._value.feed(byte, at)
        if fed != "done_before":
            return self._progress(fed)
        if not self._after_item(byte, at):
            return False
        self._keep()
        return True

    def _progress(self, fed: Fed) -> bool:
        if fed == "done":
            self._keep()
            self._step = self._after_item
        return fed != "refused"

    def _keep(self) -> None:
        assert self._value.root is not None
        if self._digits:
            self._value.root.number = int(self._digits)
        self.values.append(self._value.root)

    def _after_item(self, byte: int, at: int) -> bool:
        if byte == ord(","):
            self._step = self._item if self._grammar.key_head else self._value_start
            return True
        if byte in WHITESPACE:
            self._step = self._after_item
            return True
        return self._close(byte, at)

    def _close(self, byte: int, at: int) -> bool:
        self._expect(self._grammar.closing, self._in_closing)
        return self._in_closing(byte, at)


def scan(written: Sequence[bytes], kinds: Sequence[int], grammar: Grammar) -> Scan:
    """Read a response against the grammar.

    Args:
        written: [T] the bytes that each of its tokens counts for, the stop token removed.
        kinds: [T] the bin of a coordinate token, `TEXT`, or `SPECIAL`.

    Returns: the complete values, with offsets into the joined bytes.
    """
    starts = tuple(accumulate(map(len, written), initial=0))
    document = _Document(grammar)
    ended: Literal["closed", "refused", "end"] = "end"
    behind = False
    for slot in range(len(written)):
        num_read = _feed_token(document, written[slot], kinds[slot], slot, starts[slot])
        if document.closed:
            ended = "closed"
            behind = slot + 1 < len(written) or num_read < len(written[slot])
            break
        if num_read < 0:
            ended = "refused"
            break
    return Scan(
        values=tuple(document.values), opening_end=document.opening_end, ended=ended, behind=behind, starts=starts
    )


def _feed_token(document: _Document, piece: bytes, kind: int, slot: int, first: int) -> int:
    """Bytes of the token that were read; -1 if it cannot continue the grammar."""
    if kind >= 0:
        return len(piece) if document.coordinate(kind, slot, first, first + len(piece)) else -1
    if kind == SPECIAL:
        return -1
    for place, byte in enumerate(piece):
        if not document.feed(byte, first + place):
            return -1
        if document.closed:
            return place + 1
    return len(piece)
