"""`ds-stage2ab launch` with real processes: whatever ends it, nothing is left, and one line says what was stopped.

Fakes take the place of vLLM and of the learner's ranks; between them stand the real launcher and DeepSpeed's.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from ds_stage2ab.errors import EXIT_CONFIG, EXIT_ENVIRONMENT, EXIT_STOPPED
from ds_stage2ab.launch.command import LAST_LOOK_S, log_name
from tests.faults.fake_learner import LINES, RANK_DONE, RANK_FAULT, RANK_STOPPED, SERVER_END, line
from tests.launching import Launched, read
from tests.parts import ROOT, config_values, free_port, merged, write_config

START_S = 120
STOP_S = 40
KILLED_S = 60
SERVERS = 2
MATCHING = "custom.extra.rollout_matching"
ON_CPU = ("--cpu", "--train-ranks", "2")
ON_GPUS = ("--rollout-gpus", "0,1", "--train-gpus", "2,3")


class Launch(Launched):
    """A launcher of fakes."""

    def __init__(self, quickstart, folder, kind, *arguments, changes=None, ports=None, where=ON_CPU):
        self.ports = [free_port() for _ in range(SERVERS)] if ports is None else ports
        servers = [{"base_url": f"http://127.0.0.1:{port}"} for port in self.ports]
        keys = {f"{MATCHING}.rollout_backend": "vllm", f"{MATCHING}.vllm.server.servers": servers, **(changes or {})}
        config = write_config(folder / "c.yaml", merged(config_values(quickstart, folder / "runs", "small"), keys))
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/faults/fake_learner.py "$@"\n')
        python.chmod(0o755)
        command = [sys.executable, "tests/faults/launched.py", "launch", "--config", str(config), *where]
        command += ["--server-python", str(python), *arguments]
        path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        super().__init__(command, folder, {"FAKE": kind, "FOLDER": str(folder), "PYTHONPATH": path})

    def logs(self, server):
        return self.folder / "runs" / "small.launch-logs" / log_name(self.ports[server], attempt=1)

    def rank_notes(self):
        return [path.read_text() for path in sorted(self.folder.glob("rank-*"))]

    def learner_fails(self):
        """It ends with 4; comes back when the launcher knows."""
        (self.folder / "fault").touch()
        self.wait_for(lambda: not self.with_words("ds_stage2ab.launch.supervisor", "ranks"), STOP_S)

    def kill_server(self, port):
        """With SIGKILL, which its supervisor survives."""
        fake_learners = self.with_words("fake_learner.py", f"{port}")
        ranks = (pid for pid in fake_learners if b"ds_stage2ab.launch.supervisor" not in read(pid, "cmdline"))
        os.kill(next(ranks), signal.SIGKILL)


@pytest.fixture
def launched(quickstart, tmp_path):
    started = []

    def start(kind, *arguments, **options):
        started.append(Launch(quickstart, tmp_path, kind, *arguments, **options))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def waiting(launched):
    """A launcher whose servers are up with their children, and never answer."""
    one = launched("stays")
    one.wait_for(lambda: "0 of 2 servers ready" in one.said and len(one.with_words("time.sleep")) == SERVERS, START_S)
    return one


@pytest.fixture
def learning(launched):
    """A launcher whose servers answer and whose two ranks are up."""
    return when_it_learns(launched("serves"))


def when_it_learns(one):
    one.wait_for(lambda: one.rank_notes() == ["up\n"] * 2 and len(one.with_words("time.sleep")) == SERVERS + 2, START_S)
    return one


def names(one):
    return ", ".join(f"server http://127.0.0.1:{port}" for port in one.ports)


def test_ctrl_c_while_servers_start(waiting):
    """They are deaf to SIGTERM, and their children lead process groups of their own."""
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.ends(STOP_S) == EXIT_STOPPED
    logs = waiting.folder / "runs" / "small.launch-logs"
    assert waiting.stop_lines == [f"launch: SIGINT; stopped {names(waiting)}; logs in {logs}"]
    assert "Traceback" not in waiting.said


@pytest.mark.soak
def test_a_killed_launcher_leaves_no_server(waiting):
    waiting.process.kill()
    assert waiting.ends(KILLED_S) == -signal.SIGKILL


def test_a_second_signal_does_not_wait(waiting):
    waiting.process.send_signal(signal.SIGTERM)
    time.sleep(2.5)
    start = time.monotonic()
    waiting.process.send_signal(signal.SIGTERM)
    assert waiting.ends(STOP_S) == EXIT_STOPPED
    assert time.monotonic() - start < 3  # of the 6 seconds that servers have


def test_ctrl_c_while_ranks_learn(learning):
    """Each rank gets one SIGTERM, and the code with which all of them leave comes through."""
    learning.process.send_signal(signal.SIGINT)
    assert learning.ends(STOP_S) == RANK_STOPPED
    assert learning.rank_notes() == ["up\nSIGTERM\n"] * 2
    assert [line.split("; ")[:2] for line in learning.stop_lines] == [
        ["launch: SIGINT", f"stopped {names(learning)}, the learner"]
    ]


@pytest.mark.soak
def test_learners_without_servers_are_stopped_by_the_signal_of_a_scheduler(launched):
    one = launched("serves", changes={f"{MATCHING}.rollout_backend": "hf"}, ports=[])
    one.wait_for(lambda: one.rank_notes() == ["up\n"] * 2, START_S)
    one.process.send_signal(signal.SIGUSR1)
    assert one.ends(STOP_S) == RANK_STOPPED
    assert one.rank_notes() == ["up\nSIGTERM\n"] * 2
    assert one.stop_lines == ["launch: SIGUSR1; stopped the learner"]


def test_a_killed_launcher_leaves_no_rank(learning):
    learning.process.kill()
    assert learning.ends(KILLED_S) == -signal.SIGKILL
    assert learning.rank_notes() == ["up\nSIGTERM\n"] * 2


def test_a_lost_server_is_told_of_and_the_learner_ends_by_itself(learning):
    lost, other = learning.ports
    learning.kill_server(lost)
    learning.wait_for(lambda: "ended with code 137" in learning.said, START_S)
    assert f"\n    a server that serves at {lost}\n" in learning.said
    (learning.folder / "go").touch()
    assert learning.ends(STOP_S) == RANK_DONE
    assert learning.stop_lines[0].startswith(
        f"launch: the learner ended with code {RANK_DONE}; stopped server http://127.0.0.1:{other}; logs in "
    )


def test_a_server_that_ends_later_than_the_learner_that_it_failed_is_quoted(learning):
    """An engine that has died answers with errors at once, its server is gone some seconds later."""
    failed, other = learning.ports
    learning.learner_fails()
    time.sleep(3)
    (learning.folder / f"end-{failed}").touch()
    assert learning.ends(STOP_S) == RANK_FAULT
    assert f"launch: server http://127.0.0.1:{failed} ended with code {SERVER_END}\n" in learning.said
    assert f"\n  the last lines of {learning.logs(0)}:\n    a server that serves at {failed}\n" in learning.said
    assert learning.said.count("\n    the engine has died\n") == 1
    assert learning.stop_lines[0].startswith(
        f"launch: the learner ended with code {RANK_FAULT}; stopped server http://127.0.0.1:{other}; logs in "
    )


def test_ctrl_c_while_a_server_is_given_time_to_end(launched):
    """Both are sound, and deaf to SIGTERM: the first signal ends the waiting, the second does not wait for them."""
    one = when_it_learns(launched("serves-on"))
    one.learner_fails()
    one.wait_for(lambda: f"is waited for, {LAST_LOOK_S} s at most" in one.said, STOP_S)
    one.process.send_signal(signal.SIGINT)
    one.wait_for(lambda: "launch: SIGINT: stopping" in one.said, LAST_LOOK_S / 3)
    time.sleep(2.5)
    start = time.monotonic()
    one.process.send_signal(signal.SIGINT)
    assert one.ends(STOP_S) == RANK_FAULT
    assert time.monotonic() - start < 3  # of the 6 seconds that servers have
    assert [line.split("; ")[:2] for line in one.stop_lines] == [["launch: SIGINT", f"stopped {names(one)}"]]


@pytest.mark.parametrize(
    ("number", "code", "told"),
    [
        (signal.SIGTERM, EXIT_STOPPED, ["launch: SIGTERM; stopped nothing"]),
        (signal.SIGKILL, -signal.SIGKILL, []),
    ],
)
def test_a_launcher_that_ends_while_a_python_is_asked_for_its_nccl(launched, number, code, told):
    one = launched("serves", where=ON_GPUS)
    one.wait_for(lambda: one.with_words("fake_learner.py", "nccl"), START_S)
    one.process.send_signal(number)
    assert one.ends(STOP_S) == code
    assert [line.split("; logs in ")[0] for line in one.stop_lines] == told
    assert "weights travel" not in one.said and "Traceback" not in one.said


def test_a_server_that_has_much_to_say_is_not_held_up(launched):
    """10 MB before it is ready, more than any pipe holds; of them the end is shown when it dies."""
    one = launched("talks")
    one.wait_for(lambda: one.rank_notes() == ["up\n"] * 2, START_S)
    assert all(one.logs(server).stat().st_size > 10_000_000 for server in range(SERVERS))
    one.kill_server(one.ports[0])
    one.wait_for(lambda: "ended with code 137" in one.said, START_S)
    assert f"\n  the last lines of {one.logs(0)}:\n    {line(LINES - 19)}\n" in one.said
    assert f"\n    {line(LINES - 1)}\n    ready\n" in one.said and line(LINES - 20) not in one.said


def test_the_line_of_progress_goes_on_until_the_servers_are_found_right(learning):
    """The run folder is what the learner makes then."""
    learning.wait_for(lambda: learning.said.count("launch: the learner has not yet found") > 1, START_S)
    (learning.folder / "runs" / "small").mkdir()
    (learning.folder / "runs" / "small" / "config.json").touch()
    time.sleep(1)  # a line may be on its way
    said = learning.said.count("has not yet found")
    time.sleep(3)
    assert learning.said.count("has not yet found") == said


def test_a_killed_supervisor_leaves_no_server(waiting):
    supervisor = next(pid for pid in waiting.with_words("ds_stage2ab.launch.supervisor", f"{waiting.ports[0]}"))
    os.kill(supervisor, signal.SIGKILL)
    assert waiting.ends(STOP_S) == EXIT_ENVIRONMENT
    assert f"error: http://127.0.0.1:{waiting.ports[0]}: the server ended with code -9" in waiting.said


def test_a_server_that_dies_at_its_start_is_quoted(launched):
    one = launched("dies")
    assert one.ends(STOP_S) == EXIT_ENVIRONMENT
    assert re.search("error: http://127.0.0.1:[0-9]+: the server ended with code 1 before it was ready\n", one.said)
    assert re.search("\n    a server that dies at [0-9]+\n    no memory for the cache\n  fix: ", one.said)
    assert len(one.stop_lines) == 1 and "; stopped " in one.stop_lines[0]
    assert "Traceback" not in one.said


def test_a_server_that_never_answers_has_a_bound(launched):
    one = launched("stays", "--wait", "3")
    assert one.ends(STOP_S) == EXIT_ENVIRONMENT
    assert "the server was not ready after 3 s\n  the last lines of " in one.said
    assert one.stop_lines[0].startswith(f"launch: a server was not ready; stopped {names(one)}; logs in ")


def test_a_port_in_use_is_refused_before_anything_starts(launched):
    with socket.create_server(("127.0.0.1", 0)) as other:
        one = launched("serves", ports=[free_port(), other.getsockname()[1]])
        assert one.ends(START_S) == EXIT_ENVIRONMENT
    assert f"error: 127.0.0.1:{one.ports[1]}: the port of a server cannot be had" in one.said
    assert "starting" not in one.said


def test_a_folder_that_holds_a_run_is_refused_before_anything_starts(launched, tmp_path):
    (tmp_path / "runs" / "small").mkdir(parents=True)
    (tmp_path / "runs" / "small" / "config.json").write_text("{}")
    one = launched("serves")
    assert one.ends(START_S) == EXIT_CONFIG
    assert "this folder already holds a run" in one.said and "starting" not in one.said


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"training.effective_batch_size": 9}, EXIT_CONFIG, "is not a multiple of 8"),
        ({"model.path": "nowhere"}, EXIT_ENVIRONMENT, "nowhere: no checkpoint there"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(launched, changes, code, words):
    one = launched("serves", changes=changes)
    assert one.ends(START_S) == code
    assert words in one.said and "starting" not in one.said and "Traceback" not in one.said


def test_success_is_not_believed_when_ranks_are_orphaned():
    """DeepSpeed's launcher ends with 0 when the parent of the ranks has been killed."""
    tree = "LOCAL_RANK=0 sleep 600 & sleep 2; exit 0"
    command = [sys.executable, "-m", "ds_stage2ab.launch.supervisor", "5", "ranks", "sh", "-c", tree]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.wait(START_S) == EXIT_ENVIRONMENT
        assert "error: the process between DeepSpeed's launcher and the ranks was killed" in supervisor.stderr.read()
