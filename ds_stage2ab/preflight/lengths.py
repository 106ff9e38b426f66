"""Rule 4 as far as it can be checked without a tokenizer: image tokens, from the sizes in the records.

No image is opened: a record gives the size of its image, and `preprocessor_config.json` how it is resized.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from ds_stage2ab.config.rules import LENGTH_CAP, MAX_NEW_TOKENS, MAX_PIXELS
from ds_stage2ab.config.sections import DataSection
from ds_stage2ab.errors import ConfigError, DataError

Size = tuple[int, int]
"""Width and height of an image in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """How the image processor chooses the size of an image."""

    side: int
    # pixels; a square of this side becomes one token
    min_pixels: int
    max_pixels: int

    @property
    def most_tokens(self) -> int:
        """Most tokens of any image."""
        return self.max_pixels // self.side**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How prompt and answer share the length limit, in tokens."""

    limit: int
    # the lower one of `training.global_max_length` and the model's position limit, if that is known
    answer: int
    # the longest answer
    image: int | None
    # the largest image; None: not known
    is_counted: bool
    # whether `image` was counted over the records; else it is what the pixel limits allow

    @property
    def left_for_words(self) -> int:
        """Tokens left for the text of the prompt beside the largest image and the longest answer."""
        return self.limit - self.answer - (self.image or 0)


def image_sizes(file: Path) -> list[Size] | None:
    """The image sizes in a JSONL file; None if the file is not on this machine.

    Raises:
        DataError: the file cannot be read or is empty, or a line has no size; the run checks everything else.
    """
    if not file.exists():
        return None
    try:
        with file.open("rb") as lines:
            sizes = [_size(line, f"{file}:{number}") for number, line in enumerate(lines, start=1)]
    except OSError as error:
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(file)) from None
    if not sizes:
        raise DataError("the file is empty", where=str(file), fix="write one JSON object per line")
    return sizes


def _size(line: bytes, where: str) -> Size:
    try:
        record = json.loads(line)
        width, height = record["width"], record["height"]
    except (ValueError, KeyError, TypeError):
        width = height = None
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise DataError(
            "is no record with the width and height of its image",
            where=where,
            fix='write one JSON object per line: {"images": ["a.jpg"], "width": 640, "height": 480, "objects": []}',
        )
    return width, height


def read_image_limits(folder: Path, data: DataSection) -> ImageLimits | None:
    """Size limits of `preprocessor_config.json`, overridden by the config; None if the file gives none."""
    try:
        values = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        size = values["size"]
        if not all(isinstance(edge, int) for edge in size.values()):
            return None
        return ImageLimits(
            side=values["patch_size"] * values["merge_size"],
            min_pixels=size["shortest_edge"] if data.min_pixels is None else data.min_pixels,
            max_pixels=size["longest_edge"] if data.max_pixels is None else data.max_pixels,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def image_tokens(size: Size, limits: ImageLimits) -> int:
    """Tokens of an image, as Qwen2-VL's image processor resizes it (Wang et al. 2024, section 2.1).

    Both sides are rounded to whole tokens. An area outside the limits is scaled to the nearer one, and the sides are
    cut to whole tokens where it shrinks, filled up where it grows.
    """
    shape = [round(length / limits.side) for length in size]
    area = math.prod(shape) * limits.side**2
    if area > limits.max_pixels:
        scale = math.sqrt(math.prod(size) / limits.max_pixels)
        shape = [max(1, math.floor(length / scale / limits.side)) for length in size]
    elif area < limits.min_pixels:
        scale = math.sqrt(limits.min_pixels / math.prod(size))
        shape = [math.ceil(length * scale / limits.side) for length in size]
    return math.prod(shape)


def share_of_room(
    answered: list[list[Size] | None],
    limits: ImageLimits | None,
    *,
    answer: int,
    cap: int,
    position_limit: int | None,
) -> Lengths:
    """Rule 4 on the numbers that are known.

    Args:
        answered: for each set of records that the model will answer, the sizes of its images; None: not known.
        limits: of images; None: not known.
        answer: most tokens of an answer.
        cap: `training.global_max_length`.
        position_limit: of the model, tokens; None: not known.

    Raises:
        ConfigError: the largest image and the longest answer leave no room for a single word of the prompt.
    """
    limit = cap if position_limit is None else min(cap, position_limit)
    sizes = {size for group in answered if group for size in group}
    largest = max((image_tokens(size, limits) for size in sizes), default=0) if limits else 0
    if answered and largest + answer >= limit:
        raise _no_room_for_words(largest, answer, limit, LENGTH_CAP if limit == cap else "the model's position limit")
    is_counted = bool(largest) and all(group is not None for group in answered)
    bound = limits.most_tokens if limits else None
    return Lengths(limit=limit, answer=answer, image=largest if is_counted else bound, is_counted=is_counted)


def _no_room_for_words(largest: int, answer: int, limit: int, kind: str) -> ConfigError:
    image = f"the largest image, which has {largest}, and " if largest else ""
    remedies = [f"set {MAX_NEW_TOKENS} well below {limit - largest}"] if largest + 1 < limit else []
    remedies += [f"set {MAX_PIXELS} lower"] if largest else []
    return ConfigError(
        f"{answer} new tokens do not fit beside {image}a prompt: {kind} is {limit}",
        where=MAX_NEW_TOKENS,
        fix=", or ".join(remedies or [f"raise {LENGTH_CAP}"]),
    )
