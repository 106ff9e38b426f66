"""How the image processor of a checkpoint sizes images: its settings, its limits, and the tokens of an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ds_stage2ab.errors import ConfigError

Size = tuple[int, int]
"""Width and height of an image in pixels."""

MIN_PIXELS, MAX_PIXELS = "data.min_pixels", "data.max_pixels"
MAX_ASPECT = 200
"""The image processor refuses an image whose longer side is more than this times the shorter one."""
THIN_FIX = "cut the image into parts, or leave it out"
DEFAULTS: Mapping[str, Any] = {
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
}
"""What transformers' `Qwen2VLImageProcessor` takes where its file says nothing."""
DEFAULT_SIZE = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
OLDER_NAMES = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
"""Where they stand in a file, they override its size."""


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


def processor_settings(newer: dict[str, Any], older: dict[str, Any]) -> dict[str, Any]:
    """The image processor's settings with its library's defaults; empty if neither file has any.

    Args:
        newer: its section of `processor_config.json`, which is read first.
        older: `preprocessor_config.json`.
    """
    given = newer or older
    if not given:
        return {}
    size = given.get("size")
    areas = {name: given[key] for key, name in OLDER_NAMES.items() if given.get(key) is not None}
    edges = DEFAULT_SIZE if size is None else size if isinstance(size, dict) else {}
    return {**DEFAULTS, **given, "size": {**edges, **areas}}


def image_limits(settings: dict[str, Any], *, min_pixels: int | None, max_pixels: int | None) -> ImageLimits | None:
    """The limits of checked settings, overridden by the config; None if there are no settings.

    Args:
        settings: of a `ModelFolder`.
        min_pixels, max_pixels: `data` of the config; None keeps the checkpoint's own.

    Raises:
        ConfigError: one limit of the config and the checkpoint's other one cross.
    """
    size = settings["size"] if settings else {}
    edges = [size.get(name) for name in OLDER_NAMES.values()]
    if not all(isinstance(edge, int) for edge in edges):
        return None
    smallest, largest = edges
    least, most = (smallest if min_pixels is None else min_pixels), (largest if max_pixels is None else max_pixels)
    if least > most:
        key, other, value = (MIN_PIXELS, MAX_PIXELS, least) if max_pixels is None else (MAX_PIXELS, MIN_PIXELS, most)
        raise ConfigError(
            f"{value} crosses the checkpoint's own limit on the other side, {most if value == least else least}",
            where=key,
            fix=f"set {other} to {value} too, or leave {key} out",
        )
    return ImageLimits(side=settings["patch_size"] * settings["merge_size"], min_pixels=least, max_pixels=most)


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


def too_thin(size: Size) -> str:
    """Why the image processor refuses an image of this size; empty if it does not."""
    if max(size) <= MAX_ASPECT * min(size):
        return ""
    return f"is {size[0]} x {size[1]} pixels: the image processor takes sides of at most {MAX_ASPECT}:1"
