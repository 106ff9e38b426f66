"""A probe that is answered beside the first requests of a step: whose answers are read, and what of the others."""

import time

import pytest

from ds_stage2ab.errors import NoServerLeft
from tests.faults.served import is_rollout
from tests.unit.parts import greedy_sampling
from tests.unit.rollout.server.proofs import counts, recovered, step
from tests.unit.serving import LONG

pytestmark = pytest.mark.usefixtures("no_pauses")


def asked(server):
    """The rollouts that it was asked for."""
    return sum(is_rollout(0, request.body) for request in server.chats)


def wait_for(condition):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < LONG
        time.sleep(0.005)


def test_the_requests_of_a_step_leave_beside_the_probe(drawing, scenes):
    """Not before the first proof of the run, nor those of who may ask several times."""
    with scenes.server() as server:
        backend, probe = drawing(server)
        probe.before = lambda: pytest.fail("asked already") if asked(server) else None
        recovered(backend, scenes, 0)
        once, seen = asked(server), []
        probe.before = lambda: seen.append(asked(server) - once)
        step(backend, scenes, 1)
        assert seen == [0]
        probe.before = lambda: wait_for(lambda: asked(server) - once == 2 * 6)
        drawn, changes = recovered(backend, scenes, 2)
    assert [one.weight_version for one in drawn] == ["start/2"] * 6
    assert counts(changes) == (1, 0, 0) and len(probe.asked) == 3


def test_answers_from_beside_a_probe_that_fails_are_not_read(drawing, scenes):
    with scenes.server() as bad, scenes.server() as good:
        backend, probe = drawing(bad, good)
        assert len(recovered(backend, scenes, 0)[0]) == 6
        before, answers = asked(bad), len(scenes.bench.samples)
        probe.wrong.add(bad.base_url)
        probe.before = lambda: wait_for(lambda: asked(bad) > before and not backend.drawn[1].open)
        drawn, changes = recovered(backend, scenes, 1)
    assert [one.source for one in drawn] == [f"vllm {good.base_url}"] * answers
    assert [one.weight_version for one in drawn] == ["start/1"] * answers
    assert counts(changes) == (1, 1, 0) and "is lost: computes" in changes.warnings[0]


def test_the_only_server_fails_the_probe_beside_its_answers(drawing, scenes):
    with scenes.server() as server:
        backend, probe = drawing(server)
        recovered(backend, scenes, 0)
        before, lost = asked(server), []

        def put_right(fault):
            lost.append(fault)
            probe.wrong.clear()

        probe.wrong.add(server.base_url)
        drawn, changes = recovered(backend, scenes, 1, put_right)
        assert [one.why for one in lost] == ["computes"] and len(drawn) == 6
        assert counts(changes) == (1, 1, 1) and asked(server) - before >= 6


def test_a_probe_that_nobody_has_judged_proves_nothing(drawing, scenes):
    """The step was given up before its first rollout; the proof at the end of the run asks again."""
    with scenes.server() as server:
        backend, probe = drawing(server)
        recovered(backend, scenes, 0)
        with backend.current_weights(1, generates_once=True):
            pass
        backend.verify_weights(1)
        assert len(probe.asked) == 3 and backend.servers.open_probe is None


def test_a_rank_without_samples_takes_part_in_the_proof(drawing, scenes):
    with scenes.server() as server:
        backend, probe = drawing(server)
        recovered(backend, scenes, 0)
        probe.wrong.add(server.base_url)
        with backend.current_weights(1, generates_once=True):
            (lost,) = backend.generate([], greedy_sampling(), finished_steps=1)
    assert isinstance(lost, NoServerLeft)
