"""A real vLLM server on the CPU, started as the launcher starts it, from the environment that `make vllm` makes."""

import os
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

from ds_stage2ab.config.load import load_config
from ds_stage2ab.launch.server_command import server_command
from tests.parts import ROOT, config_values, free_port, merged, write_config

PYTHON = Path(os.environ.get("DS_STAGE2AB_VLLM_PYTHON", ROOT / ".venv-vllm" / "bin" / "python"))
# Ends the server with the tests, also when those are killed.
SUPERVISOR = (sys.executable, "-m", "ds_stage2ab.launch.supervisor", "5", "child")
STOP_S = 30
LONGEST_START_S = 600  # a minute on a machine with nothing else to do
RECOVER_S = 2  # how long a run waits for a server that it has lost
MAX_PIXELS = 80 * 80  # below many scenes: the server must reduce them alike
MATCHING = "custom.extra.rollout_matching"


class Server:
    """One running server, below its supervisor."""

    def __init__(self, process: subprocess.Popen, base_url: str, log: Path) -> None:
        self.process, self.base_url, self.log = process, base_url, log

    def spoil_heads(self, *, spoil: bool) -> None:
        self._call("keep_old_heads", spoil=spoil)

    def spoil_the_table(self) -> None:
        self._call("spoil_the_table")

    def _call(self, method: str, **settings: bool) -> None:
        """What `tests.vllm_tools` can do there."""
        body = {"method": method, "kwargs": settings}
        requests.post(f"{self.base_url}/collective_rpc", json=body, timeout=(5, 30)).raise_for_status()

    def signal(self, number: int) -> None:
        """To every process of the server."""
        for one in psutil.Process(self.process.pid).children(recursive=True):
            one.send_signal(number)

    def draws(self) -> bool:
        """Whether it decodes several answers at this moment: a probe is one alone."""
        try:
            told = requests.get(f"{self.base_url}/metrics", timeout=(2, 5)).text
        except requests.RequestException:
            return False
        count = re.search(r"^vllm:num_requests_running\{.*\} ([0-9.]+)$", told, re.MULTILINE)
        return count is not None and float(count[1]) > 1

    def weight_version(self) -> str:
        """`default` of a server that nobody has sent weights to."""
        reply = requests.get(f"{self.base_url}/weight_info", timeout=(5, 30))
        reply.raise_for_status()
        return reply.json()["weight_version"]


def server_changes(base_url: str) -> dict:
    """What makes a small run draw its rollouts there."""
    return {
        f"{MATCHING}.rollout_backend": "vllm",
        f"{MATCHING}.vllm.server.servers": [{"base_url": base_url}],
        f"{MATCHING}.vllm.server.recover_s": RECOVER_S,
        f"{MATCHING}.max_new_tokens": 96,
        "stage2_ab.schedule.b_ratio": 0.5,
        "data.max_pixels": MAX_PIXELS,
        "logging.rollouts": True,
    }


@contextmanager
def running(parts, folder: Path, *more: str, base_url: str = ""):
    """A server with the weights of `parts.model`, started with `more` too; all of its processes are gone afterwards.

    Args:
        base_url: where it listens; empty: at a free port.
    """
    assert PYTHON.exists(), f"no vLLM server environment at {PYTHON}: run `make vllm`"
    base_url = base_url or f"http://127.0.0.1:{free_port()}"
    values = merged(config_values(parts, folder, "server"), server_changes(base_url))
    config = load_config(write_config(folder / "server.yaml", values)).config
    words, variables = server_command(config, config.rollout_matching.vllm.server.servers[0], python=PYTHON, devices=())
    words += ["--worker-extension-cls", "tests.vllm_tools.Tools", *more]
    with started(words, variables, base_url, folder) as server:
        yield server


@contextmanager
def started(words, variables, base_url: str, folder: Path):
    """The server of this command line, once it answers."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    log = folder / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [*SUPERVISOR, *words], cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip
    server = Server(process, base_url, log)
    try:
        _wait(server)
        yield server
    finally:
        process.stdin.close()
        process.wait(timeout=STOP_S)


def _wait(server: Server) -> None:
    begun = time.monotonic()
    while time.monotonic() - begun < LONGEST_START_S and server.process.poll() is None:
        try:
            if requests.get(f"{server.base_url}/health", timeout=(1, 5)).ok:
                return
        except requests.RequestException:
            time.sleep(0.5)
    tail = server.log.read_text()[-3000:]
    sys.stderr.write(tail)
    raise AssertionError(f"the vLLM server did not start; its last words:\n{tail}")
