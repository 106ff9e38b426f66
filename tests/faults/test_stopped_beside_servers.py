"""One of two ranks is asked to stop while a real server takes weights, or draws answers; both go on with it later."""

import os
import signal
import time

import pytest

from ds_stage2ab.errors import EXIT_OK, EXIT_STOPPED
from tests import ranks
from tests.faults.test_lost_learners import BUCKETS, server_says
from tests.parts import config_values, merged, write_config
from tests.proxy import Proxy
from tests.served_runs import MOVING, START_S, finished_steps
from tests.vllm_process import server_changes

pytestmark = pytest.mark.soak

BEGIN, BUCKET, CHAT = "/start_weight_update", "/update_weights", "/v1/chat/completions"
LONGEST_S = 30
"""From the signal to the end of both ranks; the weights are sent in a second, the answers drawn in a few."""


class Signalling(Proxy):
    """Passes everything on, and calls `then` in front of one request.

    Args:
        upstream: answers.
        transfers, path, number: of that request: so many transfers of weights had begun, and of those to `path` behind
            the last beginning it is this one.
    """

    def __init__(self, upstream, *, transfers, path, number, then):
        super().__init__(upstream, passing=True)
        self.moment, self.then = (transfers, path, number), then

    def respond(self, exchange):
        paths = [*(path for path, _ in self.paths), exchange.path]
        begun = [place for place, path in enumerate(paths) if path == BEGIN]
        since = paths[begun[-1] :] if begun else []
        if (len(begun), exchange.path, since.count(exchange.path)) == self.moment:
            self.then()
        super().respond(exchange)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("transfers", "path", "number", "words"),
    [
        (1, BUCKET, 3, "before the first step; it has saved no checkpoint yet"),
        (2, BUCKET, 3, "after step 1 of 4; its newest checkpoint is "),
        (2, CHAT, 6, "after step 1 of 4; its newest checkpoint is "),
    ],
    ids=["first-weights", "weights", "answers"],
)
def test_it_is_saved_and_goes_on_with_the_same_server(
    shipped, server, tmp_path, rank, transfers, path, number, words
):
    """The transfer is given up, and the server takes the next one; step 1 is one of Channel A, step 2 of B."""
    told = {}

    def then():
        told["at"] = time.monotonic()
        os.kill(told["pids"][rank], signal.SIGTERM)

    def command(base_url):
        values = {**server_changes(base_url), **MOVING, **BUCKETS}
        config = merged(config_values(shipped, tmp_path / "runs", "small"), values)
        return "ds_stage2ab/train.py", "--config", str(write_config(tmp_path / "c.yaml", config)), "--resume", "auto"

    with Signalling(server.base_url, transfers=transfers, path=path, number=number, then=then) as proxy:
        with ranks.started(2, *command(proxy.base_url)) as processes:
            told["pids"] = [process.pid for process in processes]
            said = [process.communicate(timeout=START_S) for process in processes]
        ended = time.monotonic()
    assert [process.returncode for process in processes] == [EXIT_STOPPED] * 2, said
    assert ended - told["at"] < LONGEST_S
    assert f"stopped: SIGTERM to rank {rank}, {words}" in said[0][1]
    assert "Traceback" not in said[0][1] + said[1][1]
    assert server_says(server, "/is_paused").json() == {"is_paused": False}
    done = ranks.run(*command(server.base_url), ranks=2)
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-3000:]
    assert [step.channel for step in finished_steps(tmp_path / "runs" / "small")] == list("ABAB")
