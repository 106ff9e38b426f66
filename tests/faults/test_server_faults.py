"""Whatever a rollout server does wrong ends as stated, in bounded time, with server, request and remedy in the message.

The servers are fakes (`tests/fakes.py`) on real sockets; in front of them stands a real backend, or a whole run.
What is wrong from the start is the handshake's matter: `tests/unit/rollout/server/test_handshake.py`.
"""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from ds_stage2ab.data.stream import SampleOrder
from ds_stage2ab.errors import EXIT_DATA, EXIT_ENVIRONMENT, EXIT_OK, EXIT_STOPPED, ServerFault
from ds_stage2ab.metrics.journal import read_history
from ds_stage2ab.rollout.server import http_client
from tests.fakes import CHAT, FakeServer, Fault
from tests.faults.served import MATCHING, Scenes, drawn_by, is_rollout
from tests.parts import ROOT, config_values, merged, write_config
from tests.ranks import train
from tests.unit.parts import greedy_sampling, load_bench
from tests.unit.serving import drawn_from, fake_of

INFER_S = 0.5  # longest wait for one answer
LONGEST_S = 60  # from then on that a run has lost its servers


@pytest.fixture(scope="module")
def bench(quickstart):
    return load_bench(quickstart, num_samples=3)


# --- one server, one fault --------------------------------------------------------------------------------------

