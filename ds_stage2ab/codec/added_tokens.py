"""Descriptions that hold the text of an added token, which is an id to a tokenizer and never text."""

from collections.abc import Callable, Iterable

from ds_stage2ab.errors import DataError


def without_an_escape(added: Iterable[str]) -> list[str]:
    """Texts of added tokens that no answer can hold; one with a "<" is written as an escape of JSON instead."""
    return [text for text in added if "<" not in text]


def check_descriptions(
    described: Iterable[tuple[str, str]], added: Iterable[str], normalise: Callable[[str], str]
) -> None:
    """Refuse a description that can neither be taught nor answered.

    Args:
        described: (file:line, description) of every object.
        added: texts that the tokenizer turns into added tokens.
        normalise: the tokenizer's.

    Raises:
        DataError: one holds such a text.
    """
    texts, held = without_an_escape(added), {}
    for where, desc in described if texts else ():
        if desc not in held:
            held[desc] = next((text for text in texts if text in normalise(desc)), "")
        if held[desc]:
            raise DataError(
                f"the description {desc!r} holds {held[desc]!r}, which is an added token of model.path:"
                " an answer's words are never added tokens",
                where=where,
                fix="use other words, or a checkpoint whose tokenizer has no such token",
            )
