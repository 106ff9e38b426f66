"""The proof of behaviour: what a server computes beside what the learner does, each replica by itself."""

import math

import pytest

from ds_stage2ab.engine.build import position_index
from ds_stage2ab.errors import EXIT_ENVIRONMENT, ServerFault
from ds_stage2ab.rollout.probe import PROBE_TOKENS, Probe
from ds_stage2ab.rollout.vllm_api import REPLICA, ServerApi
from tests.fakes import FakeServer
from tests.unit.parts import load_bench
from tests.unit.serving import LONG, needs_of

EVEN, FAR = -0.5, -50.0  # nats: what the replicas say of each token
TOKEN = 7


class Replicas(FakeServer):
    """Says of the second replica's tokens that they are far less probable."""

    def __init__(self, bench, count: int) -> None:
        (sample,) = bench.samples
        super().__init__(
            world_size=count,
            prompt_ids=lambda body: list(sample.prompt_ids),
            answer=lambda body: ([TOKEN] * PROBE_TOKENS, "length"),
            logprobs=lambda body, ids: [FAR if self.asked[-1] == "1" else EVEN] * len(ids),
        )
        self.asked: list[str | None] = []

    def respond(self, exchange):
        self.asked.append(exchange.headers.get(REPLICA))
        super().respond(exchange)


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=1)


def probed(bench, world, server: Replicas, replicas: int, tolerance: float) -> float:
    positions = position_index(bench.model)
    probe = Probe(bench.model, world, needs_of(bench), positions, tolerance=tolerance)
    return probe([ServerApi(server.base_url, timeout_s=LONG, connections=1)], [replicas], read_s=LONG)


def test_one_replica_is_asked_as_it_comes(bench, world):
    with Replicas(bench, 1) as server:
        gap = probed(bench, world, server, 1, math.inf)
    assert server.asked == [None]
    assert 0 < gap < -FAR


def test_every_replica_is_asked_and_the_one_that_differs_is_named(bench, world):
    """The first is within the tolerance: a probe of whichever the server chooses would let the second pass."""
    with Replicas(bench, 1) as server:
        first = probed(bench, world, server, 1, math.inf)
    with Replicas(bench, 2) as server, pytest.raises(ServerFault, match="replica 1 of the server computes") as caught:
        probed(bench, world, server, 2, 2 * first)
    assert server.asked == ["0", "1"]
    assert caught.value.code == EXIT_ENVIRONMENT and caught.value.where == server.base_url
