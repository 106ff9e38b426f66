"""`ds-stage2ab launch` with a real vLLM server and real learner ranks: trains, and ends while rollouts are drawn."""

import os
import random
import re
import signal
import time
from contextlib import ExitStack
from http import HTTPStatus

import psutil
import pytest
import requests

from ds_stage2ab.errors import EXIT_ENVIRONMENT, EXIT_OK, EXIT_STOPPED
from tests.launching import Launched, read
from tests.parts import LAUNCHER, config_values, free_port, merged, write_config
from tests.served_runs import MOVING, finished_steps
from tests.vllm_process import MATCHING, PYTHON, server_changes

RANKS = 2
KEY = "s3cret-of-the-rollout-servers"
START_S = 420  # the server's start, the learner's, and the first transfer of weights
STOP_S = 40
KILLED_S = 60
DRAWN_AT_ONCE = 4
FINISHED = 4
"""Steps before the run is ended."""
LONG = {
    "stage2_ab.schedule.b_ratio": 1,
    "training.effective_batch_size": 64,
    "training.max_steps": 100,
    f"{MATCHING}.max_new_tokens": 400,
}
"""A model that has learned nothing never stops: 64 answers of 400 tokens, 4 at once."""


class Served(Launched):
    """The launcher of a server and a learner."""

    def __init__(self, parts, folder, changes, *more):
        self.port = free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        values = merged(config_values(parts, folder / "runs", "small"), {**server_changes(self.base_url), **changes})
        config = write_config(folder / "small.yaml", values)
        command = [str(LAUNCHER.with_name("ds-stage2ab")), "launch", "--config", str(config), "--cpu"]
        command += ["--train-ranks", str(RANKS), "--server-python", str(PYTHON), *more]
        super().__init__(command, folder, {"PATH": f"{LAUNCHER.parent}{os.pathsep}{os.environ['PATH']}"})

    def draws(self):
        """Whether as many answers as may be are drawn at the server in this moment; a probe is one alone."""
        assert self.process.poll() is None, self.said[-3000:]
        try:
            told = requests.get(f"{self.base_url}/metrics", timeout=(2, 5)).text
        except requests.RequestException:
            return False
        running = re.search(r"^vllm:num_requests_running\{.*\} ([0-9.]+)$", told, re.MULTILINE)
        return running is not None and float(running[1]) == DRAWN_AT_ONCE

    def steps(self):
        return finished_steps(self.folder / "runs" / "small")


@pytest.fixture
def served(quickstart, tmp_path):
    """Launches, of two ranks and a server."""
    with ExitStack() as ended:

        def start(changes, *more):
            one = Served(quickstart, tmp_path, changes, *more)
            ended.callback(one.end)
            return one

        yield start


def assert_all_run(launched):
    names = [read(process.pid, "cmdline") for process in launched.look()]
    assert sum(b"ds_stage2ab.launch.supervisor" in name for name in names) == 2
    ranks = {rank for name in names for rank in re.findall(rb"--local_rank=\d", name)}
    assert ranks == {b"--local_rank=0", b"--local_rank=1"}
    assert any(b"VLLM::" in name for name in names), names


@pytest.fixture
def drawing(served):
    """Whose first step is a long B step."""
    one = served(LONG)
    one.wait_for(one.draws, START_S)
    assert_all_run(one)
    return one


