"""The user's prompt of each record: its own, or the config's with the names of its classes and of some absent ones.

Invariants:
- A record's own prompt is taken as it stands.
- The absent names of a record depend on (seed, draw, record id, the set's names) alone, and on no other draw.
- Where a record says what is absent, nothing else is asked for as absent.
- Names are in alphabetical order, so that their order does not tell which of them are there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from ds_stage2ab.carriers import Record
from ds_stage2ab.codec.names import compared
from ds_stage2ab.config.sections import CLASSES
from ds_stage2ab.data.stream import digest_of
from ds_stage2ab.errors import DataError

SEPARATOR = ", "


def with_names(template: str, names: Iterable[str]) -> str:
    """The template with these names, each once as it is first written, in alphabetical order."""
    known: dict[str, str] = {}
    for name in names:
        known.setdefault(compared(name), name.strip())
    return template.replace(CLASSES, SEPARATOR.join(known[key] for key in sorted(known)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Record -> the same with the prompt that it is asked by.

    Example: with `Find: {classes}.`, one absent name and a record of a cat: `Find: boat, cat.`
    """

    user_prompt: str
    num_absent: int
    # `data.negative_classes`
    seed: int
    names: tuple[str, ...]
    # of all objects of the set, as they are first written; empty where the prompt has no place for them

    @classmethod
    def of(cls, records: Iterable[Record], user_prompt: str, num_absent: int, seed: int) -> Asked:
        """For the records of a set."""
        known: dict[str, str] = {}
        if CLASSES in user_prompt:
            for record in records:
                for truth in record.objects:
                    known.setdefault(compared(truth.desc), truth.desc)
        return cls(user_prompt=user_prompt, num_absent=num_absent, seed=seed, names=tuple(known.values()))

    def __call__(self, record: Record, draw: int) -> Record:
        """With its prompt of this draw.

        Raises:
            DataError: there is no name to ask for.
        """
        if record.prompt is not None:
            return record
        if CLASSES not in self.user_prompt:
            return replace(record, prompt=self.user_prompt)
        absent = self._absent(record)
        absent.sort(key=lambda name: digest_of(f"{self.seed}/{draw}/{record.id}/absent/{compared(name)}"))
        return self._with(record, absent)

    def longest(self, record: Record) -> Record:
        """With a prompt that no draw makes longer, in characters."""
        if record.prompt is not None or CLASSES not in self.user_prompt:
            return self(record, 0)
        return self._with(record, sorted(self._absent(record), key=len, reverse=True))

    def _absent(self, record: Record) -> list[str]:
        present = {compared(truth.desc) for truth in record.objects}
        known = self.names if record.absent is None else record.absent
        return [name for name in known if compared(name) not in present]

    def _with(self, record: Record, absent: list[str]) -> Record:
        """With the first of these names; an image of nothing is asked for one at least."""
        present = [truth.desc for truth in record.objects]
        chosen = [*present, *absent[: self.num_absent if present else max(1, self.num_absent)]]
        if not chosen:
            fix = f"take {CLASSES} out of data.user_prompt, or add records with objects"
            raise DataError("no record has an object whose name could be asked for", where=record.where, fix=fix)
        return replace(record, prompt=with_names(self.user_prompt, chosen))
