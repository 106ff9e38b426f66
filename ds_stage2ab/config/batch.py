"""The batch arithmetic: R samples per step = p per rank x W ranks x G micro-steps, always exactly."""

from __future__ import annotations

from dataclasses import dataclass

from ds_stage2ab.errors import ConfigError

EFFECTIVE = "training.effective_batch_size"
PER_DEVICE = "training.per_device_train_batch_size"
ACCUMULATION = "training.gradient_accumulation_steps"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """How the samples of one step are split; it exists only if R = p W G holds exactly."""

    effective_batch_size: int
    # R: raw samples per step, all ranks together
    per_device: int
    # p: raw samples per rank and micro-step
    learners: int
    # W: learner ranks
    accumulation_steps: int
    # G: micro-steps per step

    @property
    def samples_per_rank(self) -> int:
        return self.per_device * self.accumulation_steps

    @property
    def sentence(self) -> str:
        """`32 samples per step = 4 per rank x 2 ranks x 4 micro-steps`."""
        return (
            f"{counted(self.effective_batch_size, 'sample')} per step = {self.per_device} per rank"
            f" x {counted(self.learners, 'rank')} x {counted(self.accumulation_steps, 'micro-step')}"
        )


def counted(count: int, noun: str) -> str:
    """`1 rank`, `2 ranks`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def accumulation_steps(effective_batch_size: int, per_device: int, learners: int) -> int:
    """Rule 1: G = R / (p W), refused when it is not a whole number; never rounded.

    Raises:
        ConfigError: R is not a multiple of p W; the fix names the nearest valid values below and above.
    """
    unit = per_device * learners
    if effective_batch_size % unit == 0:
        return effective_batch_size // unit
    below = effective_batch_size - effective_batch_size % unit
    nearest = f"{below} or {below + unit}, the nearest that divide evenly" if below else f"{unit} or a multiple of it"
    raise ConfigError(
        f"{effective_batch_size} is not a multiple of {unit}"
        f" ({PER_DEVICE} {per_device} x {counted(learners, 'learner rank')})",
        where=EFFECTIVE,
        fix=f"set {EFFECTIVE} to {nearest}; or change {PER_DEVICE}",
    )


def accumulation_matches(given: int, derived: int, learners: int) -> None:
    """Rule 2: an explicit number of micro-steps must be the derived one.

    Raises:
        ConfigError: the two differ.
    """
    if given != derived:
        raise ConfigError(
            f"{given} is not the number of micro-steps that the batch sizes give"
            f" with {counted(learners, 'learner rank')}, which is {derived}",
            where=ACCUMULATION,
            fix=f"delete {ACCUMULATION} (it is derived), or set it to {derived}",
        )


def shape_batch(*, effective_batch_size: int, per_device: int, accumulation: int | None, learners: int) -> BatchShape:
    """Rules 1 and 2 on the numbers of a config and a topology.

    Raises:
        ConfigError: the numbers do not fit each other.
    """
    assert learners >= 1, f"{learners} learners cannot train"
    derived = accumulation_steps(effective_batch_size, per_device, learners)
    if accumulation is not None:
        accumulation_matches(accumulation, derived, learners)
    return BatchShape(
        effective_batch_size=effective_batch_size,
        per_device=per_device,
        learners=learners,
        accumulation_steps=derived,
    )


def implied_learners(*, effective_batch_size: int, per_device: int, accumulation: int | None) -> int:
    """The number of learners that a config implies: R / (p G) if G is given and it divides, else 1."""
    if accumulation is None or effective_batch_size % (per_device * accumulation):
        return 1
    return effective_batch_size // (per_device * accumulation)
