"""Coordinate bins: pixel -> fraction of the image -> bin 0..999, and back.

Invariants:
- Every result of `bin_of` and `pixel_to_bin` is an int in 0..999.
- Rounding is `floor(v + 0.5)`, so halves go up on every platform and in every language.
- `bin_of(fraction_of(k)) == k` for every bin k.
- The first pixel is bin 0 and the last pixel is bin 999.
- A pixel comes back within half a bin: `abs(bin_to_pixel(pixel_to_bin(x, n), n) - x) <= 0.5 * (n - 1) / 999`.
"""

import math
import re

NUM_BINS = 1000
MAX_BIN = NUM_BINS - 1

_COORDINATE_TOKEN = re.compile(r"<\|coord_(0|[1-9][0-9]{0,2})\|>")


def bin_of(fraction: float) -> int:
    """The bin of a coordinate given as a fraction of the image: clamp(floor(999 * fraction + 0.5), 0, 999)."""
    return min(MAX_BIN, max(0, math.floor(MAX_BIN * fraction + 0.5)))


def fraction_of(k: int) -> float:
    """The fraction of the image that bin `k` stands for: k / 999."""
    return k / MAX_BIN


def pixel_to_bin(pixel: float, size: int) -> int:
    """The bin of a pixel coordinate.

    Args:
        pixel: position along the axis in pixels, 0 at the first pixel's centre.
        size: width or height of the image in pixels, at least 1.
    """
    return bin_of(pixel / max(1, size - 1))


def bin_to_pixel(k: int, size: int) -> float:
    """The pixel position (not rounded) of bin `k` along an axis of `size` pixels."""
    return fraction_of(k) * max(1, size - 1)


def coordinate_token(k: int) -> str:
    """The text of the coordinate token of bin `k`: `coordinate_token(7) == "<|coord_7|>"`."""
    assert 0 <= k <= MAX_BIN, f"bin {k} outside 0..{MAX_BIN}"
    return f"<|coord_{k}|>"


def bin_of_token(text: str) -> int | None:
    """The bin of a coordinate token's text, or None if `text` is anything else (leading zeros are something else)."""
    match = _COORDINATE_TOKEN.fullmatch(text)
    return int(match.group(1)) if match else None
