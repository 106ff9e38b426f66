"""The folder that `ds-stage2ab predict` fills an image at a time: what is finished stays, whatever ends the command."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ds_stage2ab.errors import ConfigError, DataError, printable, unwritable
from ds_stage2ab.formats.export_coco import BESIDE, export_coco
from ds_stage2ab.predict.prediction import Prediction
from ds_stage2ab.runtime.files import drop_half_line

LINES, RESULTS, PICTURES, ASKED = "predictions.jsonl", "results.json", "pictures", "predict.json"
LONGEST_NAME = 100  # characters of a picture's name
QUALITY = 92  # of JPEG


class Output:
    """A line for each image, a picture beside it, and COCO's files at the end.

    Args:
        folder: made if it is missing.
        asked: what decides the predictions; one folder holds those of one command alone.
        resume: go on with what is there.
        draws: whether pictures are drawn.

    Raises:
        ConfigError: there are predictions already, and `resume` is false, or they are of another command.
        EnvironmentFault: it cannot be written.
    """

    def __init__(self, folder: Path, asked: dict[str, Any], *, resume: bool, draws: bool) -> None:
        self.folder = folder
        self.draws = draws
        self.finished: set[str] = set()
        # ids of the images that have a line
        self._pictures: set[str] = set()
        # names of theirs
        self.lines = folder / LINES
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if self.lines.exists() and self.lines.stat().st_size:  # an empty one is of a command that found no model
                self._go_on(asked, resume=resume)
            else:
                (folder / ASKED).write_text(json.dumps(asked, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
                self.lines.touch()
            if draws:
                (folder / PICTURES).mkdir(exist_ok=True)

    def add(self, prediction: Prediction) -> None:
        """Draw the picture and write the line; an image with a line is finished."""
        line = prediction.line()
        with _writing(self.folder):
            if self.draws:
                name = self._name(prediction.record.image)
                prediction.picture().save(self.folder / PICTURES / name, quality=QUALITY, subsampling=0)
                line["picture"] = f"{PICTURES}/{name}"
            with self.lines.open("a", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._count(line)

    def close(self) -> list[Path]:
        """Write COCO's two files of all lines, of which there must be one: those of the images, and the results."""
        results = self.folder / RESULTS
        with _writing(self.folder):
            for file in (results, results.with_name(f"{results.stem}{BESIDE}")):
                file.unlink(missing_ok=True)
        return [file for file, _ in export_coco(self.lines, results, None)]

    def _go_on(self, asked: dict[str, Any], *, resume: bool) -> None:
        if not resume:
            fix = "add --resume to go on there, or give another --out"
            raise ConfigError("there are predictions in it already", where=str(self.folder), fix=fix)
        file = self.folder / ASKED
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"cannot be read: {error}", where=str(file), fix="give another --out") from None
        others = [key for key in asked if not isinstance(before, dict) or before.get(key) != asked[key]]
        if others:
            told = ", ".join(f"{key} was {printable(json.dumps(before[key]))}" for key in others if key in before)
            why = f"its predictions were made otherwise: {told or 'by another version'}"
            raise ConfigError(why, where=str(self.folder), fix="give another --out, or the same words as before")
        drop_half_line(self.lines)
        with self.lines.open(encoding="utf-8") as stream:
            for number, text in enumerate(stream, start=1):
                try:
                    self._count(json.loads(text))
                except (ValueError, TypeError, KeyError):
                    fix = "delete this line, and its image is answered again"
                    raise DataError("is no prediction", where=f"{self.lines}:{number}", fix=fix) from None

    def _count(self, line: dict[str, Any]) -> None:
        self.finished.add(line["id"])
        if "picture" in line:
            self._pictures.add(line["picture"].removeprefix(f"{PICTURES}/"))

    def _name(self, image: Path) -> str:
        """`street.jpg`, or `street-2.jpg` if that is another image's."""
        stem = re.sub(r"[^\w.-]", "_", image.stem)[:LONGEST_NAME].lstrip(".") or "image"
        number = 1
        while (name := f"{stem}{f'-{number}' * (number > 1)}.jpg") in self._pictures:
            number += 1
        return name


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unwritable(folder, error) from error
