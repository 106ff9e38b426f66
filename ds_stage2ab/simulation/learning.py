"""What a learner and a transfer took, from the metrics of steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from ds_stage2ab.metrics.journal import StepRecord
from ds_stage2ab.simulation.costs import LearnerCosts, TransferCosts
from ds_stage2ab.simulation.fit import fitted

PHASES = ("data", "segments", "rollout", "match", "wait", "forward_backward", "optimizer")


def median_of(steps: Sequence[StepRecord], name: str) -> float:
    """Of a metric; 0 where no step has it."""
    values = [one.metrics[name] for one in steps if name in one.metrics]
    return statistics.median(values) if values else 0.0


def transfer_costs(b_steps: Sequence[StepRecord], *, served: bool) -> TransferCosts:
    """What all wait for before the rollouts: transfer and versions are `time/segments_s` of a B step."""
    return TransferCosts(
        fixed_s=median_of(b_steps, "time/segments_s") if served else 0.0,
        version_s=0.0,
        num_bytes=median_of(b_steps, "rollout/sync_bytes"),
        server_bytes_per_s=math.inf,
        learner_bytes_per_s=math.inf,
    )


def learner_costs(
    a_steps: Sequence[StepRecord], b_steps: Sequence[StepRecord], learners: int, share: float, *, served: bool
) -> LearnerCosts:
    """Of rank 0.

    Args:
        share: samples of a rank and step.
        served: whether `time/segments_s` of B steps is that of the transfer.
    """
    pack_s, token_s = _passes(b_steps, learners, with_segments=not served)
    a_pack_s, a_token_s = _passes(a_steps, learners, with_segments=True) if a_steps else (pack_s, token_s)
    return LearnerCosts(
        sample_s=median_of([*a_steps, *b_steps], "time/data_s") / share,
        match_s=median_of(b_steps, "time/match_s") / share,
        pack_s=pack_s,
        token_s=token_s,
        a_pack_s=a_pack_s,
        a_token_s=a_token_s,
        update_s=statistics.median(_update_s(one) for one in [*a_steps, *b_steps]),
        exchange_bytes=0.0,
        exchange_bytes_per_s=math.inf,
    )


def _passes(steps: Sequence[StepRecord], learners: int, *, with_segments: bool) -> list[float]:
    """Seconds of a pack, and of a token of it."""
    rows = [[one.metrics["train/packs"] / learners, one.metrics["train/tokens"] / learners] for one in steps]
    names = ("time/forward_backward_s", *(("time/segments_s",) if with_segments else ()))
    return fitted(rows, [sum(one.metrics[name] for name in names) for one in steps])


def _update_s(step: StepRecord) -> float:
    """The optimizer, and what no phase counts."""
    phases = [step.metrics[f"time/{phase}_s"] for phase in PHASES if f"time/{phase}_s" in step.metrics]
    return step.metrics["time/optimizer_s"] + max(0.0, step.metrics["time/step_s"] - sum(phases))
