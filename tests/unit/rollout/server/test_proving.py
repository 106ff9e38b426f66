"""The servers of a run that are lost and come back: real routes and transfers, a worker that meets the learner."""

from unittest import mock

import pytest

from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.errors import ConfigError, NoServerLeft, ServerFault
from ds_stage2ab.rollout.server.backend import MOST_LOSSES
from tests.fakes import Fault
from tests.faults.served import is_rollout
from tests.unit.parts import greedy_sampling
from tests.unit.rollout.server.proofs import counts, recovered, step
from tests.unit.serving import section_of

pytestmark = pytest.mark.usefixtures("no_pauses")


def test_a_server_is_lost_among_the_rollouts_and_comes_back_proven(drawing, scenes):
    fails = {"now": True}
    bad = scenes.server(faults=(Fault("500", when=lambda n, body: fails["now"] and is_rollout(n, body)),))
    with bad, scenes.server() as good:
        backend, probe = drawing(bad, good)
        used, changes = step(backend, scenes, 0)
        assert (used, counts(changes)) == ({good.base_url}, (1, 1, 0))
        (told,) = changes.warnings
        assert told.startswith(f"rollout server {bad.base_url} is lost: the rollout of sample train-")
        fails["now"] = False
        used, changes = step(backend, scenes, 1)
        assert counts(changes) == (2, 0, 1), [str(one.fault) for one in backend.servers.fleet.members]
        assert used == {bad.base_url, good.base_url}
        assert "is back: it has passed the handshake, taken the weights start/1" in changes.warnings[0]
        assert bad.state.weight_version == "start/1"
        assert probe.asked == [[bad.base_url, good.base_url]] * 2
        assert [request.path for request in bad.requests].count("/init_weight_transfer_engine") == 2


def test_a_server_that_is_started_again_between_steps_is_lost_and_proven(drawing, scenes):
    with scenes.server() as one, scenes.server() as two:
        backend, _ = drawing(one, two)
        step(backend, scenes, 0)
        one.state.weight_version, one.workers.group = "default", None
        again = {request.path for request in one.requests}
        used, changes = step(backend, scenes, 0)
        assert counts(changes) in ((2, 0, 0), (1, 1, 0))
        assert again and one.state.weight_version in ("start/0", "default")
        if one.base_url in used:
            assert one.state.weight_version == "start/0"


def test_a_server_without_the_current_weights_does_not_serve(drawing, scenes):
    """It comes back and says yes to everything, but computes with others: it stays lost."""
    fails = {"now": True}
    bad = scenes.server(faults=(Fault("500", when=lambda n, body: fails["now"] and is_rollout(n, body)),))
    with bad, scenes.server() as good:
        backend, probe = drawing(bad, good)
        step(backend, scenes, 0)
        fails["now"] = False
        probe.wrong.add(bad.base_url)
        used, changes = step(backend, scenes, 1)
        assert (used, counts(changes)) == ({good.base_url}, (1, 0, 0))
        assert not changes.warnings
        assert backend.servers.fleet.members[0].failures == 2


def test_what_another_rank_has_lost_is_lost_to_all(drawing, scenes, world):
    """Here is rank 0 of two; the other one has seen a server fail, and says so when the ranks agree."""
    with scenes.server() as one, scenes.server() as two:
        backend, _ = drawing(one, two)
        step(backend, scenes, 0)
        seen = ServerFault("no answer to rank 1", where=one.base_url)
        told = [[{}, {}], [{}, {one.base_url: seen}]]  # busy seconds, faults
        with mock.patch.object(world, "gather", side_effect=told):
            changes = backend.settle(counts=True)
        assert counts(changes) == (1, 1, 0) and "no answer to rank 1" in changes.warnings[0]
        assert [member.url for member in backend.servers.fleet.serving] == [two.base_url]


