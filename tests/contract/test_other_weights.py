"""A real server that has other weights than the learner, however it came to that: nothing is trained with them."""

import pytest

from ds_stage2ab.errors import NoServerLeft, ServerFault
from ds_stage2ab.rollout.server.api import ServerApi
from tests.contract.backends import by_model, by_server, disturbed, drawn, limited_bench, one_rank
from tests.proxy import WEIGHT_ROUTES, Proxy
from tests.unit.parts import greedy_sampling

STEPS = 3
SHORT_S = 3.0  # of a transfer that cannot succeed
PATIENT = {"timeout_s": 30, "connections": 1}
GREEDY = greedy_sampling()


@pytest.fixture(scope="module")
def world():
    with one_rank() as alone:
        yield alone


@pytest.fixture(scope="module")
def bench(shipped):
    return limited_bench(shipped, num_samples=4)


def test_answers_behind_which_another_learner_has_sent_its_weights_are_not_used(bench, server, world):
    """The version is read behind each answer. Before the next rollouts the server is sent the right weights again."""
    mine, other = (by_server(bench, server.base_url, world, start_id=start_id) for start_id in ("mine", "other"))
    with mine.current_weights(STEPS):
        other.verify_weights(STEPS)
        lost = next(mine.generate(bench.samples, GREEDY, finished_steps=STEPS))
    assert isinstance(lost, NoServerLeft) and lost.where == server.base_url
    assert f"the server has the weights other/{STEPS}, not the current ones, mine/{STEPS}" in lost.why


def test_weights_that_are_sent_again_are_probed_again(bench, server, world):
    """The version is right then, and would be with a head that has kept other weights too."""
    mine, api = by_server(bench, server.base_url, world, start_id="mine"), ServerApi(server.base_url, **PATIENT)
    mine.verify_weights(STEPS)
    api.start_update(timeout_s=SHORT_S)
    api.finish_update("other", timeout_s=SHORT_S)
    with mine.current_weights(STEPS):
        assert server.weight_version() == f"mine/{STEPS}"
    api.start_update(timeout_s=SHORT_S)
    api.finish_update("other", timeout_s=SHORT_S)
    server.spoil_heads(spoil=True)
    try:
        with (
            disturbed(bench.model),
            pytest.raises(ServerFault, match="computes with other weights"),
            mine.current_weights(STEPS),
        ):
            pass
    finally:
        server.spoil_heads(spoil=False)


# Routes that seem to work and do nothing -> words of what is noticed.
SWALLOWED = {
    "all": (WEIGHT_ROUTES, "connecting for the transfer of weights: "),
    "all but the meeting": (WEIGHT_ROUTES - {"/init_weight_transfer_engine"}, "sending "),
}


@pytest.mark.parametrize(("swallowed", "words"), SWALLOWED.values(), ids=SWALLOWED)
def test_weights_of_an_earlier_start_do_not_pass(bench, server, world, swallowed, words):
    """They are of as many steps. The next run finds a server that takes weights."""
    with disturbed(bench.model):
        by_server(bench, server.base_url, world, start_id="earlier").verify_weights(STEPS)
    with Proxy(server.base_url, swallowed=swallowed) as proxy:
        later = by_server(bench, proxy.base_url, world, start_id="later", sync_s=SHORT_S)
        with pytest.raises(ServerFault) as caught:
            drawn(later, bench.samples, GREEDY, STEPS)
    assert caught.value.where == proxy.base_url and caught.value.fix
    assert words in caught.value.why
    assert server.weight_version() == f"earlier/{STEPS}"
    again, alone = by_server(bench, server.base_url, world, start_id=""), by_model(bench, world, start_id="")
    assert answers(again, bench) == answers(alone, bench)


def answers(backend, bench):
    return [rollout.response_ids for rollout in drawn(backend, bench.samples, GREEDY, STEPS)]
