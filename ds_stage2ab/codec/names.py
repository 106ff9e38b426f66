"""The form in which descriptions are compared, everywhere.

Invariants:
- `compared(a) == compared(b)` wherever `a` and `b` differ in case, in blanks around them, or in the Unicode form of the
  same characters alone: a tokenizer with an NFC normaliser (Qwen's) cannot write the decomposed form of a label.
"""

from unicodedata import normalize


def compared(desc: str) -> str:
    """A description stripped, in lower case and in Unicode form NFC."""
    return normalize("NFC", desc.strip().lower())