def test_none_is_left_between_two_steps_and_one_comes_back(drawing, scenes):
    fails = {"count": 0}

    def broken(number, body):
        fails["count"] -= 1
        return fails["count"] >= 0

    said = []
    with scenes.server(faults=(Fault("500", path="/pause", when=broken),)) as server:
        backend, _ = drawing(server, say=said.append)
        step(backend, scenes, 0)
        fails["count"] = 3 + 3 + 3  # tries of three transfers
        _, changes = step(backend, scenes, 1)
    assert counts(changes) == (1, 1, 1)
    assert "no other is left" in changes.warnings[0] and "is back" in changes.warnings[1]
    assert len(said) == 3
    assert said[0] == "no rollout server is left; the run waits 20 s more for one before it saves and ends"


def test_none_comes_back_in_time(drawing, scenes):
    fails = {"now": False}
    with scenes.server(faults=(Fault("500", path="/pause", when=lambda *_: fails["now"]),)) as server:
        backend, _ = drawing(server, recover_s=0.1)
        step(backend, scenes, 0)
        fails["now"] = True
        with pytest.raises(ServerFault, match="pausing the server: answered 500") as caught, backend.current_weights(1):
            pytest.fail("nothing may be drawn")
    assert "no rollout server is left, and none came back within 0.1 s" in caught.value.why
    assert caught.value.where == server.base_url and caught.value.fix


def test_at_the_start_every_server_must_work(drawing, scenes):
    """A firewall or a wrong address is no loss: a run begins with all servers of its config."""
    bad = scenes.server(faults=(Fault("500", path="/pause"),))
    with bad, scenes.server() as good:
        backend, _ = drawing(bad, good)
        with pytest.raises(ServerFault, match="pausing the server") as caught:
            backend.verify_weights(0)
    assert caught.value.where == bad.base_url


def test_the_only_server_is_started_again_among_the_rollouts(drawing, scenes):
    """It has its initial weights: what it has answered by then is used, what it answers before its proof is not."""
    with scenes.server() as server:
        backend, probe = drawing(server)
        step(backend, scenes, 0)
        third = sum(is_rollout(0, request.body) for request in server.chats) + 3

        def restarted(body):
            if sum(is_rollout(0, request.body) for request in server.chats) == third:
                server.state.weight_version, server.workers.group = "default", None
            return 0.0

        server.seconds = restarted
        drawn, changes = recovered(backend, scenes, 1)
    assert [one.sample_id for one in drawn] == [sample.id for sample in scenes.bench.samples]
    assert {one.weight_version for one in drawn} == {"start/1"}
    assert {one.attempt for one in drawn} == {1, 2}
    assert counts(changes) == (1, 1, 1)
    assert "has the weights default, not the current ones, start/1" in changes.warnings[0]
    assert probe.asked == [[server.base_url]] * 3


def test_the_only_server_fails_for_a_while_among_the_rollouts(drawing, scenes):
    fails, lost = {"now": False}, []
    with scenes.server(faults=(Fault("500", when=lambda n, body: fails["now"] and is_rollout(n, body)),)) as server:
        backend, _ = drawing(server)
        step(backend, scenes, 0)
        fails["now"] = True

        def before(fault):
            lost.append(fault)
            fails["now"] = False

        drawn, changes = recovered(backend, scenes, 1, before)
    assert len(drawn) == 6 and len(lost) == 1 and counts(changes) == (1, 1, 1)


def test_a_sample_that_ends_every_server_ends_the_run(drawing, scenes):
    """They come back, prove themselves, and it ends them again."""
    with scenes.server(faults=(Fault("500", when=is_rollout),)) as server:
        backend, _ = drawing(server)
        with pytest.raises(NoServerLeft, match="answered 500"):
            recovered(backend, scenes, 0)
    assert [request.path for request in server.requests].count("/init_weight_transfer_engine") == 1 + MOST_LOSSES


