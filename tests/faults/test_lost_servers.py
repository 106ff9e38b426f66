"""A real server that is started again, with the weights of its folder, in the middle of a run of two ranks.

It is a second one, beside the server that all tests share.
"""

import pytest

from tests.loopback import CHAT
from tests.proxy import Restarted
from tests.served_runs import assert_the_server_ended, run
from tests.vllm_process import MATCHING, running

NO_VERSION = "default"
# Chat requests: of the handshake, of the proof at the start; of each B step one of the probe and eight rollouts.
IN_THE_SECOND_B_STEP = 1 + 1 + (1 + 8) + (1 + 3)
# Transfers: at the start, before each B step. Each rank asks for the version behind each of them, and behind rollouts.
THIRD_TRANSFER = {"/pause": 3, "/weight_info": 2 + 2 * 2 + 1}
IMPATIENT = {f"{MATCHING}.vllm.sync.timeout_s": 10}


@pytest.fixture(scope="module")
def fresh(shipped, tmp_path_factory):
    """A server with its initial weights, until a run sends it some."""
    with running(shipped, tmp_path_factory.mktemp("fresh")) as started:
        yield started


@pytest.mark.soak
def test_a_server_that_starts_again_among_the_rollouts_ends_the_run(shipped, server, fresh, tmp_path):
    """The fourth step's last rollouts are of the initial weights: none of the step is trained."""
    assert fresh.weight_version() == NO_VERSION
    with Restarted(server.base_url, fresh.base_url, path=CHAT, number=IN_THE_SECOND_B_STEP) as proxy:
        ran = run(shipped, tmp_path, proxy.base_url, {})
    assert_the_server_ended(ran, proxy.base_url)
    assert [step.channel for step in ran.steps] == list("ABA")
    wanted = server.weight_version()
    assert wanted.endswith("/3")
    assert f"the server has the weights {NO_VERSION}, not the current ones, {wanted}" in ran.done.stderr
    assert "nor start it again while a run uses it" in ran.done.stderr


@pytest.mark.soak
@pytest.mark.parametrize(("path", "number"), THIRD_TRANSFER.items())
def test_a_server_that_starts_again_between_two_steps_ends_the_run(shipped, server, fresh, tmp_path, path, number):
    """Before or behind a transfer: it knows nothing of the way by which weights came to the one before."""
    assert fresh.weight_version() == NO_VERSION
    with Restarted(server.base_url, fresh.base_url, path=path, number=number) as proxy:
        ran = run(shipped, tmp_path, proxy.base_url, IMPATIENT)
    assert_the_server_ended(ran, proxy.base_url)
    assert [step.channel for step in ran.steps] == list("ABA")
    assert "sending " in ran.done.stderr and " tensors, the first " in ran.done.stderr
    assert "start the run again" in ran.done.stderr and "firewall" not in ran.done.stderr
    assert fresh.weight_version() == NO_VERSION
