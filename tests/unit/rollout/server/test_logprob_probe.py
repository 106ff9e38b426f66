"""The proof of behaviour: what a server computes beside what the learner does, each replica by itself."""

import math
import threading
from dataclasses import replace

import pytest

from ds_stage2ab.engine.build import position_index
from ds_stage2ab.errors import EXIT_ENVIRONMENT, ServerFault
from ds_stage2ab.rollout.server.api import REPLICA, ServerApi
from ds_stage2ab.rollout.server.logprob_probe import PROBE_TOKENS, Probe
from tests.fake_faults import Fault
from tests.fakes import FakeServer
from tests.unit.parts import load_bench
from tests.unit.serving import LONG, needs_of

EVEN, FAR = -0.5, -50.0  # nats: what the replicas say of each token
TOKEN = 11


class Replicas(FakeServer):
    """Says of the second replica's tokens that they are far less probable."""

    def __init__(self, bench, count: int, **settings) -> None:
        (sample,) = bench.samples
        super().__init__(
            world_size=count,
            prompt_ids=lambda body: list(sample.prompt_ids),
            answer=lambda body: ([TOKEN] * body["max_completion_tokens"], "length"),
            logprobs=lambda body, ids: [FAR if self.replica.number == "1" else EVEN] * len(ids),
            **settings,
        )
        self.asked: list[str | None] = []
        self.replica = threading.local()  # each request has a thread

    def respond(self, exchange):
        self.replica.number = exchange.headers.get(REPLICA)
        self.asked.append(self.replica.number)
        super().respond(exchange)


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=1)


def probed(bench, world, server: Replicas, replicas: int, tolerance: float, *, answer_room: int = 100):
    positions = position_index(bench.model)
    requirements = replace(needs_of(bench), room=len(bench.samples[0].prompt_ids) + answer_room)
    probe = Probe(bench.model, world, requirements, positions, tolerance=tolerance)
    return judged(probe, [server], [replicas])[server.base_url]


def judged(probe, servers, replicas):
    apis = [ServerApi(server.base_url, timeout_s=LONG, connections=1) for server in servers]
    return probe.judge(probe.ask(apis, replicas, read_s=LONG))


def test_one_replica_is_asked_as_it_comes(bench, world):
    with Replicas(bench, 1) as server:
        gap = probed(bench, world, server, 1, math.inf)
    assert server.asked == [None]
    assert 0 < gap < -FAR


def test_every_replica_is_asked_and_the_one_that_differs_is_named(bench, world):
    """The first is within the tolerance: a probe of whichever the server chooses would let the second pass."""
    with Replicas(bench, 1) as server:
        first = probed(bench, world, server, 1, math.inf)
    with Replicas(bench, 2) as server:
        fault = probed(bench, world, server, 2, 2 * first)
    assert sorted(server.asked) == ["0", "1"]
    assert fault.code == EXIT_ENVIRONMENT and fault.where == server.base_url
    assert fault.why.startswith("replica 1 of the server computes")


@pytest.mark.parametrize(("answer_room", "asked"), [(PROBE_TOKENS - 1, PROBE_TOKENS - 1), (1000, PROBE_TOKENS)])
def test_a_server_with_room_for_short_answers_is_asked_for_a_short_one(bench, world, answer_room, asked):
    with Replicas(bench, 1) as server:
        assert probed(bench, world, server, 1, math.inf, answer_room=answer_room) > 0
    (request,) = server.chats
    assert request.body["max_completion_tokens"] == request.body["min_tokens"] == asked


def test_an_answer_without_log_probabilities_is_not_taken_for_another_prompt(bench, world):
    with Replicas(bench, 1, faults=(Fault("no_logprobs"),)) as server:
        fault = probed(bench, world, server, 1, math.inf)
    assert f"probe: 0 log-probabilities of {PROBE_TOKENS} tokens" in fault.why
    assert fault.where == server.base_url and "base_url" in fault.fix


def test_servers_are_probed_at_the_same_time(bench, world):
    """Each waits until the other has been asked too."""
    both = threading.Barrier(2)

    def wait_for_both(body) -> float:
        both.wait(timeout=LONG)
        return 0.0

    positions = position_index(bench.model)
    probe = Probe(bench.model, world, needs_of(bench), positions, tolerance=math.inf)
    with Replicas(bench, 1, seconds=wait_for_both) as one, Replicas(bench, 1, seconds=wait_for_both) as other:
        assert all(gap > 0 for gap in judged(probe, (one, other), [1, 1]).values())


def test_a_server_that_fails_does_not_hide_the_gap_of_another(bench, world):
    probe = Probe(bench.model, world, needs_of(bench), position_index(bench.model), tolerance=math.inf)
    with Replicas(bench, 1, faults=(Fault("404"),)) as bad, Replicas(bench, 1) as good:
        fault, gap = judged(probe, (bad, good), [1, 1]).values()
    assert isinstance(fault, ServerFault) and fault.where == bad.base_url and gap > 0