def test_what_is_open_when_another_rank_has_no_server_is_sent_again(drawing, scenes):
    """Two answers have been read here when the ranks prove the servers again: a reading thread takes the next ones."""
    with scenes.server() as server:
        backend, _ = drawing(server)
        with backend.current_weights(0):
            coming = backend.generate(scenes.bench.samples, greedy_sampling(), finished_steps=0)
            drawn = [next(coming), next(coming)]
            backend.recover(0)
            drawn += coming
        assert counts(backend.settle(counts=True)) == (1, 0, 0)
    assert [one.sample_id for one in drawn] == [sample.id for sample in scenes.bench.samples]
    assert len(server.chats) >= 6


def test_servers_are_added_and_taken_away(drawing, scenes):
    now = {"named": None}
    with scenes.server() as one, scenes.server() as two:
        backend, _ = drawing(one, named=lambda: now["named"])
        assert step(backend, scenes, 0)[0] == {one.base_url}
        now["named"] = [section_of(one), section_of(two)]
        used, changes = step(backend, scenes, 1)
        assert (used, counts(changes)) == ({one.base_url, two.base_url}, (2, 0, 1))
        now["named"] = [section_of(two)]
        used, changes = step(backend, scenes, 2)
        assert (used, counts(changes)) == ({two.base_url}, (1, 1, 0))
        assert one.state.weight_version == "start/1"


def test_a_file_of_servers_that_cannot_be_read_changes_nothing(drawing, scenes):
    def named():
        raise ConfigError("half written", where="servers.yaml", fix="write it")

    with scenes.server() as server:
        backend, _ = drawing(server, named=named)
        assert step(backend, scenes, 0)[1].warnings == (
            "the servers stay as they are: servers.yaml: half written\n  fix: write it",
        )
        assert not step(backend, scenes, 1)[1].warnings


def test_a_server_that_is_not_there_yet_is_asked_until_it_is(drawing, scenes):
    nobody = ServerSection(base_url="http://127.0.0.1:9", group_port=None, tensor_parallel_size=1)
    with scenes.server() as server:
        backend, _ = drawing(server, named=lambda: [section_of(server), nobody])
        for finished in range(3):
            used, changes = step(backend, scenes, finished)
            assert (used, counts(changes)) == ({server.base_url}, (1, 0, 0))
    assert backend.servers.fleet.members[1].failures >= 1


# --- what does not train is sent once ---------------------------------------------------------------------------

LAYERS = [f"{layer}.{leaf}" for layer in "01" for leaf in ("weight", "bias")]


def sent(server):
    """The names of the tensors of each transfer, the last one first."""
    transfers = []
    for request in server.requests:
        if request.path == "/start_weight_update":
            transfers.insert(0, [])
        elif request.path == "/update_weights" and request.body["update_info"]:
            transfers[0] += request.body["update_info"]["names"]
    return transfers


def test_what_does_not_train_is_sent_until_the_probe_has_passed(drawing, scenes):
    with scenes.server() as server:
        backend, _ = drawing(server, probe_every=2)
        for finished in range(4):  # probed behind the second
            step(backend, scenes, finished)
        assert sent(server) == [LAYERS[2:], LAYERS[2:], LAYERS, LAYERS]


def test_a_server_that_comes_back_is_sent_everything_and_probed(drawing, scenes):
    """Lost in any way: started again between two steps, or found out by the probe."""
    with scenes.server() as one, scenes.server() as two:
        backend, probe = drawing(one, two)
        step(backend, scenes, 0)
        step(backend, scenes, 1)
        assert [sent(server)[0] for server in (one, two)] == [LAYERS[2:]] * 2
        one.state.weight_version, one.workers.group = "default", None
        probe.wrong.add(two.base_url)
        with pytest.raises(ServerFault), mock.patch.object(backend.servers, "recover_s", 0.0):
            step(backend, scenes, 2)
        assert sent(two)[0] == LAYERS[2:] and not backend.servers.fleet.serving
        probe.wrong.clear()
        _, changes = step(backend, scenes, 2)
        assert [sent(server)[0] for server in (one, two)] == [LAYERS] * 2
        assert counts(changes) == (2, 2, 2)
        assert set(probe.asked[-1]) == {one.base_url, two.base_url}
