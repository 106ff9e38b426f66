"""Descriptions that no answer can hold, above all those with the text of an added token, which is an id and no text."""

from collections.abc import Callable, Iterable

from ds_stage2ab.codec.names import IN_LINES
from ds_stage2ab.errors import DataError


def check_descriptions(
    described: Iterable[tuple[str, str]], added: Iterable[str], normalise: Callable[[str], str], codec: str
) -> None:
    """Refuse a description that can neither be taught nor answered.

    Args:
        described: (file:line, description) of every object.
        added: texts that the tokenizer turns into added tokens.
        normalise: the tokenizer's.
        codec: `data.codec`.

    Raises:
        DataError: an answer cannot hold one.
    """
    texts, why = refused_texts(added, codec), {}
    for where, desc in described:
        if desc not in why:
            why[desc] = unwritable(normalise(desc), texts, codec)
        if why[desc]:
            others = "" if codec in IN_LINES else ", or a checkpoint whose tokenizer has no such token"
            raise DataError(f"the description {desc!r} {why[desc]}", where=where, fix=f"use other words{others}")


def refused_texts(added: Iterable[str], codec: str) -> list[str]:
    """Texts of added tokens that no description may hold: JSON writes a "<" as an escape, lines escape nothing."""
    return [text for text in added if codec in IN_LINES or "<" not in text]


def unwritable(desc: str, texts: Iterable[str], codec: str) -> str:
    """Why an answer cannot hold a description; empty if it can.

    Args:
        desc: normalised.
        texts: `refused_texts`.
    """
    held = next((text for text in texts if text in desc), "")
    if held:
        return f"holds {held!r}, which is an added token of model.path: an answer's words are never added tokens"
    if codec in IN_LINES and "\n" in desc:
        return f"holds a newline, which begins another one with data.codec: {codec}"
    if codec in IN_LINES and desc != desc.strip():
        return f"begins or ends with a blank, which data.codec: {codec} does not write"
    return ""
