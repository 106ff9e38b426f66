"""What happens at which step: the channel, the learning rate, evaluation and saving. Pure: no state, no torch.

Invariants:
- step s is a Channel B step iff floor((s + 1) b) > floor(s b), b being the exact decimal that was written;
- the first n steps hold exactly floor(n b) B steps;
- b = 0 gives A at every step, b = 1 gives B at every step;
- the answer depends on the step and on b alone, so every rank and every micro-step agree;
- a ratio means the same as text, int, float or Fraction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Ratio = str | int | float | Fraction


def exact_ratio(b_ratio: Ratio) -> Fraction:
    """The decimal that was written: 0.29 is 29/100, not the binary number nearest to it.

    A float is read through its shortest decimal form, which gives back every decimal of up to 15 digits.
    """
    return b_ratio if isinstance(b_ratio, Fraction) else Fraction(str(b_ratio))


def channel_for_step(step: int, b_ratio: Ratio) -> Literal["A", "B"]:
    """The channel of a step: "B" iff floor((step + 1) b) > floor(step b).

    Args:
        step: number of finished steps, from 0.
        b_ratio: share of B steps, in [0, 1]. Example: 0.5 gives A B A B ...
    """
    ratio = exact_ratio(b_ratio)
    assert step >= 0, f"step {step} is before the start"
    assert 0 <= ratio <= 1, f"b_ratio {b_ratio} is outside [0, 1]"
    before = step * ratio.numerator // ratio.denominator
    after = (step + 1) * ratio.numerator // ratio.denominator
    return "B" if after > before else "A"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cadence:
    """The steps after which something periodic is done; always the last one too."""

    enabled: bool
    at_start: bool
    # also once before the first step
    every_steps: int | None
    # None: at the end only
    total_steps: int | None
    # None: not known, so the last step is not either

    def due(self, step: int) -> bool:
        """Whether it is due after this step (counted from 0) has finished."""
        finished = step + 1
        on_interval = self.every_steps is not None and finished % self.every_steps == 0
        return self.enabled and (on_interval or finished == self.total_steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningRate:
    """Linear warm-up, then constant, linear or cosine."""

    peak: float
    schedule: str
    warmup_steps: int
    final_ratio: float
    # of the peak, reached when all steps are done
    total_steps: int | None
    # None: not known

    def at(self, step: int) -> float:
        """The learning rate of a step, counted from 0; the number of steps must be known.

        Warm-up: peak (step + 1) / warmup_steps. After it, with x in [0, 1) the share of the remaining steps that is
        done: peak (r + (1 - r) f(x)), f(x) = 1 - x (linear) or (1 + cos(pi x)) / 2 (cosine), r the final ratio.
        """
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return self.peak
        done = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.peak * (self.final_ratio + (1 - self.final_ratio) * left)


def seconds_of(time: str) -> int:
    """Seconds of hours, minutes and seconds, `hh:mm:ss`."""
    hours, minutes, seconds = map(int, time.split(":"))
    return (hours * 60 + minutes) * 60 + seconds
