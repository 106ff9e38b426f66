"""Objects that are not there, for Channel A of a scored form: the answer lists them and their score is 0.

Noise objects are Pix2seq's (Chen et al. 2022, section 2.3), between true objects instead of behind them, so that the
answer still ends where it should: each stands before some true object.

Invariants:
- The entries depend on the sample's objects, seed, draw and id alone.
- Without noise they are the true objects, in order, and every true one stays in that order.
- A noise object has the description of a true one; a shifted or repeated box comes after the one that it is made from.
"""

import hashlib
from collections.abc import Callable

from ds_stage2ab.carriers import Box, Sample, Truth
from ds_stage2ab.codec.bins import MAX_BIN
from ds_stage2ab.matching.targets import Entry

WORD_BYTES = 8
REPEATED = 0.05
"""Largest change of a repeated box's sides, as a fraction of its width or height."""
SHIFTED = (0.5, 1.0)
"""Shift of a box along both axes, as a fraction of its width and height: at 0.5 the IoU is 1/7."""


def entries_with_noise(sample: Sample, num_noise: int, seed: int) -> list[Entry]:
    """The sample's true objects, and `num_noise` others between them; none in a sample without objects.

    Args:
        seed: `training.seed`.
    """
    objects = sample.objects
    noise: list[tuple[int, Truth]] = []
    for number in range(num_noise if objects else 0):
        uniform = _stream(f"{seed}/{sample.draw}/{sample.id}/noise/{number}")
        before = int(uniform() * len(objects))
        if before:
            source = objects[int(uniform() * before)]
            box = (_repeated, _shifted, _random)[int(uniform() * 3)](source.box, uniform)
        else:
            source = objects[int(uniform() * len(objects))]
            box = _random(source.box, uniform)
        noise.append((before, Truth(desc=source.desc, box=box, score=0)))
    return [
        entry
        for place, one in enumerate(objects)
        for entry in (
            *(Entry(read=false, learned=None) for before, false in noise if before == place),
            Entry(read=one, learned=one),
        )
    ]


def _stream(name: str) -> Callable[[], float]:
    """Numbers in [0, 1) made from the name alone."""
    state = hashlib.blake2b(name.encode())

    def uniform() -> float:
        state.update(b"/")
        return int.from_bytes(state.digest()[:WORD_BYTES], "big") / 2 ** (8 * WORD_BYTES)

    return uniform


def _random(_: Box, uniform: Callable[[], float]) -> Box:
    x1, x2 = _side(uniform() * MAX_BIN, uniform() * MAX_BIN)
    y1, y2 = _side(uniform() * MAX_BIN, uniform() * MAX_BIN)
    return x1, y1, x2, y2


def _shifted(box: Box, uniform: Callable[[], float]) -> Box:
    least, most = SHIFTED
    sides = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        by = (least + (most - least) * uniform()) * (high - low) * (1 if uniform() < 0.5 else -1)
        sides.append(_side(low + by, high + by))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def _repeated(box: Box, uniform: Callable[[], float]) -> Box:
    sides = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        change = REPEATED * (high - low)
        sides.append(_side(low + change * (2 * uniform() - 1), high + change * (2 * uniform() - 1)))
    return sides[0][0], sides[1][0], sides[0][1], sides[1][1]


def _side(first: float, second: float) -> tuple[int, int]:
    """Two bins in ascending order, at least one apart."""
    low = min(max(round(min(first, second)), 0), MAX_BIN - 1)
    return low, min(max(round(max(first, second)), low + 1), MAX_BIN)
