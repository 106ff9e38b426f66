"""Real servers that are killed, stopped and started again in the middle of a run, which is as if nothing had been."""

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import requests

from ds_stage2ab.rollout.server.handshake import SETTINGS
from tests.equivalence.runs import Runs
from tests.served_runs import finished_steps
from tests.vllm_process import MATCHING, running, server_changes

RANKS, SCENES, STEPS = 2, 8, 10  # A B A B ...
LOSSES = 1e-5  # relative
STOPPED_S = 15  # longer than the wait for an answer
LONGEST_S = 900  # a minute with nothing else to do on two cores
CHANGES = {
    "stage2_ab.schedule.b_ratio": 0.5,
    "training.effective_batch_size": SCENES,
    "training.learning_rate": 0.005,
    "training.max_steps": STEPS,
    f"{MATCHING}.decoding.temperature": 0,
}
PATIENCE = {
    f"{MATCHING}.vllm.server.timeout_s": 10,
    f"{MATCHING}.vllm.sync.timeout_s": 20,
    f"{MATCHING}.vllm.server.recover_s": LONGEST_S,
}


def wait_for(is_so, running):
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < LONGEST_S
        assert not running.done(), running.result()
        time.sleep(0.1)


@pytest.mark.ends_the_server
@pytest.mark.parametrize("restarts", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_a_run_loses_both_servers_and_learns_the_same(shipped, server, tmp_path, restarts):
    """One is killed among the rollouts of a step, and the other takes over. Then that is stopped, too: none is left,
    and the run waits until it goes on and has proven the current weights. Or, first, until the killed one has been
    started again: it has its initial weights, and proves the current ones, too."""
    launched = Runs(shipped, tmp_path, {**server_changes(server.base_url), **CHANGES})
    alone = launched("alone", 1, {f"{MATCHING}.rollout_backend": "hf"})
    folder = tmp_path / "runs" / "disturbed"
    with running(shipped, tmp_path) as other, ThreadPoolExecutor(1) as pool, ExitStack() as again:
        urls = (server.base_url, other.base_url)
        for url in urls:  # a server takes long to tell its settings for the first time
            requests.get(f"{url}{SETTINGS}", timeout=LONGEST_S).raise_for_status()
        both = {f"{MATCHING}.vllm.server.servers": [{"base_url": url} for url in urls]}
        run = pool.submit(launched, "disturbed", RANKS, {**both, **PATIENCE})
        again.callback(other.signal, signal.SIGCONT)
        wait_for(lambda: finished_steps(folder) and server.draws(), run)
        server.signal(signal.SIGKILL)
        wait_for(lambda: served_last(folder) == 1, run)
        other.signal(signal.SIGSTOP)  # in an A step
        if restarts:
            (tmp_path / "again").mkdir()
            killed = again.enter_context(running(shipped, tmp_path / "again", base_url=server.base_url))
            wait_for(lambda: killed.weight_version() != "default", run)
        else:
            time.sleep(STOPPED_S)
        other.signal(signal.SIGCONT)
        seen = run.result(timeout=LONGEST_S)
        versions = [one.weight_version() for one in ((killed, other) if restarts else (other,))]
    assert launched.rollouts("disturbed") == launched.rollouts("alone"), "every rollout, and each once"
    assert seen[0] == pytest.approx(alone[0], rel=LOSSES)
    assert {version.partition("/")[2] for version in versions} == {str(STEPS)}, "the proof at the end of the run"
    assert_told(launched, folder, urls, served=urls if restarts else urls[1:])


def served_last(folder):
    """How many servers served in the last step, if it was a B step."""
    return finished_steps(folder)[-1].metrics.get("rollout/servers")


def assert_told(launched, folder, urls, *, served):
    told = [step.metrics for step in launched.history("disturbed").steps if step.channel == "B"]
    serving, lost, back = ([int(one[f"rollout/servers{end}"]) for one in told] for end in ("", "_lost", "_back"))
    assert (serving[-1], sum(lost), sum(back)) == (len(served), 2, len(served)), (serving, lost, back)
    assert sum(one["rollout/resent"] for one in told) > 0
    warnings = (folder / "warnings.log").read_text()
    for url in urls:
        counts = [warnings.count(f"rollout server {url} is {what}: ") for what in ("lost", "back")]
        assert counts == [1, url in served], warnings
    assert "no rollout server is left; the run waits " in launched.done["disturbed"].stderr
    files = (folder / "rollouts").glob("rank-*.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    last = {line["source"] for line in lines if line["finished_steps"] == STEPS - 1}
    assert last == {f"vllm {url}" for url in served}
