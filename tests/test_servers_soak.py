"""Servers that fail at random through a whole run: what is learned is what an undisturbed run learns."""

import json
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests import ranks
from tests.equivalence.runs import Runs
from tests.parts import free_port
from tests.proxy import Disturbed
from tests.served_runs import finished_steps
from tests.test_servers_come_and_go import CHANGES, LOSSES, RANKS, wait_for
from tests.vllm_process import MATCHING, running, server_changes

STEPS, EVENTS = 40, 20
MOST_SERVERS = 3
LONGEST_S = 3600
DISTURBED_STEPS, DISTURBED_LONGEST_S = 16, 900
SERVER = f"{MATCHING}.vllm.server"


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Servers start, and replies come late, while a run goes on."""
    monkeypatch.setattr(ranks, "RUN_TIMEOUT_S", LONGEST_S)


def runs(shipped, folder, steps):
    """(runs on both channels, the losses of one that draws its own rollouts)."""
    launched = Runs(shipped, folder, {
        **server_changes("http://127.0.0.1:1"), **CHANGES, "training.max_steps": steps, f"{SERVER}.recover_s": 600,
    })  # fmt: skip
    return launched, launched("alone", 1, {f"{MATCHING}.rollout_backend": "hf"})[0]


def assert_nothing_was_lost(launched, folder, seen, alone):
    """Every rollout is there, once and of the current weights, and what was learned is the same."""
    assert launched.rollouts("disturbed") == launched.rollouts("alone")
    assert seen == pytest.approx(alone, rel=LOSSES)
    files = (folder / "rollouts").glob("rank-*.jsonl")
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    assert {int(line["weight_version"].split("/")[1]) - line["finished_steps"] for line in lines} == {0}


@pytest.mark.soak
@pytest.mark.parametrize("every", [29, 11, 5])
def test_replies_that_are_dropped_late_doubled_cut_and_corrupt(shipped, server, tmp_path, every):
    """From the first step on, whatever the route."""
    launched, alone = runs(shipped, tmp_path, DISTURBED_STEPS)
    folder = tmp_path / "runs" / "disturbed"
    with Disturbed(server.base_url, every=0, seed=every) as proxy, ThreadPoolExecutor(1) as pool:
        one = {f"{SERVER}.servers": [{"base_url": proxy.base_url}], f"{MATCHING}.vllm.sync.timeout_s": 20}
        run = pool.submit(launched, "disturbed", RANKS, one)
        wait_for(lambda: finished_steps(folder), run)
        begun, proxy.every = time.monotonic(), every
        try:
            seen, _ = run.result(timeout=DISTURBED_LONGEST_S)
        finally:
            proxy.every = 0
    assert_nothing_was_lost(launched, folder, seen, alone)
    assert len(proxy.done) == len(Disturbed.KINDS) or every > DISTURBED_STEPS, proxy.done
    assert time.monotonic() - begun < DISTURBED_LONGEST_S


class Fleet:
    """Real servers to which things happen; the file of servers names all of them."""

    def __init__(self, shipped, folder, ended: ExitStack):
        self.shipped, self.folder, self.ended = shipped, folder, ended
        self.file = folder / "servers.yaml"
        self.alive, self.dead, self.stopped, self.starts = {}, [], [], 0

    def start(self, url):
        """Meanwhile the others stand still, and with them the run: there are no more steps than it has."""
        others = [one for one in self.alive.values() if one not in self.stopped]
        for one in others:
            one.signal(signal.SIGSTOP)
        self.starts += 1
        folder = self.folder / f"server-{self.starts}"
        folder.mkdir()
        self.alive[url] = self.ended.enter_context(running(self.shipped, folder, base_url=url))
        for one in others:
            one.signal(signal.SIGCONT)

    def free(self):
        return [url for url, one in self.alive.items() if one not in self.stopped]

    def possible(self):
        several = len(self.free()) > 1
        kinds = {"kill": several, "stop": several, "restart": self.dead, "go on": self.stopped}
        kinds["add"] = len(self.alive) + len(self.dead) < MOST_SERVERS
        return [kind for kind, can in kinds.items() if can]

    def happens(self, kind, draw: random.Random):
        if kind == "kill":
            url = draw.choice(self.free())
            self.alive.pop(url).signal(signal.SIGKILL)
            self.dead.append(url)
        elif kind == "stop":
            self.stopped.append(self.alive[draw.choice(self.free())])
            self.stopped[-1].signal(signal.SIGSTOP)
        elif kind == "go on":
            self.stopped.pop().signal(signal.SIGCONT)
        elif kind == "restart":
            self.start(self.dead.pop(draw.randrange(len(self.dead))))
        else:
            self.start(f"http://127.0.0.1:{free_port()}")
            self.name()

    def name(self):
        new = self.file.with_suffix(".new")
        lines = [f"  - base_url: {url}" for url in (*self.alive, *self.dead)]
        new.write_text("\n".join(["servers:", *lines, ""]))
        new.replace(self.file)

    def go_on(self):
        for one in self.alive.values():
            one.signal(signal.SIGCONT)


@pytest.mark.soak
@pytest.mark.parametrize("seed", [0])
def test_servers_are_killed_stopped_started_again_and_added_at_random(shipped, tmp_path, seed):
    draw, happened = random.Random(seed), []
    launched, alone = runs(shipped, tmp_path, STEPS)
    folder = tmp_path / "runs" / "disturbed"
    with ExitStack() as ended, ThreadPoolExecutor(1) as pool:
        fleet = Fleet(shipped, tmp_path, ended)
        for _ in range(2):
            fleet.start(f"http://127.0.0.1:{free_port()}")
        fleet.name()
        limits = {f"{SERVER}.timeout_s": 10, f"{MATCHING}.vllm.sync.timeout_s": 20}
        run = pool.submit(launched, "disturbed", RANKS, {f"{SERVER}.servers_file": str(fleet.file), **limits})
        try:
            wait_for(lambda: finished_steps(folder), run)
            while len(happened) < EVENTS and not run.done():
                happened.append(draw.choice(fleet.possible()))
                fleet.happens(happened[-1], draw)
                before = len(finished_steps(folder))
                wait_for(lambda before=before: run.done() or len(finished_steps(folder)) > before, run)
            fleet.go_on()
            seen, _ = run.result(timeout=LONGEST_S)
        finally:
            fleet.go_on()
    assert len(happened) == EVENTS and {"kill", "stop", "restart", "add"} <= {*happened}, happened
    assert_nothing_was_lost(launched, folder, seen, alone)
