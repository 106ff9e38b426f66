"""The form in which descriptions are compared, everywhere, and the names of what writes them in lines.

Invariants:
- `compared(a) == compared(b)` wherever `a` and `b` differ in case, in blanks around them, or in the Unicode form of the
  same characters alone: a tokenizer with an NFC normaliser (Qwen's) cannot write the decomposed form of a label.
"""

from unicodedata import normalize

IN_LINES = ("compact", "compact_scored")
"""The codecs (`data.codec`) that write a description as a line of text; the others write JSON."""

SCORED = ("array_scored", "compact_scored")
"""The codecs that write a score behind each box: how sure the model is of it."""


def compared(desc: str) -> str:
    """A description stripped, in lower case and in Unicode form NFC."""
    return normalize("NFC", desc.strip().lower())
