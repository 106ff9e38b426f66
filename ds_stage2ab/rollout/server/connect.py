"""The rollout servers of a config -> a backend: servers are checked, their permits divided among the ranks."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ds_stage2ab.config.sections import VllmSection
from ds_stage2ab.config.servers import api_key, request_window, server_slots
from ds_stage2ab.rollout.scoring import Scorer
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.backend import VllmBackend
from ds_stage2ab.rollout.server.handshake import Requirements, ServerInfo, check_servers
from ds_stage2ab.rollout.server.logprob_probe import Probe
from ds_stage2ab.rollout.server.weight_sync import ExportTensor, ParameterProvider, Target, WeightSync
from ds_stage2ab.runtime.ranks import World

MIB = 2**20
CONTROL_CALLS = 2  # connections of a rank to a server besides those of its rollouts


def open_servers(
    section: VllmSection,
    requirements: Requirements,
    positions: Callable[[Tensor, Tensor], Tensor],
    provider: ParameterProvider,
    tensors: Callable[[], Sequence[ExportTensor]],
    world: World,
    *,
    start_id: str,
    seed: int,
    probe_tolerance: float,
) -> VllmBackend:
    """Check the servers once, on rank 0, and give every rank its permits.

    Args:
        section: `custom.extra.rollout_matching.vllm`.
        requirements: what the run asks of a server.
        positions: position ids of one sequence alone.
        provider: of the model that trains, which scores the probe and the answers.
        tensors: what is sent; see `WeightSync`.
        world: the learner ranks.
        start_id: first half of the weight version.
        seed: `training.seed`.
        probe_tolerance: nats per token.

    Raises:
        ServerFault: a server does not meet the requirements; with all problems of all servers.
        ConfigError: fewer permits than ranks.
    """
    wanted = section.server.servers
    key, facts = _looked_at(section, requirements, world)
    replicas = [one.replicas for one in facts]
    request_window(requirements.decode_batch_size, replicas, world.size)
    permits = server_slots(requirements.decode_batch_size, replicas, world.size)[world.rank]
    apis = [_api(one.base_url, section, CONTROL_CALLS + n, key) for one, n in zip(wanted, permits, strict=True)]
    targets = [
        Target(api=api, group_port=one.group_port, world_size=fact.world_size, transfer=fact.transfer)
        for api, one, fact in zip(apis, wanted, facts, strict=True)
    ]
    size, limit = section.sync.bucket_mb * MIB, section.sync.timeout_s
    sync = WeightSync(provider, tensors, world, targets, start_id=start_id, bucket_bytes=size, timeout_s=limit)
    probe = Probe(provider.model, world, requirements, positions, tolerance=probe_tolerance)
    score = Scorer(provider.model, requirements.vocabulary, positions)
    every = section.probe.every_syncs
    return VllmBackend(
        apis, replicas, permits, requirements,
        sync=sync, probe=probe, score=score, world=world, seed=seed, probe_every=every,
        check_stop=world.check_stop,
    )  # fmt: skip


def _looked_at(
    section: VllmSection, requirements: Requirements, world: World
) -> tuple[str | None, list[ServerInfo]]:
    """The servers' key, and what each server is; these are checked once, on rank 0."""
    facts = []
    with world.raise_together("looking at the rollout servers"):
        key = api_key(section.server.api_key_env)  # of this rank's own environment
        if world.rank == 0:
            apis = [_api(one.base_url, section, CONTROL_CALLS, key) for one in section.server.servers]
            facts = check_servers(apis, [one.tensor_parallel_size for one in section.server.servers], requirements)
    return key, world.broadcast_object(facts)


def _api(base_url: str, section: VllmSection, connections: int, key: str | None) -> ServerApi:
    return ServerApi(base_url, timeout_s=section.server.timeout_s, connections=connections, api_key=key)
