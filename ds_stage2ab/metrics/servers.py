"""What a run reports of its rollout servers."""

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


def server_terms(changes: FleetChanges) -> dict[str, tuple[float, float]]:
    """The metrics of a step as (sum, count)."""
    return {
        "rollout/servers": (changes.serving, 1.0),
        "rollout/servers_lost": (changes.lost, 1.0),
        "rollout/servers_back": (changes.back, 1.0),
    }
