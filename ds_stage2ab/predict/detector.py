"""`Detector("runs/my")("street.jpg")`: the objects in an image, by a checkpoint or a server. Loads torch when made."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps

from ds_stage2ab.carriers import Record, Sample
from ds_stage2ab.data.images import as_rgb, load_image
from ds_stage2ab.errors import DataError
from ds_stage2ab.predict.images import as_record
from ds_stage2ab.predict.options import BATCH
from ds_stage2ab.predict.prediction import Prediction

if TYPE_CHECKING:
    from ds_stage2ab.evaluation.detected import Detected

ROUNDS = 2
"""Images that are read at a time, in batches: an answer that has ended makes room for the next one."""


@dataclass(frozen=True, slots=True)
class _Loaded:
    record: Record
    pixels: Image.Image
    sample: Sample


class Detector:
    """Finds objects in images; answers are greedy, as those of an evaluation.

    Args:
        checkpoint: a run (its newest checkpoint), a checkpoint of a run, a Hugging Face folder, or the address of a
            vLLM server.
        prompt: of the user; None: the checkpoint's own.
        classes: names to ask for, where the prompt says `{classes}`.
        config: a config whose prompts, answer format and limits are taken instead of the checkpoint's own.
        batch: images that are answered at once.
        threshold: objects with a lower score are left out.
        model: of a server: the folder that it serves; None: what it names, if that is on this machine.
        api_key_env: of a server: the environment variable that holds its key.

    Raises:
        EnvironmentFault: there is no such checkpoint, or it is damaged, or the server does not answer.
        ConfigError: the checkpoint does not say how it is asked, and no config does.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        *,
        prompt: str | None = None,
        classes: Sequence[str] = (),
        config: str | Path | None = None,
        batch: int = BATCH,
        threshold: float = 0.0,
        model: str | Path | None = None,
        api_key_env: str | None = None,
    ) -> None:
        from ds_stage2ab.predict.opened import opened

        self.batch = batch
        self.threshold = threshold
        self._opened = opened(
            str(checkpoint),
            prompt=prompt,
            classes=classes,
            config=None if config is None else Path(config),
            batch=batch,
            model=None if model is None else Path(model),
            api_key_env=api_key_env,
        )
        self._draw = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the checkpoint."""
        return self._opened.warnings

    def __call__(self, image: str | Path | Image.Image) -> Prediction:
        """What is in one image, a file or a picture of Pillow.

        Raises:
            DataError: it cannot be read, or is too large for the model.
        """
        (found,) = self.stream([image])
        if isinstance(found, DataError):
            raise found
        return found

    def stream(self, images: Iterable[str | Path | Image.Image]) -> Iterator[Prediction | DataError]:
        """What is in each of many images, in their order, a batch at a time.

        An image that cannot be used gives its DataError as a value.
        """
        waiting = iter(images)
        while some := list(islice(waiting, ROUNDS * self.batch)):
            loaded = [self._load(image) for image in some]
            samples = [one.sample for one in loaded if isinstance(one, _Loaded)]
            rollouts = iter(self._opened.answer(samples))
            for one in loaded:
                rollout = next(rollouts) if isinstance(one, _Loaded) else one
                if isinstance(rollout, DataError):
                    yield rollout
                else:
                    found = _above(self._opened.read(rollout), self.threshold)
                    yield Prediction(record=one.record, pixels=one.pixels, found=found)

    def _load(self, image: str | Path | Image.Image) -> _Loaded | DataError:
        try:
            if isinstance(image, str | Path):
                record = as_record(Path(image))
                content, pixels = load_image(record)
            else:
                pixels = as_rgb(ImageOps.exif_transpose(image))
                content, name, (width, height) = _as_png(pixels), f"picture {self._draw}", pixels.size
                record = Record(id=name, image=Path(name), width=width, height=height, objects=(), where=name)
            sample = self._opened.encode(record, self._draw, content, pixels)
        except DataError as error:
            return error
        self._draw += 1
        return _Loaded(record, pixels, sample)


def _as_png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def _above(found: Detected, threshold: float) -> Detected:
    """Without what has a lower score."""
    kept = [place for place, score in enumerate(found.scores) if score >= threshold]
    return replace(
        found,
        predicted=tuple(found.predicted[place] for place in kept),
        scores=tuple(found.scores[place] for place in kept),
        token_scores=tuple(found.token_scores[place] for place in kept),
    )
