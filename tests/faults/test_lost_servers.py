"""A real server that is started again, with the weights of its folder, in the middle of a run of two ranks.

It is a second one, beside the server that all tests share.
"""

import pytest

from ds_stage2ab.errors import EXIT_OK
from tests.loopback import CHAT
from tests.proxy import Restarted
from tests.served_runs import run
from tests.vllm_process import MATCHING, running

NO_VERSION = "default"
# Chat requests: of the handshake, of the proof at the start; of each B step one of the probe and eight rollouts.
IN_THE_SECOND_B_STEP = 1 + 1 + (1 + 8) + (1 + 3)
# Transfers: at the start, before each B step.
THIRD_TRANSFER = 3
IMPATIENT = {f"{MATCHING}.vllm.sync.timeout_s": 10, f"{MATCHING}.vllm.server.recover_s": 60}


@pytest.fixture
def fresh(shipped, tmp_path_factory):
    """A server with its initial weights, until a run sends it some: each test has its own."""
    with running(shipped, tmp_path_factory.mktemp("fresh")) as started:
        yield started


@pytest.mark.soak
def test_the_only_server_starts_again_among_the_rollouts(shipped, server, fresh, tmp_path):
    """The fourth step's last rollouts would be of the initial weights: they are drawn again by the current ones."""
    assert fresh.weight_version() == NO_VERSION
    with Restarted(server.base_url, fresh.base_url, path=CHAT, number=IN_THE_SECOND_B_STEP) as proxy:
        ran = run(shipped, tmp_path, proxy.base_url, IMPATIENT)
    assert ran.done.returncode == EXIT_OK, ran.done.stderr[-3000:]
    assert fleet_of(ran) == [[1, 0, 0], [1, 1, 1]]
    wanted = server.weight_version()
    assert wanted.endswith("/3")
    warnings = (ran.folder / "warnings.log").read_text()
    assert f"the server has the weights {NO_VERSION}, not the current ones, {wanted}" in warnings
    assert fresh.weight_version().endswith("/4")


@pytest.mark.soak
def test_the_only_server_starts_again_between_two_steps(shipped, server, fresh, tmp_path):
    """It knows nothing of the way by which weights came to the one before: it is proven as at the start."""
    assert fresh.weight_version() == NO_VERSION
    with Restarted(server.base_url, fresh.base_url, path="/pause", number=THIRD_TRANSFER) as proxy:
        ran = run(shipped, tmp_path, proxy.base_url, IMPATIENT)
    assert ran.done.returncode == EXIT_OK, ran.done.stderr[-3000:]
    assert [step.channel for step in ran.steps] == list("ABAB")
    assert fleet_of(ran) == [[1, 0, 0], [1, 1, 1]]
    assert fresh.weight_version().endswith("/4")


def fleet_of(ran):
    """Servers that serve, are lost and are back, in each B step."""
    names = ("servers", "servers_lost", "servers_back")
    return [[step.metrics[f"rollout/{name}"] for name in names] for step in ran.steps if step.channel == "B"]
