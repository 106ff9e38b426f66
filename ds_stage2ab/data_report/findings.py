"""What is odd about the data, a sentence each with its first place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ds_stage2ab.config.batch import counted
from ds_stage2ab.data.box_space import boxes_of, other_form
from ds_stage2ab.data_report.figures import SetFigures, same_images
from ds_stage2ab.errors import printable

MAX_NAMED = 3


def of_one_set(figures: SetFigures, box_format: str) -> Iterator[str]:
    """Findings about one JSONL."""
    if form := other_form(boxes_of(figures.records), box_format):
        yield form
    if figures.unusable:
        yield f"{counted(len(figures.unusable), 'image')} cannot be used; the first, {figures.unusable[0]}"
    if figures.repeated:
        samples = f"an object stands twice, with the same name and box, in {counted(len(figures.repeated), 'sample')}"
        yield f"{samples}; the first, {printable(figures.repeated[0])}"
    if figures.spellings:
        named = "; ".join(", ".join(map(repr, group)) for group in figures.spellings[:MAX_NAMED])
        names = counted(len(figures.spellings), "description")
        yield f"{names} in several spellings, which evaluation takes as one: {named}"


def of_images(train: SetFigures, validation: SetFigures | None) -> Iterator[str]:
    """Findings about images of the same content, within the sets and between them."""
    held_out = () if validation is None else validation.records
    known = {id(record) for record in held_out}
    groups = same_images([*train.records, *held_out])
    mixed = [group for group in groups if 0 < sum(id(record) in known for record in group) < len(group)]
    if mixed:
        count = sum(id(record) in known for group in mixed for record in group)
        images = counted(count, "held-out image")
        yield f"{images} in the training set too, by the content; the first, {_pair(mixed[0])}"
    repeated = sum(len(group) - 1 for group in groups)
    if repeated:
        yield f"{counted(repeated, 'image')} with the content of another one; the first, {_pair(groups[0])}"


def _pair(group: Sequence) -> str:
    return f"{printable(group[0].where)} and {printable(group[-1].where)}"
