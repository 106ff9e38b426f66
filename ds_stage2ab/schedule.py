"""Which channel trains at which step. Pure: no state, no torch, exact arithmetic.

Invariants:
- step s is a Channel B step iff floor((s + 1) b) > floor(s b), b being the exact decimal that was written;
- the first n steps hold exactly floor(n b) B steps;
- b = 0 gives A at every step, b = 1 gives B at every step;
- the answer depends on the step and on b alone, so every rank, every micro-step and a resumed run agree;
- a ratio means the same as text, int, float or Fraction.
"""

from __future__ import annotations

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
