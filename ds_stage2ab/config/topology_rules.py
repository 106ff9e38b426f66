"""Rules 1 to 3, which depend on the devices of a run."""

from __future__ import annotations

from ds_stage2ab.config.batch import ACCUMULATION, EFFECTIVE, PER_DEVICE, implied_learners, shape_batch
from ds_stage2ab.config.rules import Rule
from ds_stage2ab.config.servers import BACKEND, DECODE_BATCH, SERVERS, replicas_of, request_window


def batch_rule(learners: int | None) -> Rule:
    """Rules 1 and 2 for a number of learner ranks; None: the number that the config implies."""

    def batch_divides(effective: int, per_device: int, accumulation: int | None) -> None:
        """Rules 1 and 2: a step's samples make whole micro-steps on every rank, as many as are given, if any are."""
        numbers = {"effective_batch_size": effective, "per_device": per_device, "accumulation": accumulation}
        shape_batch(**numbers, learners=learners or implied_learners(**numbers))

    return Rule(batch_divides, (EFFECTIVE, PER_DEVICE, ACCUMULATION))


def server_rule(learners: int | None, rollout_devices: int | None) -> Rule:
    """Rule 3 for a topology.

    Args:
        learners: learner ranks; None: the number that the config implies.
        rollout_devices: devices of all servers together; None: one replica per server.
    """

    def servers_feed_every_rank(
        backend: str, servers: list[dict], decode_batch: int, effective: int, per_device: int, accumulation: int | None
    ) -> None:
        """Rule 3: the sequences that all server replicas decode at once are as many as the learner ranks, or more."""
        if backend == "vllm" and servers:
            numbers = {"effective_batch_size": effective, "per_device": per_device, "accumulation": accumulation}
            replicas = replicas_of([server["tensor_parallel_size"] for server in servers], rollout_devices)
            request_window(decode_batch, replicas, learners or implied_learners(**numbers))

    return Rule(servers_feed_every_rank, (BACKEND, SERVERS, DECODE_BATCH, EFFECTIVE, PER_DEVICE, ACCUMULATION))


def topology_rules(learners: int | None, rollout_devices: int | None) -> tuple[Rule, ...]:
    """All three: see `batch_rule` and `server_rule`."""
    return batch_rule(learners), server_rule(learners, rollout_devices)
