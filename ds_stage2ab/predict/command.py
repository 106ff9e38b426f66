"""`ds-stage2ab predict`: from files and folders to pictures, a JSONL and COCO's results."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ds_stage2ab.errors import EXIT_DATA, EXIT_OK, DataError, printable
from ds_stage2ab.model_folder.places import weights_folder
from ds_stage2ab.predict.detector import Detector
from ds_stage2ab.predict.images import find_images
from ds_stage2ab.predict.output import PICTURES, Output
from ds_stage2ab.predict.prediction import Prediction
from ds_stage2ab.runtime.progress import with_bar
from ds_stage2ab.runtime.shutdown import EXIT_INTERRUPTED

SERVERS = ("http://", "https://")


def run_predict(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    """Answer every image; what is finished is written at once, so Ctrl-C costs a batch.

    Args:
        say: tells the user, while it works too.

    Returns: the exit code: of data that cannot be used, if an image could not, unless that is allowed.

    Raises:
        ConfigError, EnvironmentFault: a word names nothing, or the checkpoint, the server or the folder cannot be used.
    """
    images = find_images(options.images)
    output = Output(options.out, _asked(options), resume=options.resume, draws=not options.no_pictures)
    waiting = [image for image in images if str(image) not in output.finished]
    if len(waiting) < len(images):
        say(f"{len(images) - len(waiting):,} of {len(images):,} images are finished, and left out")
    bad, code = 0, EXIT_OK
    if waiting:
        detector = _detector(options, say)
        try:
            for found in with_bar(detector.stream(waiting), len(waiting), "images"):
                bad += not _taken(output, found, say)
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
            say("interrupted: what is finished stays, and the same command with --resume goes on")
    _close(output, say)
    if bad:
        say(f"{bad:,} of {len(waiting):,} images could not be used, and have no line")
        code = code or (EXIT_OK if options.skip_bad else EXIT_DATA)
    return code


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    """What decides the predictions; the checkpoint is the folder that is meant now."""
    is_server = options.checkpoint.startswith(SERVERS)
    checkpoint = options.checkpoint if is_server else str(weights_folder(Path(options.checkpoint)).resolve())
    return {
        "checkpoint": checkpoint,
        "prompt": options.prompt,
        "classes": list(options.classes),
        "config": None if options.config is None else str(options.config.resolve()),
        "threshold": options.threshold,
    }


def _detector(options: argparse.Namespace, say: Callable[[str], None]) -> Detector:
    say(f"loading {printable(options.checkpoint)}")
    detector = Detector(
        options.checkpoint,
        prompt=options.prompt,
        classes=options.classes,
        config=options.config,
        batch=options.batch,
        threshold=options.threshold,
        model=options.model,
        api_key_env=options.api_key_env,
    )
    for warning in detector.warnings:
        say(printable(f"warning: {warning}"))
    return detector


def _taken(output: Output, found: Prediction | DataError, say: Callable[[str], None]) -> bool:
    if isinstance(found, DataError):
        say(f"skipped: {printable(found.why)}")
        return False
    output.add(found)
    return True


def _close(output: Output, say: Callable[[str], None]) -> None:
    if not output.finished:
        return
    beside, results = output.close()
    say(f"{printable(str(output.lines))}: the predictions of {len(output.finished):,} images, a line each")
    if output.draws:
        say(f"{printable(str(output.folder / PICTURES))}: the same drawn")
    say(f"{printable(str(results))}: COCO's results, of the images and categories in {beside.name}")