AGAIN = "look at the server's own log"
# kind -> (what the message says was seen, the beginning of the remedy, seconds that it may take at most)
FAULTS = {
    "hang": (f"no answer to {CHAT} within {INFER_S:g} s", AGAIN, 3),
    "drip": (f"no answer to {CHAT} within {INFER_S:g} s", AGAIN, 3),
    "half": (f"the connection failed in {CHAT}: ", AGAIN, 3),
    "500": (f"answered 500 to {CHAT}: ", AGAIN, 3),
    "429": (f"answered 429 to {CHAT}", AGAIN, 6),  # asked to come back after a second, twice
    "503": (f"answered 503 to {CHAT}", AGAIN, 6),
    "404": (f"the server refused {CHAT} with 404: ", AGAIN, 3),
    "huge": (f"the answer to {CHAT} is larger than 64 MiB", AGAIN, 20),  # a body of 1 GB
    "redirect": (f"sends us from {CHAT} to another origin, http://localhost:", AGAIN, 3),
    "count": ("the answer is malformed at $.choices: ", AGAIN, 3),
    "no_ids": ("the answer is malformed at $.prompt_token_ids: ", AGAIN, 3),
    "vocabulary": (f"the answer holds token id {2**31}, and the vocabulary ends at ", AGAIN, 3),
    "empty": ("the answer holds no token and ended by length", AGAIN, 3),
    "prompt": ("the server made other ids of the prompt of sample ", "serve the folder of model.path", 3),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_the_only_server_goes_wrong(bench, kind):
    saw, remedy, longest_s = FAULTS[kind]
    with fake_of(bench, faults=(Fault(kind),)) as server:
        begun = time.monotonic()
        with pytest.raises(ServerFault) as caught:
            drawn_from(bench, [server], greedy_sampling(), infer_timeout_s=INFER_S if kind in ("hang", "drip") else 20)
        assert time.monotonic() - begun < longest_s
    said = str(caught.value)
    assert caught.value.code == EXIT_ENVIRONMENT
    assert said.startswith(f"{server.base_url}: "), "the server"
    assert any(f" sample {sample.id}" in said for sample in bench.samples) and saw in said, "the request"
    assert f"\n  fix: {remedy}" in said, "the remedy"


def test_of_a_huge_answer_little_is_read(bench):
    """Of each GB the 64 MiB that are allowed, and what the sockets hold."""
    with fake_of(bench, faults=(Fault("huge"),)) as server, pytest.raises(ServerFault):
        drawn_from(bench, [server], greedy_sampling())
    assert all(request.written < 2 * http_client.MOST_BYTES for request in server.chats)


def test_a_busy_server_is_waited_for(bench):
    """Each request is told to come back after a second, once."""
    with fake_of(bench, faults=(Fault("429", when={0}), Fault("503", when={1}))) as server:
        begun = time.monotonic()
        rollouts = drawn_from(bench, [server], greedy_sampling())
        assert 1 <= time.monotonic() - begun < 6
    assert [one.attempt for one in rollouts] == [1, 1, 1]


def test_a_lone_stop_token_is_an_empty_rollout(bench):
    with fake_of(bench, answer=lambda body: (body["stop_token_ids"], "stop")) as server:
        rollouts = drawn_from(bench, [server], greedy_sampling())
    assert [(one.response_ids, one.finish) for one in rollouts] == [((), "stop")] * 3


def test_a_server_that_is_killed_in_the_middle_of_its_requests(bench):
    """A process of its own, ended by SIGKILL: its two requests are sent to the other one, whole."""
    command = [sys.executable, "-m", "tests.fakes", "--seconds", "600"]
    with (
        fake_of(bench) as good,
        ThreadPoolExecutor(1) as pool,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
    ):
        try:
            bad = FakeServer()
            bad.base_url = process.stdout.readline().strip()
            drawing = pool.submit(drawn_from, bench, [bad, good], greedy_sampling())
            in_flight = until_connected(process.pid)
        finally:
            process.kill()
        rollouts = drawing.result(timeout=10)
    assert in_flight == 2
    assert [one.source for one in rollouts] == [f"vllm {good.base_url}"] * 3
    assert [one.attempt for one in rollouts] == [2, 1, 2]


def until_connected(pid):
    """Connections to a process, as soon as they have all come."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        kinds = [one.status for one in psutil.Process(pid).net_connections()]
        if kinds.count(psutil.CONN_ESTABLISHED) >= 2:
            break
        time.sleep(0.05)
    return kinds.count(psutil.CONN_ESTABLISHED)


# --- whole runs -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes(bench, quickstart):
    return Scenes(bench, quickstart)


@pytest.fixture
def config(quickstart, tmp_path):
    def written(*servers, **changes):
        values = merged(config_values(quickstart, tmp_path / "runs", "small"), {**drawn_by(*servers), **changes})
        return write_config(tmp_path / "small.yaml", values)

    return written


def finished_steps(tmp_path):
    metrics = tmp_path / "runs" / "small" / "metrics.jsonl"
    return read_history(metrics).steps if metrics.exists() else []


def ended(done, code):
    """One message, and this exit code."""
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    errors = done.stderr.count("error: ")
    assert errors == (code not in (EXIT_OK, EXIT_STOPPED)) and "Traceback" not in done.stderr, done.stderr[-3000:]
    return done.stderr


def refuses(scenes, sample_id):
    """With 400, as a server does that cannot read the image."""
    return Fault("400", when=lambda number, body: scenes.id_of(body) == sample_id)


def drawn_in_first_step(scenes):
    """A sample of the first step that is not the one that servers are tried with."""
    records = list(scenes.by_image.values())
    order = SampleOrder(42, len(records), len(records))
    return next(one.id for one in (records[order.record_of(draw)] for draw in range(8)) if one != scenes.largest)


def test_a_refused_sample_is_skipped_counted_and_named(scenes, config, tmp_path):
    """And of two servers one fails a request for good: it is sent again whole, which is counted too."""
    bad = drawn_in_first_step(scenes)
    first = scenes.server(faults=(refuses(scenes, bad), Fault("500", when=is_rollout)))
    second = scenes.server(faults=(refuses(scenes, bad),))
    with first, second:
        done = train(config(first, second, **{"data.on_bad_sample": "skip"}), ranks=2)
    ended(done, EXIT_OK)
    steps = finished_steps(tmp_path)
    assert [step.skipped for step in steps] == [(bad,), ()]
    assert [step.metrics["train/skipped_samples"] for step in steps] == [1, 0]
    assert [step.metrics["train/samples"] for step in steps] == [8, 8]
    assert [step.metrics["rollout/count"] for step in steps] == [7, 8]
    assert f"step 1 skipped sample {bad}: the rollout server http://127.0.0.1:" in done.stdout
    assert f"refused {CHAT} with 400: " in done.stdout
    # Two ranks have two places each at the first server, which fails whatever is put to it.
    told = [[step.metrics[f"rollout/{name}"] for name in ("servers", "servers_lost", "servers_back")] for step in steps]
    assert told[0] == [1, 1, 0] and 1 <= steps[0].metrics["rollout/resent"] <= 4, steps[0].metrics
    assert told[1] in ([1, 0, 0], [1, 1, 1])  # by then it was asked whether it can serve, or was not yet
    (line, *_) = (tmp_path / "runs" / "small" / "warnings.log").read_text().splitlines()
    assert f"rollout server {first.base_url} is lost: the rollout of sample train-" in line
    assert "answered 500" in line and "its requests go to the other one; it is asked again in 1 s" in line


def test_a_refused_sample_ends_a_run_that_may_not_skip_it(scenes, config, tmp_path):
    bad = drawn_in_first_step(scenes)
    with scenes.server(faults=(refuses(scenes, bad),)) as server:
        said = ended(train(config(server), ranks=2), EXIT_DATA)
    assert f"error: sample {bad}: " in said.replace("rank 0: ", "").replace("rank 1: ", "")
    assert f"the rollout server {server.base_url} refused {CHAT} with 400: " in said
    assert "\n  fix: look at this image and its prompt, or set data.on_bad_sample to skip" in said
    assert not finished_steps(tmp_path)


@pytest.mark.parametrize(
    ("on_lost", "code"), [("fail", EXIT_ENVIRONMENT), pytest.param("requeue", EXIT_STOPPED, marks=pytest.mark.soak)]
)
def test_all_servers_hang_behind_a_finished_step(scenes, config, tmp_path, on_lost, code):
    """Nothing is trained on missing rollouts; what is finished is saved. A scheduler may be told to start it again."""
    second = Fault("hang", when=lambda _, body: not body["min_tokens"] and server.state.weight_version.endswith("/1"))
    with scenes.server(faults=(second,)) as server:
        said = ended(train(config(server, **{f"{MATCHING}.vllm.server.on_lost": on_lost}), ranks=2), code)
        assert time.monotonic() - min(one.start for one in server.chats if one.fault) < LONGEST_S
    head = "stopped" if code == EXIT_STOPPED else "error"
    assert f"{head}: {server.base_url}: " in said and "the rollout of sample train-" in said
    assert "waiting: no rollout server is left; the run waits 1 s more for one" in said
    warnings = (tmp_path / "runs" / "small" / "warnings.log").read_text()
    assert f"rollout server {server.base_url} is lost: the rollout of sample train-" in warnings
    assert f"no answer to {CHAT} within 5 s" in said and "\n  fix: " in said
    assert [step.step for step in finished_steps(tmp_path)] == [1]
    assert (tmp_path / "runs" / "small" / "checkpoints" / "latest").read_text().strip() == "step-000001"
