"""Pictures of answers in a page: each image is in the file once, however often it is shown, while there is space."""

from __future__ import annotations

from pathlib import Path

from ds_stage2ab.carriers import Record, Truth
from ds_stage2ab.data.images import load_image
from ds_stage2ab.errors import DataError
from ds_stage2ab.evaluation.answers import Answer, how_it_ended
from ds_stage2ab.evaluation.f1 import wrong_names
from ds_stage2ab.pages.frame import text
from ds_stage2ab.pages.pictures import box_element, jpeg_address

SIDE = 420  # pixels of the longer side
MAX_BYTES = 2_600_000
"""Of images and boxes together: what a page of 6 MB has beside charts and tables."""
NO_ROOM = "left out: the page would be too large"


class Gallery:
    """The pictures of one page."""

    def __init__(self) -> None:
        self._room = MAX_BYTES
        self._rules: dict[Path, str] = {}
        self._faults: dict[Path, str] = {}

    def style(self) -> str:
        """The rules that hold the images."""
        return "".join(self._rules.values())

    def figure(self, answer: Answer, caption: str) -> str:
        """Truth and answer over the image.

        Args:
            caption: what it is; not ours.
        """
        fault = self._fault(answer)
        boxes = "" if fault else boxes_of(answer)
        if not fault and len(boxes) > self._room:
            fault = NO_ROOM
        said = f"{caption}: {said_of(answer)}"
        if fault:
            return f"<figure class=shot><figcaption>{text(f'{said}; the picture: {fault}')}</figcaption></figure>"
        self._room -= len(boxes)
        name = f"i{list(self._rules).index(answer.image)}"
        shape = f"aspect-ratio:{answer.width}/{answer.height}"
        image = f"<div class='picture {name}' style='{shape}' role=img aria-label='{text(said)}'>{boxes}</div>"
        return f"<figure class=shot>{image}<figcaption>{text(said)}</figcaption></figure>"

    def _fault(self, answer: Answer) -> str:
        """Why the image cannot be shown; empty if it can, and then it is in the page."""
        if answer.image not in self._rules and answer.image not in self._faults:
            self._add(answer)
        return self._faults.get(answer.image, "")

    def _add(self, answer: Answer) -> None:
        where = str(answer.image)
        record = Record(
            id=answer.id,
            image=answer.image,
            width=answer.width,
            height=answer.height,
            objects=answer.truth,
            where=where,
        )
        try:
            address, size = jpeg_address(load_image(record)[1], SIDE)
        except DataError as error:
            self._faults[answer.image] = error.why
            return
        if len(address) > self._room:
            self._faults[answer.image] = NO_ROOM
            return
        self._room -= len(address)
        pixels = ";image-rendering:pixelated" if max(size) < SIDE // 2 else ""
        self._rules[answer.image] = f".i{len(self._rules)}{{background-image:url({address}){pixels}}}"


def boxes_of(answer: Answer) -> str:
    """Truth below, the answer above it."""
    wrong = dict(wrong_names(answer.predicted, answer.truth, answer.pairs))
    right = {p for p, _ in answer.pairs}
    hit = {g for _, g in answer.pairs} | set(wrong.values())
    parts = []
    for place, one in enumerate(answer.truth):
        missed = place not in hit
        parts.append(box_element(one.box, one.desc, "truth missed" if missed else "truth", _title(one, "true")))
    for place, one in enumerate(answer.predicted):
        score = "" if answer.scores is None else f", score {answer.scores[place]:.2f}"
        if place in wrong:
            label = f"{one.desc}, is {answer.truth[wrong[place]].desc}"
            parts.append(box_element(one.box, label, "wrong", f"{label}{score}"))
        else:
            kind = "" if place in right else "spurious"
            parts.append(box_element(one.box, one.desc, kind, _title(one, "answered") + score))
    return "".join(parts)


def _title(one: Truth, what: str) -> str:
    return f"{one.desc} ({what})"


def said_of(answer: Answer) -> str:
    """`3 true, 2 answered, 1 right, 1 under a wrong name`; where nothing was answered, why."""
    words = [f"{len(answer.truth)} true", f"{len(answer.predicted)} answered", f"{len(answer.pairs)} right"]
    if wrong := wrong_names(answer.predicted, answer.truth, answer.pairs):
        words.append(f"{len(wrong)} under a wrong name")
    return ", ".join([*words, *how_it_ended(answer.state, answer.finish, answer.dropped)])