def test_one_command_trains_on_both_channels_until_ctrl_c_while_rollouts_are_drawn(served):
    """A terminal sends it to the launcher's whole process group; nothing that was started is left."""
    drawing = served({**MOVING, "training.max_steps": 1000})
    drawing.wait_for(lambda: len(drawing.steps()) >= FINISHED, START_S)
    assert_all_run(drawing)
    drawing.wait_for(drawing.draws, START_S)
    assert {one.laddr.ip for one in listeners(drawing.port)} == {"127.0.0.1"}
    os.killpg(drawing.process.pid, signal.SIGINT)
    assert drawing.ends(STOP_S) == EXIT_STOPPED
    last = drawing.steps()[-1].step
    stopped = re.search(r"stopped: SIGTERM to rank [01], after step (\d+) of 1,000", drawing.said)
    assert stopped, drawing.said[-3000:]  # both ranks get the launcher's signal; either may tell the other first
    assert int(stopped[1]) == last
    assert (drawing.folder / "runs" / "small" / "checkpoints" / f"step-{last:06d}" / "manifest.json").is_file()
    logs = drawing.folder / "runs" / "small.launch-logs"
    assert drawing.stop_lines == [f"launch: SIGINT; stopped server {drawing.base_url}, the learner; logs in {logs}"]
    assert "Traceback" not in drawing.said
    assert [step.channel for step in drawing.steps()][:FINISHED] == list("ABAB")
    with pytest.raises(requests.RequestException):
        requests.get(f"{drawing.base_url}/health", timeout=(1, 1))


@pytest.mark.soak
def test_a_launch_that_was_stopped_goes_on_with_the_restored_weights(served):
    """Stopped while weights travel or answers are drawn; the servers of the next launch begin with the old ones."""
    changes = {**MOVING, "training.max_steps": 12, "checkpoint.every_steps": 1}
    first = served(changes, "--resume", "auto")
    first.wait_for(lambda: len(first.steps()) >= FINISHED, START_S)
    first.process.send_signal(signal.SIGUSR1)
    assert first.ends(STOP_S) == EXIT_STOPPED
    again = served(changes, "--resume", "auto")
    assert again.ends(START_S) == EXIT_OK
    assert "goes on after step" in again.said
    assert [one.step for one in again.steps()] == list(range(1, 13))


@pytest.mark.soak
def test_a_real_server_behind_a_key_serves_a_learner_that_has_it(served, monkeypatch):
    """It refuses a request without one; the key stands in no output and no file of the run."""
    monkeypatch.setenv("KEY_OF_THE_SERVERS", KEY)
    keyed = {f"{MATCHING}.vllm.server.api_key_env": "KEY_OF_THE_SERVERS"}
    one = served({**MOVING, **keyed, "training.max_steps": FINISHED})
    one.wait_for(lambda: "starting the learner" in one.said, START_S)
    assert requests.get(f"{one.base_url}/v1/models", timeout=(2, 5)).status_code == HTTPStatus.UNAUTHORIZED
    assert one.ends(START_S) == EXIT_OK
    files = [path for path in one.folder.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in files)


@pytest.mark.soak
def test_a_launch_is_stopped_while_the_learner_looks_at_its_servers(served):
    one = served({**MOVING, "training.max_steps": 12})
    one.wait_for(lambda: "loading libraries, data and model" in one.said, START_S)
    time.sleep(random.Random(0).uniform(2, 8))
    one.process.send_signal(signal.SIGTERM)
    assert one.ends(STOP_S) == EXIT_STOPPED
    assert "Traceback" not in one.said


def listeners(port):
    connections = psutil.net_connections("tcp")
    return [one for one in connections if one.status == psutil.CONN_LISTEN and one.laddr.port == port]


@pytest.mark.soak
def test_nothing_is_left_of_a_launcher_that_is_killed_while_rollouts_are_drawn(drawing):
    drawing.process.kill()
    assert drawing.ends(KILLED_S) == -signal.SIGKILL
    assert not drawing.steps()


@pytest.mark.soak
def test_the_last_words_of_a_server_whose_engine_dies_are_shown(drawing):
    """The server takes seconds to go, the learner leaves at its first answer of 500."""
    (engine,) = [process for process in drawing.look() if b"VLLM::EngineCore" in read(process.pid, "cmdline")]
    os.kill(engine.pid, signal.SIGKILL)
    assert drawing.ends(STOP_S) == EXIT_ENVIRONMENT
    assert f"launch: server {drawing.base_url} ended with code" in drawing.said
    assert "EngineDeadError" in drawing.said
