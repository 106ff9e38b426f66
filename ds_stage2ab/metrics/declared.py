"""What a metric is: the declaration that every name in the registry has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reduction = Literal["mean", "sum", "last", "max"]
"""How the numbers of packs and ranks become one number.

mean: sum / count, both summed over all packs and ranks first (never a mean of means).
sum: the sum over all packs and ranks.
last: one value, the same on every rank, or rank 0's clock.
max: the largest over the ranks.
"""

Channel = Literal["A", "B", "both", "eval"]
"""Which kind of step may emit it; `eval` is a held-out evaluation between steps."""

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One declared metric."""

    name: str
    unit: str
    # "fraction" lies in [0, 1]; "nats" are natural logarithms; "image" is a share of the image's side; "1" has none
    reduction: Reduction
    channel: Channel
    better: Better
    # the better direction; colours the final table
    meaning: str
    # one sentence


def metric(
    name: str, unit: str, reduction: Reduction, channel: Channel, better: Better, meaning: str
) -> tuple[str, Metric]:
    declared = Metric(name=name, unit=unit, reduction=reduction, channel=channel, better=better, meaning=meaning)
    return name, declared
