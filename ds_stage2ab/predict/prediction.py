"""What was found in an image: in pixels for people and programs, in bins for the JSONL, and as a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ds_stage2ab.carriers import Box, Record
from ds_stage2ab.codec.bins import fraction_of

if TYPE_CHECKING:
    from PIL import Image

    from ds_stage2ab.evaluation.detected import Detected

Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """One object: `Detection(name="cat", score=0.87, box=(70.5, 148.9, 262.7, 338.7), bins=(110, 310, 410, 705))`."""

    name: str
    score: float
    # 0..1: `Detected.scores`
    box: Rectangle
    # left, top, right, bottom in pixels: bin b of a side of n pixels lies at b / 999 n
    bins: Box


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The answer to one image."""

    record: Record
    pixels: Image.Image = field(repr=False)
    # RGB, EXIF orientation applied
    found: Detected
    # without what is below the threshold

    @property
    def objects(self) -> tuple[Detection, ...]:
        """In the order of the answer."""
        width, height = self.record.width, self.record.height
        return tuple(
            Detection(
                name=one.desc,
                score=score,
                box=tuple(fraction_of(k) * side for k, side in zip(one.box, (width, height) * 2, strict=True)),
                bins=one.box,
            )
            for one, score in zip(self.found.predicted, self.found.scores, strict=True)
        )

    @property
    def is_complete(self) -> bool:
        """Whether the answer ended by itself and could be parsed to its end."""
        return self.found.well_formed

    def line(self) -> dict[str, Any]:
        """For a JSONL, with boxes in bins."""
        from ds_stage2ab.evaluation.answers import prediction_line

        return prediction_line(self.record, self.found)

    def picture(self) -> Image.Image:
        """The image with boxes, names and scores."""
        from ds_stage2ab.predict.picture import draw_detections

        found = self.found
        note = "" if self.is_complete else f"the answer is {found.state.replace('_', ' ')}, and ended by {found.finish}"
        return draw_detections(self.pixels, found.predicted, found.scores, note)
