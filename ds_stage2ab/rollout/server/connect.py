"""The rollout servers of a config -> a backend: servers are checked, their permits divided among the ranks."""

from collections.abc import Callable, Sequence

from torch import Tensor

from ds_stage2ab.config.sections import ServerSection, VllmSection
from ds_stage2ab.config.servers import api_key, request_window
from ds_stage2ab.config.servers_file import Named, named_in
from ds_stage2ab.rollout.scoring import Scorer
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.backend import VllmBackend
from ds_stage2ab.rollout.server.buckets import ExportTensor
from ds_stage2ab.rollout.server.handshake import Requirements, ServerInfo, check_servers
from ds_stage2ab.rollout.server.logprob_probe import Probe
from ds_stage2ab.rollout.server.proving import Servers
from ds_stage2ab.rollout.server.weight_sync import ParameterProvider, WeightSync
from ds_stage2ab.runtime.ranks import World
from ds_stage2ab.runtime.shutdown import say

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
    server, named = section.server, named_in(section.server.servers_file)
    key, members, facts = _looked_at(section, named, requirements, world)
    request_window(requirements.decode_batch_size, [one.replicas for one in facts], world.size)
    sync = WeightSync(
        provider,
        tensors,
        world,
        start_id=start_id,
        bucket_bytes=section.sync.bucket_mb * MIB,
        timeout_s=section.sync.timeout_s,
    )
    most = CONTROL_CALLS + requirements.decode_batch_size * max(one.replicas for one in facts)
    servers = Servers(
        members,
        facts,
        requirements,
        lambda url: _api(url, section, most, key),
        sync=sync,
        probe=Probe(provider.model, world, requirements, positions, tolerance=probe_tolerance),
        world=world,
        probe_every=section.probe.every_syncs,
        recover_s=server.recover_s,
        named=named,
        say=lambda words: say(words, head="waiting"),
    )
    score = Scorer(provider.model, requirements.vocabulary, positions)
    return VllmBackend(servers, score=score, world=world, seed=seed, check_stop=world.check_stop)


def _looked_at(
    section: VllmSection, named: Named, requirements: Requirements, world: World
) -> tuple[str | None, Sequence[ServerSection], list[ServerInfo]]:
    """The servers' key, which servers there are, and what each is; these are checked once, on rank 0."""
    members: Sequence[ServerSection] = ()
    facts: list[ServerInfo] = []
    with world.raise_together("looking at the rollout servers"):
        key = api_key(section.server.api_key_env)  # of this rank's own environment
        if world.rank == 0:
            members = named() or section.server.servers
            apis = [_api(one.base_url, section, CONTROL_CALLS, key) for one in members]
            facts = check_servers(apis, [one.tensor_parallel_size for one in members], requirements)
    members, facts = world.broadcast_object((members, facts))
    return key, members, facts


def _api(base_url: str, section: VllmSection, connections: int, key: str | None) -> ServerApi:
    return ServerApi(base_url, timeout_s=section.server.timeout_s, connections=connections, api_key=key)
