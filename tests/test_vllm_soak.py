"""Several real vLLM servers, or workers of one: the rollouts, and what is learned from them, are those of one."""

import json
import re
from collections import Counter

import pytest
import requests
from safetensors.torch import load_file

from tests.equivalence.runs import Runs, assert_same_run
from tests.vllm_process import MATCHING, running, server_changes

SCENES, STEPS = 32, 4
B_STEPS = 2
TOLERANCE = 1e-4  # nats per token, in fp32
DRAWN = re.compile(r'^vllm:generation_tokens_total\{engine="(\d)".*\} (\S+)$', re.MULTILINE)


def runs_with(shipped, base_url, tmp_path) -> Runs:
    """Launched runs that draw from that server, or another: A B A B."""
    return Runs(shipped, tmp_path, {
        **server_changes(base_url),
        "training.effective_batch_size": SCENES,
        "training.max_steps": STEPS,
        "stage2_ab.schedule.b_ratio": B_STEPS / STEPS,
    })  # fmt: skip


@pytest.mark.soak
@pytest.mark.parametrize(
    ("form", "devices", "engines"), [("--data-parallel-size", 1, {"0", "1"}), ("--tensor-parallel-size", 2, {"0"})]
)
def test_a_server_of_two_workers_draws_what_one_worker_draws(
    shipped, server, tmp_path, monkeypatch, form, devices, engines
):
    """Two replicas, or one over two devices: both take the weights, are probed, and write."""
    launched = runs_with(shipped, server.base_url, tmp_path)
    one = launched("one", 2, {})
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1" if devices == 2 else "auto")
    with running(shipped, tmp_path, form, "2") as wide:
        section = {"base_url": wide.base_url, "tensor_parallel_size": devices}
        two = launched("two", 2, {f"{MATCHING}.vllm.server.servers": [section]})
        told = requests.get(f"{wide.base_url}/metrics", timeout=(5, 30)).text
    assert launched.rollouts("two") == launched.rollouts("one")
    assert_same_run(two, one, load_file(shipped.model / "model.safetensors"))
    assert {engine for engine, tokens in DRAWN.findall(told) if float(tokens)} == engines
    gaps = [step.metrics["rollout/probe_gap"] for step in launched.history("two").steps if step.channel == "B"]
    assert len(gaps) == B_STEPS and all(0 <= gap < TOLERANCE for gap in gaps)


@pytest.mark.soak
def test_two_servers_draw_what_one_draws(shipped, server, tmp_path):
    """Each is asked for half, which is more than all ranks together have places there: places are used again."""
    launched = runs_with(shipped, server.base_url, tmp_path)
    one = launched("one", 2, {})
    with running(shipped, tmp_path) as second:
        urls = (server.base_url, second.base_url)
        two = launched("two", 2, {f"{MATCHING}.vllm.server.servers": [{"base_url": url} for url in urls]})
    assert launched.rollouts("two") == launched.rollouts("one")
    assert_same_run(two, one, load_file(shipped.model / "model.safetensors"))
    files = (tmp_path / "runs" / "two" / "rollouts").glob("rank-*.jsonl")
    sources = Counter(json.loads(line)["source"] for file in files for line in file.read_text().splitlines())
    assert sources == {f"vllm {url}": SCENES for url in urls}  # two B steps, half of each
