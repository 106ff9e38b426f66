"""The backend at servers that fail, each in its way."""

import pytest

from ds_stage2ab.carriers import Rollout
from ds_stage2ab.errors import DataError, NoServerLeft, ServerFault
from ds_stage2ab.rollout.server import http_client
from tests.fakes import Fault
from tests.unit.parts import greedy_sampling, load_bench
from tests.unit.serving import LONG, backend_of, drawn_from, fake_of, seeds_of


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=6)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(http_client, "FIRST_PAUSE_S", 0.005)


def test_rollouts_of_two_servers(bench):
    first, second = fake_of(bench), fake_of(bench)
    with first, second:
        rollouts = drawn_from(bench, [first, second], greedy_sampling())
    assert [one.sample_id for one in rollouts] == [sample.id for sample in bench.samples]
    assert [one.source for one in rollouts[:4]] == [f"vllm {one.base_url}" for one in (first, second, first, second)]
    assert {(one.response_ids, one.finish, one.attempt) for one in rollouts} == {((11, 12), "stop", 1)}
    assert {one.weight_version for one in rollouts} == {"start/3"}
    assert [one.seed for one in rollouts] == seeds_of(bench)


@pytest.mark.parametrize("kind", ["500", "hang", "half", "count", "vocabulary", "no_ids", "empty"])
def test_the_requests_of_a_lost_server_go_to_the_other(bench, kind: str):
    bad, good = fake_of(bench, faults=(Fault(kind),)), fake_of(bench)
    with bad, good:
        rollouts = drawn_from(bench, [bad, good], greedy_sampling(), infer_timeout_s=0.3 if kind == "hang" else LONG)
        asked = {request.body["seed"] for request in bad.chats}
    assert [one.prompt_ids for one in rollouts] == [sample.prompt_ids for sample in bench.samples]
    assert {one.source for one in rollouts} == {f"vllm {good.base_url}"}
    assert 1 <= len(asked) <= 2  # two at once
    assert [one.attempt for one in rollouts] == [2 if one.seed in asked else 1 for one in rollouts]
    assert len(good.chats) == 6


def test_a_server_that_breaks_later_keeps_what_it_gave(bench):
    """The third request, one of the first two that it takes, fails for good."""
    third = seeds_of(bench)[2]
    bad, good = fake_of(bench, faults=(Fault("500", when=lambda number, body: body["seed"] == third),)), fake_of(bench)
    with bad, good:
        rollouts = drawn_from(bench, [bad, good], greedy_sampling())
    assert [one.attempt for one in rollouts] == [1, 1, 2, 1, 1, 1]
    assert [one.source for one in rollouts[:3]] == [f"vllm {one.base_url}" for one in (bad, good, good)]


def test_no_answer_is_used_of_a_server_that_has_other_weights_behind_it(bench):
    """As one that was started again: it answers, and tells by its version that it is not the one that was proven."""
    bad, good = fake_of(bench), fake_of(bench)
    bad.state.weight_version = "default"
    with bad, good:
        backend = backend_of(bench, [bad, good])
        rollouts = list(backend.generate(bench.samples, greedy_sampling(), finished_steps=3))
        assert {one.source for one in rollouts} == {f"vllm {good.base_url}"}
        assert len(rollouts) == 6 and bad.chats
    (fault,) = backend.servers.noted.values()
    assert fault.where == bad.base_url and "has the weights default, not the current ones, start/3" in fault.why


def test_a_lost_server_gets_nothing_of_the_next_chunk(bench):
    bad, good = fake_of(bench, faults=(Fault("500"),)), fake_of(bench)
    with bad, good:
        backend = backend_of(bench, [bad, good])
        list(backend.generate(bench.samples, greedy_sampling(), finished_steps=3))
        asked = len(bad.chats)
        again = list(backend.generate(bench.samples, greedy_sampling(), finished_steps=3))
    assert asked == len(bad.chats) and [one.attempt for one in again] == [1] * 6


def test_all_servers_lost_names_server_and_sample(bench):
    first, second = fake_of(bench, faults=(Fault("500"),)), fake_of(bench, faults=(Fault("500"),))
    with first, second:
        fault = next(backend_of(bench, [first, second]).generate(bench.samples, greedy_sampling(), finished_steps=3))
    assert isinstance(fault, NoServerLeft) and "answered 500 to /v1/chat/completions" in fault.why
    assert fault.where in (first.base_url, second.base_url)
    assert any(f"the rollout of sample {sample.id}: " in fault.why for sample in bench.samples)
    assert "server's own log" in fault.fix


def test_a_server_that_makes_another_prompt_is_lost(bench):
    bad, good = fake_of(bench, faults=(Fault("prompt"),)), fake_of(bench)
    with bad, good:
        backend = backend_of(bench, [bad, good])
        assert len(list(backend.generate(bench.samples, greedy_sampling(), finished_steps=3))) == 6
    (fault,) = backend.servers.noted.values()
    places = {len(sample.prompt_ids) - 1 for sample in bench.samples[:3]}  # the fault changes the last id
    assert fault.where == bad.base_url
    assert any(f"the first difference at place {place}" in fault.why for place in places)


def test_a_refused_sample_is_an_error_in_its_place(bench):
    """No other server is asked, and none is given up."""
    third = seeds_of(bench)[2]
    fault = Fault("400", when=lambda number, body: body["seed"] == third)
    first, second = fake_of(bench, faults=(fault,)), fake_of(bench, faults=(fault,))
    with first, second:
        drawn = drawn_from(bench, [first, second], greedy_sampling())
    assert [type(one) for one in drawn] == [Rollout, Rollout, DataError, Rollout, Rollout, Rollout]
    assert [one.attempt for one in drawn if isinstance(one, Rollout)] == [1] * 5
    assert len(first.chats) + len(second.chats) == 6
    error = drawn[2]
    assert error.where == f"sample {bench.samples[2].id}" and "data.on_bad_sample" in error.fix
    assert error.why.startswith(f"the rollout server {first.base_url} refused /v1/chat/completions with 400: ")


def test_a_refusal_that_is_not_about_the_sample_ends_it(bench):
    with fake_of(bench) as server:
        server.state.removed.add("/v1/chat/completions")
        with pytest.raises(ServerFault, match="the server refused /v1/chat/completions with 404") as caught:
            drawn_from(bench, [server], greedy_sampling())
    assert caught.value.where == server.base_url and caught.value.fix


def test_other_weights_after_the_last_rollout(bench):
    with fake_of(bench) as server:
        server.state.weight_version = "start/2"
        with pytest.raises(ServerFault, match="has the weights start/2, not the current ones, start/3") as caught:
            drawn_from(bench, [server], greedy_sampling())
    assert caught.value.where == server.base_url


def test_a_lost_server_may_have_any_weights(bench):
    """It gave nothing that is used."""
    bad, good = fake_of(bench, faults=(Fault("500"),)), fake_of(bench)
    bad.state.weight_version = "start/2"
    with bad, good:
        assert {one.source for one in drawn_from(bench, [bad, good], greedy_sampling())} == {f"vllm {good.base_url}"}
