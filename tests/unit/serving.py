"""What is needed to draw rollouts from fake servers: they read prompts as the learner does and have its weights."""

from collections.abc import Iterable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ds_stage2ab.codec.vocabulary import VISION_TOKENS
from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.config.servers import GLOO_TRANSFER
from ds_stage2ab.errors import NoServerLeft
from ds_stage2ab.rollout.base import request_seed, weight_version
from ds_stage2ab.rollout.server.api import ServerApi
from ds_stage2ab.rollout.server.backend import VllmBackend
from ds_stage2ab.rollout.server.chat import Conversation
from ds_stage2ab.rollout.server.handshake import Requirements, ServerInfo
from ds_stage2ab.rollout.server.proving import Servers
from ds_stage2ab.runtime.ranks import World
from tests.fakes import FakeServer
from tests.unit.parts import START_ID, Bench

LONG = 20.0  # seconds that no test waits for
SEED, STEPS = 0, 3
PLACES = 2  # of every backend at each server
NO_SYNC = SimpleNamespace(start_id=START_ID)
ALONE = SimpleNamespace(rank=0, size=1)
ONE = ServerInfo(world_size=1, replicas=1, transfer=GLOO_TRANSFER)


def needs_of(bench: Bench, *, infer_timeout_s: float = LONG, draws: bool = True) -> Requirements:
    """A bench as the servers of a run must fit it: 512 tokens in fp32, four sequences at once."""
    vocabulary = bench.vocabulary
    return Requirements(
        conversation=Conversation(
            system_prompt=None,
            forbidden=tuple(text for text in VISION_TOKENS if text in vocabulary.added_texts),
            stop_id=vocabulary.stop_id,
            coordinate_ids=vocabulary.coordinate_ids,
        ),
        vocabulary=vocabulary,
        sample=bench.samples[0],
        decode_batch_size=4,
        room=512,
        precision="fp32",
        infer_timeout_s=infer_timeout_s,
        transfers=(GLOO_TRANSFER,),
        draws=draws,
    )


def seeds_of(bench: Bench) -> list[int]:
    """By which a server can tell the samples apart."""
    return [request_seed(SEED, sample.draw, sample.id) for sample in bench.samples]


def fake_of(bench: Bench, **settings: Any) -> FakeServer:
    """A server for the samples of a bench."""
    prompts = dict(zip(seeds_of(bench), (list(sample.prompt_ids) for sample in bench.samples), strict=True))
    server = FakeServer(prompt_ids=lambda body: prompts[body["seed"]], **settings)
    server.state.weight_version = weight_version(START_ID, STEPS)
    return server


def section_of(server: FakeServer) -> ServerSection:
    """A server as a config names it."""
    return ServerSection(base_url=server.base_url, group_port=None, tensor_parallel_size=1)


def servers_of(
    bench: Bench,
    servers: list[FakeServer],
    world: Any,
    *,
    sync: Any = NO_SYNC,
    infer_timeout_s: float = LONG,
    **more: Any,
) -> Servers:
    """The servers of a run, which have passed the handshake; nobody probes them unless a test says so."""
    told = {
        "probe": lambda apis, replicas, *, read_s: [0.0 for _ in apis],
        "probe_every": 1000,
        "recover_s": 0.0,
        "named": lambda: None,
        "say": print,
    }
    return Servers(
        [section_of(server) for server in servers],
        [ONE for _ in servers],
        replace(needs_of(bench, infer_timeout_s=infer_timeout_s), decode_batch_size=PLACES),
        lambda url: ServerApi(url, timeout_s=LONG, connections=4),
        sync=sync,
        world=world,
        **{**told, **more},
    )


def backend_of(
    bench: Bench,
    servers: list[FakeServer],
    *,
    sync: Any = NO_SYNC,
    world: World | None = None,
    infer_timeout_s: float = LONG,
    **more: Any,
) -> VllmBackend:
    """Draws from these servers; that the weights are the learner's is the matter of `sync`, and nobody probes."""
    world = world or ALONE
    fleet = servers_of(bench, servers, world, sync=sync, infer_timeout_s=infer_timeout_s, **more)
    return VllmBackend(fleet, score=None, world=world, seed=SEED)


def drawn_from(
    bench: Bench, servers: list[FakeServer], sampling, *, infer_timeout_s: float = LONG, **more: Any
) -> list:
    """Rollouts of all samples; that the weights are the learner's is no part of it."""
    backend = backend_of(bench, servers, infer_timeout_s=infer_timeout_s, **more)
    return without_loss(backend.generate(bench.samples, sampling, finished_steps=STEPS))


def without_loss(drawn: Iterable[Any]) -> list:
    """What is drawn where nobody proves a server again: raises the fault of all servers."""
    answers = []
    for one in drawn:
        if isinstance(one, NoServerLeft):
            raise one
        answers.append(one)
    return answers
