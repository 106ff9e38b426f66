"""Wall seconds by phase, monotonic."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """`with clock("data"): ...` adds the block's seconds to `seconds["data"]`.

    A phase inside another is not counted in the outer one, so that the phases add up to the time passed in them.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = 0.0
        # seconds that phases inside the current one have taken

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start, outside, self._inner = time.monotonic(), self._inner, 0.0
        try:
            yield
        finally:
            elapsed = time.monotonic() - start
            self.seconds[phase] = self.seconds.get(phase, 0.0) + elapsed - self._inner
            self._inner = outside + elapsed
