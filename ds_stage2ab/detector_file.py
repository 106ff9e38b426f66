"""`detector.json` beside a checkpoint's weights: how it was trained to be asked, and how its answers are written.

Every export writes it, so that nobody has to remember prompts, answer format and pixel limits. A checkpoint without it
is used with those of a config.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from ds_stage2ab.config.sections import Config, RepeatTerminateSection
from ds_stage2ab.errors import EnvironmentFault

FILE = "detector.json"
FORMAT = 1
LIMIT = {"type": ["integer", "null"], "minimum": 1}
LIMITS = dict.fromkeys(("max_token_run", "ngram_size", "max_ngram_repeats", "max_objects"), LIMIT)
KEYS = {
    "format": {"const": FORMAT},
    "system_prompt": {"type": ["string", "null"]},
    "user_prompt": {"type": "string", "minLength": 1},
    "codec": {"type": "string"},
    "min_pixels": LIMIT,
    "max_pixels": LIMIT,
    "max_new_tokens": {"type": "integer", "minimum": 1},
    "repeat_terminate": {
        "type": "object",
        "required": [*LIMITS],
        "properties": LIMITS,
        "additionalProperties": False,
    },
}
FORM = Draft202012Validator(
    {"type": "object", "required": [*KEYS], "properties": KEYS, "additionalProperties": False}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectorFile:
    """What the file says; the names are those of the config."""

    system_prompt: str | None
    user_prompt: str
    codec: str
    min_pixels: int | None
    max_pixels: int | None
    # None: the limit of the folder's image processor
    max_new_tokens: int
    # tokens of the longest answer
    repeat_terminate: RepeatTerminateSection


def of_config(config: Config) -> DetectorFile:
    """What a run of this config trains a checkpoint to."""
    return DetectorFile(
        system_prompt=config.data.system_prompt,
        user_prompt=config.data.user_prompt,
        codec=config.data.codec,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
        max_new_tokens=config.rollout_matching.max_new_tokens,
        repeat_terminate=config.rollout_matching.repeat_terminate,
    )


def write_detector_file(folder: Path, values: DetectorFile) -> None:
    """Raises: OSError: it cannot be written."""
    text = json.dumps({"format": FORMAT, **asdict(values)}, indent=2, ensure_ascii=False)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def read_detector_file(folder: Path) -> DetectorFile | None:
    """What the file of a Hugging Face folder says; None: there is none.

    Raises:
        EnvironmentFault: it cannot be read, or is none.
    """
    path = folder / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, f"cannot be read: {error}") from error
    fault = next(iter(FORM.iter_errors(values)), None)
    if fault is not None:
        raise _damaged(path, f"is no {FILE} of format {FORMAT}: {fault.json_path}: {fault.message[:120]}")
    found: dict[str, Any] = {key: value for key, value in values.items() if key != "format"}
    return DetectorFile(**{**found, "repeat_terminate": RepeatTerminateSection(**values["repeat_terminate"])})


def _damaged(path: Path, why: str) -> EnvironmentFault:
    fix = "copy it from the checkpoint's source again, or delete it, and say by a config how the checkpoint is asked"
    return EnvironmentFault(why, where=str(path), fix=fix)


def differences(config: Config, folder: Path) -> Iterator[str]:
    """What a config says otherwise than the checkpoint in a folder, a sentence each; nothing where it has no file.

    A pixel limit that the config leaves open is the checkpoint's own.

    Raises:
        EnvironmentFault: the file is damaged.
    """
    found = read_detector_file(folder)
    if found is None:
        return
    for key in ("system_prompt", "user_prompt", "codec", "min_pixels", "max_pixels"):
        mine, its = getattr(of_config(config), key), getattr(found, key)
        is_open = mine is None and key.endswith("_pixels")
        if mine != its and not is_open:
            why = f"data.{key} is {_quoted(mine)}, and the checkpoint was trained with {_quoted(its)}"
            yield f"{why} ({folder / FILE}): write that, unless you mean to change it"


def _quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
