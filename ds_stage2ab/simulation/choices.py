"""Simulated steps of other `decode_batch_size` and of other splits of the devices, and the best of them.

Invariants:
- of several choices that are within 1 % of the fastest the one with the fewest rows, then learners, is the best
- a split leaves no learner without samples and no rank without a permit
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from ds_stage2ab.simulation.costs import Costs, Request, Setup, StepTime
from ds_stage2ab.simulation.step import a_step, b_step

LEVEL = 1.01
"""Choices that differ by less are level."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Simulated steps of one setup; means over the steps."""

    setup: Setup
    samples: int
    b_ratio: Fraction
    a: StepTime
    b: StepTime

    @property
    def seconds(self) -> float:
        """Of a step, over both channels."""
        share = float(self.b_ratio)
        return (1 - share) * self.a.whole + share * self.b.whole

    @property
    def samples_per_s(self) -> float:
        return self.samples / self.seconds

    @property
    def learners_idle(self) -> float:
        return self._idle("learners_busy")

    @property
    def servers_idle(self) -> float:
        return self._idle("servers_busy")

    def _idle(self, busy: str) -> float:
        """Share of the time of both channels."""
        share = float(self.b_ratio)
        return 1 - ((1 - share) * getattr(self.a, busy) + share * getattr(self.b, busy)) / self.seconds


def simulated(steps: Sequence[Sequence[Request]], setup: Setup, costs: Costs, b_ratio: Fraction) -> Choice:
    """Each of these steps on both channels."""
    return Choice(
        setup=setup,
        samples=len(steps[0]),
        b_ratio=b_ratio,
        a=_mean([a_step(one, setup, costs) for one in steps]),
        b=_mean([b_step(one, setup, costs) for one in steps]),
    )


def _mean(times: Sequence[StepTime]) -> StepTime:
    return StepTime(**{name: sum(getattr(one, name) for one in times) / len(times) for name in StepTime.__slots__})


def powers_of_two(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length())]


def sizes(
    steps: Sequence[Sequence[Request]], setup: Setup, costs: Costs, b_ratio: Fraction, most_rows: int
) -> list[Choice]:
    """Every `decode_batch_size` that the memory holds and that gives each rank a permit."""
    fitting = [size for size in powers_of_two(most_rows) if size * (setup.servers or setup.learners) >= setup.learners]
    return [simulated(steps, replace(setup, decode_batch_size=size), costs, b_ratio) for size in fitting]


def splits(
    steps: Sequence[Sequence[Request]],
    setup: Setup,
    costs: Costs,
    b_ratio: Fraction,
    *,
    devices: int,
    per_server: int,
    most_rows: int,
) -> list[Choice]:
    """Of each number of learners that divides the samples the best size of batch, the rest of the devices serving.

    Args:
        per_server: devices of one replica.
    """
    found = []
    for split in _setups(setup, len(steps[0]), devices, per_server):
        own = sizes(steps, split, costs, b_ratio, most_rows)
        found += [best(own)] if own else []
    return found


def _setups(setup: Setup, samples: int, devices: int, per_server: int) -> Iterator[Setup]:
    for learners in range(1, devices - per_server + 1):
        if samples % (learners * setup.per_device) == 0:
            yield replace(setup, learners=learners, servers=(devices - learners) // per_server)


def best(choices: Sequence[Choice]) -> Choice:
    """The fastest."""
    fastest = min(one.seconds for one in choices)
    level = [one for one in choices if one.seconds <= fastest * LEVEL]
    return min(level, key=lambda one: (one.setup.decode_batch_size, one.setup.learners))
