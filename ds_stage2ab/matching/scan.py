"""One pass over the bytes of a rollout: which JSON values of the answer's grammar are complete, and where.

The grammar is strict JSON (RFC 8259, UTF-8) of one document: whitespace, the codec's opening lexemes,
values separated by commas, the codec's closing lexemes, whitespace wherever JSON allows it. A coordinate
token stands for a JSON value. This file is the meaning of the scan; a faster one must give equal results.

Invariants:
- No byte is looked at twice, and none behind the first that cannot continue the grammar.
- A byte is counted by the text of its token; a coordinate token counts as the bytes of `<|coord_k|>`, any
  other added token has no bytes and ends the scan.
- A value is what `json_value` says, with its limits on depth and length.
- A number is complete only when the byte behind it continues the grammar: `12` at the end of the ids, or
  before a letter, may be half a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from ds_stage2ab.codec.text import Codec
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.matching.json_value import WHITESPACE, Fed, Node, ValueScan


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What one pass found."""

    values: tuple[Node, ...]
    # the complete values, in generated order
    opening_end: int
    # offset behind the opening; -1 if it was not read
    ended: Literal["closed", "refused", "end"]
    # at the outermost close, by a byte or token that cannot continue, or because there is no more
    behind: bool
    # closed, and something stands behind the close
    starts: tuple[int, ...]
    # [T+1] offset of each token's first byte; the last entry is the number of bytes


class _Document:
    """The answer around the values: opening, commas, closing."""

    def __init__(self, codec: Codec) -> None:
        self._closing = codec.closing_lexemes
        self._lexemes = list(codec.opening_lexemes)  # still to be read, the first of them perhaps in part
        self._num_read = 0  # bytes of the first of them
        self._step: Callable[[int, int], bool] = self._in_opening
        self._value = ValueScan()
        self.values: list[Node] = []
        self.opening_end = -1
        self.closed = False

    def feed(self, byte: int, at: int) -> bool:
        """Take one byte at offset `at`; False if it cannot continue the grammar."""
        return self._step(byte, at)

    def coordinate(self, k: int, slot: int, first: int, last: int) -> bool:
        """Take a coordinate token; False if it cannot continue the grammar."""
        if self._step in (self._first_item, self._item):
            self._value = ValueScan()
            self._step = self._in_value
        elif self._step != self._in_value:
            return False
        return self._progress(self._value.coordinate(k, slot, first, last))

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
        return self._close(byte, at) if byte == self._closing[0][0] else self._item(byte, at)

    def _item(self, byte: int, at: int) -> bool:
        if byte in WHITESPACE:
            return True
        self._value = ValueScan()
        self._step = self._in_value
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
        self.values.append(self._value.root)

    def _after_item(self, byte: int, at: int) -> bool:
        if byte == ord(","):
            self._step = self._item
            return True
        if byte in WHITESPACE:
            self._step = self._after_item
            return True
        return self._close(byte, at)

    def _close(self, byte: int, at: int) -> bool:
        self._lexemes = list(self._closing)
        self._step = self._in_closing
        return self._in_closing(byte, at)


def scan(token_ids: Sequence[int], vocabulary: Vocabulary, codec: Codec) -> Scan:
    """Read the ids of a response against the codec's grammar.

    Args:
        token_ids: [T] response ids, the stop token removed.

    Returns: the complete values with offsets into `vocabulary.written_all(token_ids)`.
    """
    starts = tuple(accumulate((len(vocabulary.written(token)) for token in token_ids), initial=0))
    document = _Document(codec)
    ended: Literal["closed", "refused", "end"] = "end"
    behind = False
    for slot, token in enumerate(token_ids):
        num_read = _feed_token(document, vocabulary, token, slot, starts)
        if document.closed:
            ended = "closed"
            behind = slot + 1 < len(token_ids) or starts[slot] + num_read < starts[slot + 1]
            break
        if num_read < 0:
            ended = "refused"
            break
    return Scan(
        values=tuple(document.values),
        opening_end=document.opening_end,
        ended=ended,
        behind=behind,
        starts=starts,
    )


def _feed_token(document: _Document, vocabulary: Vocabulary, token: int, slot: int, starts: tuple[int, ...]) -> int:
    """Bytes of the token that were read; -1 if it cannot continue the grammar."""
    first, last = starts[slot], starts[slot + 1]
    if token in vocabulary.coordinate_bins:
        taken = document.coordinate(vocabulary.coordinate_bins[token], slot, first, last)
        return last - first if taken else -1
    piece = vocabulary.bytes_of(token)
    if piece is None:
        return -1
    for place, byte in enumerate(piece):
        if not document.feed(byte, first + place):
            return -1
        if document.closed:
            return place + 1
    return len(piece)
