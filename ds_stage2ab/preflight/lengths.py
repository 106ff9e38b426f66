"""Rule 4 as far as it can be checked without a tokenizer: image tokens, from the sizes in the records.

No image is opened: a record gives the size of its image, and the checkpoint's image processor how it is resized.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ds_stage2ab.config.rules import LENGTH_CAP, MAX_NEW_TOKENS, MAX_PIXELS
from ds_stage2ab.errors import ConfigError, DataError
from ds_stage2ab.model_folder.images import ImageLimits, Size, image_tokens


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
    if not os.path.exists(file):
        return None
    if not os.path.isfile(file):  # a pipe would be waited for
        raise DataError("the file cannot be read: it is no regular file", where=str(file), fix="name a JSONL file")
    try:
        with file.open("rb") as lines:
            sizes = [_size(line, f"{file}:{number}") for number, line in enumerate(lines, start=1)]
    except OSError as error:
        fix = "make the file readable"
        raise DataError(f"the file cannot be read: {error.strerror}", where=str(file), fix=fix) from None
    if not sizes:
        raise DataError("the file is empty", where=str(file), fix="write one JSON object per line")
    return sizes


def _size(line: bytes, where: str) -> Size:
    try:
        record = json.loads(line)
        width, height = record["width"], record["height"]
    except (ValueError, KeyError, TypeError, RecursionError):
        width = height = None
    if not (isinstance(width, int) and isinstance(height, int) and width > 0 and height > 0):
        raise DataError(
            "is no record with the width and height of its image",
            where=where,
            fix='write one JSON object per line: {"images": ["a.jpg"], "width": 640, "height": 480, "objects": []}',
        )
    return width, height


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
