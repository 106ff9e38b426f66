"""Several real vLLM servers, or workers of one: the rollouts, and what is learned from them, are those of one."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest
import requests
from safetensors.torch import load_file

from ds_stage2ab.errors import ServerFault
from ds_stage2ab.launch.server_command import PROPOSER
from tests.contract.backends import by_model, by_server, disturbed, drawn, limited_bench, one_rank
from tests.equivalence.runs import Runs, assert_same_run
from tests.unit.parts import NO_GUARD, greedy_sampling
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
def test_the_best_of_three_rollouts_by_a_server_and_by_one_learner_alone_is_the_same_run(shipped, server, tmp_path):
    launched = runs_with(shipped, server.base_url, tmp_path)
    best = {f"{MATCHING}.best_of": 3, f"{MATCHING}.decoding.temperature": 1.0}
    served = launched("served", 2, best)
    alone = launched("alone", 1, {**best, f"{MATCHING}.rollout_backend": "hf"})
    assert len(launched.rollouts("served")) == 3 * B_STEPS * SCENES
    assert launched.rollouts("served") == launched.rollouts("alone")
    assert_same_run(served, alone, load_file(shipped.model / "model.safetensors"))


AHEAD = json.dumps({"method": "custom_class", "model": PROPOSER, "num_speculative_tokens": 8})
GREEDY = greedy_sampling(max_new_tokens=200)
GUARDED = replace(GREEDY, repeat_terminate=replace(NO_GUARD, max_objects=1))


def counted(base_url, name) -> float:
    told = requests.get(f"{base_url}/metrics", timeout=(5, 30)).text
    return sum(map(float, re.findall(rf"^vllm:{name}_total\{{.*\}} (\S+)$", told, re.MULTILINE)))


@pytest.mark.soak
def test_a_server_that_drafts_writes_the_same_answers_in_fewer_passes_and_is_refused_where_answers_are_drawn(
    shipped, tmp_path, capfd
):
    """Of the shipped weights and, after a transfer, of others; rules of the guard are kept by the learner alone."""
    bench = limited_bench(shipped, num_samples=16)
    with running(shipped, tmp_path, "--speculative-config", AHEAD) as ahead, one_rank() as world:
        with pytest.raises(ServerFault, match=r"speculation: it decodes ahead \(custom_class\) and leaves out"):
            by_server(bench, ahead.base_url, world, start_id="ahead")
        served = by_server(bench, ahead.base_url, world, start_id="ahead", draws=False)
        assert "decodes ahead (custom_class): the repetition guard does not act inside it" in capfd.readouterr().err
        alone = by_model(bench, world, start_id="ahead")

        def written(backend, sampling, step):
            return [(one.response_ids, one.finish) for one in drawn(backend, bench.samples, sampling, step)]

        assert written(served, GREEDY, 0) == written(alone, GREEDY, 0)
        accepted = counted(ahead.base_url, "spec_decode_num_accepted_tokens")
        assert accepted > 0.5 * counted(ahead.base_url, "generation_tokens")
        guarded = written(served, GUARDED, 0)
        assert guarded == written(alone, GUARDED, 0) and {finish for _, finish in guarded} >= {"repeat"}
        with disturbed(bench.model.model.language_model):
            assert written(served, GREEDY, 1) == written(alone, GREEDY, 1)
        assert 0 <= served.probe_gap < TOLERANCE


@pytest.mark.soak
def test_two_servers_draw_what_one_draws(shipped, server, tmp_path):
    """Whichever of them has a free permit, and each is used again."""
    launched = runs_with(shipped, server.base_url, tmp_path)
    one = launched("one", 2, {})
    with running(shipped, tmp_path) as second:
        urls = (server.base_url, second.base_url)
        two = launched("two", 2, {f"{MATCHING}.vllm.server.servers": [{"base_url": url} for url in urls]})
    assert launched.rollouts("two") == launched.rollouts("one")
    assert_same_run(two, one, load_file(shipped.model / "model.safetensors"))
    files = (tmp_path / "runs" / "two" / "rollouts").glob("rank-*.jsonl")
    sources = Counter(json.loads(line)["source"] for file in files for line in file.read_text().splitlines())
    assert sum(sources.values()) == 2 * SCENES and set(sources) == {f"vllm {url}" for url in urls}  # two B steps
