"""What a key that no config has was meant for: one of ours with a slip of the pen, or another package's.

A key is never taken for one of ours that only looks like it: `save_steps` is no slip of `max_steps`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from ds_stage2ab.config.problems import KeyPath

SUGGESTION_CUTOFF = 0.7  # difflib ratio from which a key is looked at as a misspelling of another
SLIP_CUTOFF = 0.9  # of the whole key without its underscores
WORD_CUTOFF = 0.75  # of one word of a key
LEAST_PREFIX = 3  # letters of a word that is cut short, as `len` for `length`
MAX_SUGGESTIONS = 3


def similar_keys(
    path: KeyPath, siblings: Sequence[str], known: Sequence[KeyPath], ours: Sequence[KeyPath]
) -> list[KeyPath]:
    """Keys that a user may have meant, best first: this very name elsewhere, what it is called here, a slip here, then
    anywhere.

    Args:
        siblings: the keys of the section in which it stands.
        known: every key and section.
        ours: what a key of another package of this name is called here.
    """
    everywhere: dict[str, list[KeyPath]] = {}
    for key in known:
        everywhere.setdefault(key[-1], []).append(key)
    name = path[-1]
    as_path = tuple(name.split("."))
    for candidate in (as_path, (*path[:-1], *as_path)):
        if len(as_path) > 1 and candidate in everywhere.get(as_path[-1], []):
            return [candidate]
    if name in everywhere:
        return everywhere[name][:MAX_SUGGESTIONS]
    if ours:
        return list(ours)
    near_here = _slips(name, siblings)
    if near_here:
        return [(*path[:-1], near_here[0])]
    near = _slips(name, list(everywhere))
    return everywhere[near[0]][:MAX_SUGGESTIONS] if near else []


def plain_name(name: str) -> str:
    """A key as other packages may write it: `--Per-Device-Batch` -> `per_device_batch`, `trainer.lr` -> `lr`."""
    return name.split(".")[-1].strip("-").replace("-", "_").lower()


def row_of(name: str, rows: Sequence[Mapping]) -> Mapping | None:
    """The row of `schemas/foreign_keys.json` that lists this key."""
    plain = plain_name(name)
    return next((row for row in rows if plain in row["names"]), None)


def _slips(name: str, candidates: Sequence[str]) -> list[str]:
    near = difflib.get_close_matches(name, candidates, n=MAX_SUGGESTIONS, cutoff=SUGGESTION_CUTOFF)
    return [candidate for candidate in near if _is_slip(name.lower(), candidate)]


def _is_slip(name: str, right: str) -> bool:
    if _ratio(name.replace("_", ""), right.replace("_", "")) >= SLIP_CUTOFF:
        return True
    words, wanted = name.replace("-", "_").split("_"), right.split("_")
    return len(words) == len(wanted) and all(map(_is_word, words, wanted))


def _is_word(word: str, right: str) -> bool:
    return _ratio(word, right) >= WORD_CUTOFF or (len(word) >= LEAST_PREFIX and right.startswith(word))


def _ratio(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()
