"""One pass over the bytes of a rollout of lines: which boxes of the compact form are complete, and where.

A line is a description, then coordinate tokens; every four of them (five where each box has a score) are a value of
that description, and each line has one at least. Lines are separated by one newline, and nothing closes the answer: it
may end behind any complete value, or before anything was written. This file is the meaning of the scan; the compiled
one in `csrc/` gives equal results.

Invariants:
- No byte is looked at twice, and none after the first that cannot continue the grammar.
- A byte is counted by the text of its token, as in `ds_stage2ab/ops/scan.py`; an added token that is no coordinate ends
  the scan.
- A description is valid UTF-8 without a newline, of at most 4,096 bytes; it may be empty before a coordinate, and no
  text follows a coordinate on its line.
- A value is complete with its last coordinate, and a newline follows a complete value alone.
- A value begins with its line if it is the first of it, else with its first coordinate. In it are the line's
  description, a string without quotes, and its coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from ds_stage2ab.ops.json_value import MAX_VALUE_BYTES, Node, continuation
from ds_stage2ab.ops.scan import SPECIAL, Scan

NEWLINE = ord("\n")
CONTINUES = 0x80  # a byte from here on belongs to a character of several


class _Lines:
    """The line that is being read, and the complete values."""

    def __init__(self, num_coordinates: int) -> None:
        self.num_coordinates = num_coordinates
        self.values: list[Node] = []
        self._utf8: list[range] = []  # what the next bytes of a character must be
        self._begin(0)

    @property
    def may_end(self) -> bool:
        """Whether nothing was written, or the last thing was the last coordinate of a value."""
        return self._after_box or (self._last == 0 and not self._corners)

    def feed(self, byte: int, at: int) -> bool:
        """Take one byte at offset `at`; False if it cannot continue the grammar."""
        if self._utf8:
            self._last = at + 1
            return byte in self._utf8.pop(0) and self._last - self._first <= MAX_VALUE_BYTES
        if byte == NEWLINE and self._after_box:
            self._begin(at + 1)
            return True
        if byte == NEWLINE or self._corners or self._after_box:
            return False
        if byte >= CONTINUES:
            self._utf8 = continuation(byte)
            if not self._utf8:
                return False
        self._last = at + 1
        return self._last - self._first <= MAX_VALUE_BYTES

    def coordinate(self, k: int, slot: int, first: int, last: int) -> bool:
        """Take a coordinate token; False if it cannot continue the grammar."""
        if self._utf8:
            return False
        self._corners.append(Node("coordinate", first, last, slot, k))
        self._after_box = len(self._corners) == self.num_coordinates
        if self._after_box:
            self._complete(last)
        return True

    def _begin(self, at: int) -> None:
        self._first = self._last = at  # of the line's description
        self._corners: list[Node] = []  # of the box that is being read
        self._value_first = at  # of that box: the line's first byte, or that of its first coordinate
        self._after_box = False

    def _complete(self, last: int) -> None:
        desc = Node("string", self._first, self._last)
        self.values.append(Node("array", self._value_first, last, children=[desc, *self._corners]))
        self._corners, self._value_first = [], last


def scan(written: Sequence[bytes], kinds: Sequence[int], num_coordinates: int) -> Scan:
    """Read a response, as `ds_stage2ab.ops.scan.scan` does: `closed` means that the answer may end where it does.

    Args:
        num_coordinates: of a value.
    """
    starts = tuple(accumulate(map(len, written), initial=0))
    lines, refused = _Lines(num_coordinates), False
    for slot in range(len(written)):
        refused = not _take(lines, written[slot], kinds[slot], slot, starts[slot])
        if refused:
            break
    return Scan(
        values=tuple(lines.values),
        opening_end=0,
        ended="refused" if refused else "closed" if lines.may_end else "end",
        behind=False,
        starts=starts,
    )


def _take(lines: _Lines, piece: bytes, kind: int, slot: int, first: int) -> bool:
    """Whether a token can continue the grammar."""
    if kind >= 0:
        return lines.coordinate(kind, slot, first, first + len(piece))
    return kind != SPECIAL and all(lines.feed(byte, first + place) for place, byte in enumerate(piece))
