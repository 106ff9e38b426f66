"""What a run reports of its rollout servers."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetChanges:
    """The rollout servers of a run, and what has changed since that was last asked."""

    serving: int
    lost: int
    # that ceased to serve
    back: int
    # that began to serve
    warnings: tuple[str, ...]
    # a line for each change
    busy_s: float
    # since then, from the first request to the last answer, the mean of all servers that answered
    proving_s: float
    # since then, of this rank: what it waited for transfers, handshakes and probes


SERVING, LOST, BACK = "rollout/servers", "rollout/servers_lost", "rollout/servers_back"


def server_terms(changes: FleetChanges) -> dict[str, tuple[float, float]]:
    """The metrics of a step as (sum, count)."""
    return {SERVING: (changes.serving, 1.0), LOST: (changes.lost, 1.0), BACK: (changes.back, 1.0)}


def tell_of_changes(terms: Mapping[str, tuple[float, float]]) -> bool:
    """Whether the metrics of a step tell of a server that was lost or came back."""
    return any(terms.get(name, (0.0, 0.0))[0] for name in (LOST, BACK))


AT_WORK = ("data", "match", "segments", "forward_backward", "optimizer")
"""Phases of a step in which a learner does not wait."""


def idle_seconds(changes: FleetChanges, seconds: Mapping[str, float]) -> dict[str, float]:
    """How long the servers and a learner stood still in a step.

    Args:
        changes: behind the step's rollouts.
        seconds: of the step, by phase.
    """
    at_work = sum(seconds.get(phase, 0.0) for phase in AT_WORK) - changes.proving_s
    idle = {"servers_idle": seconds["step"] - changes.busy_s, "learner_idle": seconds["step"] - at_work}
    return {name: max(0.0, value) for name, value in idle.items()}
