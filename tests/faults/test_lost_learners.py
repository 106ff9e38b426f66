"""A learner that is killed in the middle of something leaves a real server as it is; the next one can use it."""

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest
import requests

from ds_stage2ab.errors import EXIT_OK
from tests.parts import LAUNCHER, ROOT, config_values, free_port, merged, write_config
from tests.proxy import Proxy
from tests.served_runs import START_S, finished_steps, run
from tests.vllm_process import MATCHING, server_changes

BUCKETS = {f"{MATCHING}.vllm.sync.bucket_mb": 1}  # of 7 MB of weights
LONG = {f"{MATCHING}.max_new_tokens": 400, "training.effective_batch_size": 64, "stage2_ab.schedule.b_ratio": 1}


class Fatal(Proxy):
    """Passes everything on up to the n-th request to a path, which ends the learner.

    Args:
        upstream: answers.
        path, number: of that request.
        kill: ends the learner.
        is_sent: whether the server gets that request too, of a learner that is dead by then.
    """

    def __init__(self, upstream, *, path, number, kill, is_sent):
        super().__init__(upstream, passing=True)
        self.path, self.number, self.kill, self.is_sent = path, number, kill, is_sent

    def respond(self, exchange):
        if urlsplit(exchange.path).path == self.path:
            earlier = sum(path == self.path for path, _ in self.paths)
            if earlier + 1 == self.number:
                self.kill()
                if not self.is_sent:
                    exchange.close_connection = True
                    return
        super().respond(exchange)


class Learner:
    """Two ranks of a run that ends by SIGKILL, all of its processes at once."""

    def __init__(self):
        self.process = None
        self.is_dead = threading.Event()

    @contextmanager
    def running(self, parts, folder, base_url, changes):
        values = merged(config_values(parts, folder / "runs", "killed"), {**server_changes(base_url), **changes})
        config = write_config(folder / "killed.yaml", values)
        command = [str(LAUNCHER), "--num_gpus", "2", "--master_port", str(free_port())]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        variables["PATH"] = f"{LAUNCHER.parent}{os.pathsep}{variables['PATH']}"
        with (folder / "output").open("wb") as file:
            self.process = subprocess.Popen(
                [*command, "ds_stage2ab/train.py", "--config", str(config)],
                cwd=ROOT, env=variables, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip
        try:
            yield
        finally:
            self.kill()

    def kill(self):
        if not self.is_dead.is_set():
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.is_dead.set()


@pytest.mark.parametrize("is_sent", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_in_the_middle_of_a_weight_update(shipped, server, tmp_path, is_sent):
    """Paused, with an update open of which two buckets have come; the third breaks off, or is never spoken of."""
    learner, before = Learner(), server.weight_version()
    fatal = Fatal(server.base_url, path="/update_weights", number=3, kill=learner.kill, is_sent=is_sent)
    with fatal, learner.running(shipped, tmp_path, fatal.base_url, BUCKETS):
        assert learner.is_dead.wait(START_S), (tmp_path / "output").read_text()[-3000:]
    paths = [path for path, _ in fatal.paths]
    assert "/start_weight_update" in paths and not {"/finish_weight_update", "/resume"} & set(paths)
    assert server_says(server, "/is_paused").json() == {"is_paused": True} and server.weight_version() == before
    assert_the_next_one_trains(shipped, server, tmp_path)


@pytest.mark.soak
def test_while_it_draws_rollouts(shipped, server, tmp_path):
    """Four answers are on their way, and as many again are asked for: nobody waits for them any more."""
    learner = Learner()
    with learner.running(shipped, tmp_path, server.base_url, LONG):
        deadline = time.monotonic() + START_S
        while at_once(server) < 4:
            assert time.monotonic() < deadline, (tmp_path / "output").read_text()[-3000:]
            time.sleep(0.02)
        learner.kill()
    assert not finished_steps(tmp_path / "runs" / "killed")
    assert_the_next_one_trains(shipped, server, tmp_path)


def assert_the_next_one_trains(shipped, server, tmp_path):
    """With all servers proven, as if nothing had been."""
    done, steps, _ = run(shipped, tmp_path, server.base_url, {})
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-3000:]
    assert [step.channel for step in steps] == list("ABAB")


def at_once(server):
    """Answers that are being drawn in this moment; a probe is one alone."""
    running = re.search(r"^vllm:num_requests_running\{.*\} ([0-9.]+)$", server_says(server, "/metrics").text, re.M)
    return float(running[1])


def server_says(server, path):
    reply = requests.get(f"{server.base_url}{path}", timeout=(5, 30))
    reply.raise_for_status()
    return reply
