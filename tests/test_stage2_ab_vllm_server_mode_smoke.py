"""Channel B draws its rollouts from a real vLLM server, whose weights are proven; nothing here stands in for it."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from unittest import mock

import psutil
import pytest
import requests
import torch

from ds_stage2ab.config.sections import ServerSection
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import position_index, start_process_group
from ds_stage2ab.engine.tuner import merged_tensors
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.errors import EXIT_ENVIRONMENT, EXIT_OK
from ds_stage2ab.metrics.journal import read_history
from ds_stage2ab.rollout.hf import HfBackend
from ds_stage2ab.rollout.servers import open_servers
from ds_stage2ab.world import World, fill_launcher_variables
from tests.equivalence.runs import Runs
from tests.parts import LAUNCHER, ROOT, config_values, free_port, launch, merged, write_config
from tests.proxy import Proxy
from tests.unit.parts import MATCHING as SECTION
from tests.unit.parts import greedy_sampling, load_bench
from tests.unit.serving import needs_of
from tests.vllm_process import MATCHING, MAX_PIXELS, PYTHON, running, server_changes

SCENES = 32
TOLERANCE = 1e-3  # nats per token, in fp32
MOVING = {"training.learning_rate": 0.02, "training.max_steps": 4}
LONGEST_S = 60


@pytest.fixture(scope="module")
def server(shipped, tmp_path_factory):
    with running(shipped, tmp_path_factory.mktemp("server")) as started:
        yield started


def run(shipped, tmp_path, base_url, changes, ranks=2):
    """(process, finished steps, run folder)."""
    changed = {**server_changes(base_url), **MOVING, **changes}
    values = merged(config_values(shipped, tmp_path / "runs", "small"), changed)
    done = launch(write_config(tmp_path / "small.yaml", values), ranks=ranks)
    folder = tmp_path / "runs" / "small"
    steps = read_history(folder / "metrics.jsonl").steps if folder.exists() else []
    return done, steps, folder


def test_two_ranks_train_as_one_that_draws_its_own_rollouts(shipped, server, tmp_path):
    """Step 1 draws 32 scenes with the weights of the start, step 3 with those of two updates: not a token differs."""
    launched = Runs(shipped, tmp_path, {
        **server_changes(server.base_url),
        "training.effective_batch_size": SCENES,
        "training.learning_rate": 0.005,
        "training.max_steps": 3,
        "stage2_ab.schedule.b_ratio": 1,
    })  # fmt: skip
    alone = launched("hf", 1, {f"{MATCHING}.rollout_backend": "hf"})
    served = launched("vllm", 2, {"deepspeed.zero_stage": 2})
    assert launched.rollouts("vllm") == launched.rollouts("hf")
    assert len(launched.rollouts("vllm")) == 3 * SCENES
    assert served[0] == pytest.approx(alone[0], rel=1e-5)
    first, last = alone[1], served[1]
    assert all(torch.allclose(last[name], first[name], rtol=1e-4, atol=1e-6) for name in first)
    gaps = [step.metrics["rollout/probe_gap"] for step in launched.history("vllm").steps]
    assert all(0 <= gap < TOLERANCE / 10 for gap in gaps)


def test_both_channels_train_with_adapters_under_zero_3(shipped, server, tmp_path):
    """Every rollout says which weights made it, and evaluation asks the server too."""
    changes = {
        "deepspeed.zero_stage": 3,
        "tuner.type": "lora",
        "data.validation": str(shipped.data / "validation.jsonl"),
        f"{MATCHING}.vllm.sync.bucket_mb": 1,
        f"{MATCHING}.decoding.temperature": 1.0,
    }
    done, steps, folder = run(shipped, tmp_path, server.base_url, changes)
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert "".join(step.channel for step in steps) == "ABAB"
    assert [step.metrics.get("rollout/count") for step in steps] == [None, 8, None, 8]
    gaps = [step.metrics["rollout/probe_gap"] for step in steps if step.channel == "B"]
    assert all(0 <= gap < TOLERANCE for gap in gaps)
    files = [file.read_text().splitlines() for file in (folder / "rollouts").glob("*.jsonl")]
    lines = [json.loads(line) for file in files for line in file]
    assert {line["source"] for line in lines} == {f"vllm {server.base_url}"}
    versions = {line["weight_version"] for line in lines}
    assert {version.split("/")[1] for version in versions} == {"1", "3"}
    assert len({version.split("/")[0] for version in versions}) == 1
    (evaluation,) = read_history(folder / "metrics.jsonl").evaluations[-1:]
    assert evaluation.metrics["eval/samples"] == 12


def test_a_server_that_only_says_that_it_took_the_weights_is_found_out(shipped, server, tmp_path):
    with Proxy(server.base_url) as proxy:
        values = {f"{MATCHING}.vllm.sync.timeout_s": 5}
        done, steps, folder = run(shipped, tmp_path, proxy.base_url, values)
    assert done.returncode == EXIT_ENVIRONMENT, done.stderr[-3000:]
    assert not steps and not (folder / "checkpoints").exists()
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert f"error: {proxy.base_url}: connecting for the transfer of weights: " in done.stderr
    assert "workers must reach rank 0 at 127.0.0.1:" in done.stderr


def test_a_head_that_keeps_its_old_weights_is_found_out(shipped, server, tmp_path):
    """Version and every checksum are right then: only the probe can tell."""
    server.spoil_heads(spoil=True)
    try:
        done, steps, folder = run(shipped, tmp_path, server.base_url, {"training.learning_rate": 0.2})
    finally:
        server.spoil_heads(spoil=False)
    assert done.returncode == EXIT_ENVIRONMENT, done.stdout[-2000:] + done.stderr[-3000:]
    assert "the server computes with other weights than the learner" in done.stderr
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert [step.channel for step in steps] == ["A"]
    assert (folder / "checkpoints" / "latest").read_text().strip() == "step-000001"


def test_a_frozen_server_ends_the_run_which_saves_what_is_finished(shipped, server, tmp_path):
    """It freezes behind the second step; the server goes on with the next run as if nothing had been."""
    changes = {
        **server_changes(server.base_url),
        **MOVING,
        "training.max_steps": 200,
        f"{MATCHING}.vllm.server.timeout_s": 4,
        f"{MATCHING}.vllm.server.infer_timeout_s": 6,
        f"{MATCHING}.vllm.sync.timeout_s": 6,
    }
    values = merged(config_values(shipped, tmp_path / "runs", "small"), changes)
    config = write_config(tmp_path / "small.yaml", values)
    command = [str(LAUNCHER), "--num_gpus", "2", "--master_port", str(free_port()), "ds_stage2ab/train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = f"{LAUNCHER.parent}{os.pathsep}{environment['PATH']}"
    metrics = tmp_path / "runs" / "small" / "metrics.jsonl"
    with subprocess.Popen(
        [*command, "--config", str(config)],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            _until(lambda: metrics.exists() and len(read_history(metrics).steps) >= 2)
            server.freeze()
            frozen = time.monotonic()
            stdout, stderr = process.communicate(timeout=LONGEST_S)
        finally:
            server.freeze(signal.SIGCONT)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert time.monotonic() - frozen < LONGEST_S
    assert process.returncode == EXIT_ENVIRONMENT, stdout[-2000:] + stderr[-3000:]
    assert server.base_url in stderr and "within" in stderr and "\n  fix: " in stderr
    assert "Traceback" not in stderr
    finished = read_history(metrics).steps[-1].step
    latest = tmp_path / "runs" / "small" / "checkpoints" / "latest"
    assert latest.read_text().strip() == f"step-{finished:06d}"
    done, steps, _ = run(shipped, tmp_path / "runs", server.base_url, {})
    assert done.returncode == EXIT_OK, done.stderr[-3000:]
    assert [step.channel for step in steps] == list("ABAB")


def _until(is_so, longest_s=120):
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < longest_s
        time.sleep(0.05)


def test_one_command_starts_the_server_and_the_learner_and_ends_both(shipped, tmp_path):
    """`ds-stage2ab launch` on the CPU: nothing that it started is left when the run is done."""
    base_url = f"http://127.0.0.1:{free_port()}"
    values = merged(config_values(shipped, tmp_path / "runs", "small"), {**server_changes(base_url), **MOVING})
    config = write_config(tmp_path / "small.yaml", values)
    words = ["launch", "--config", str(config), "--cpu", "--train-ranks", "2", "--server-python", str(PYTHON)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{LAUNCHER.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [str(LAUNCHER.with_name("ds-stage2ab")), *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == EXIT_OK, done.stdout[-2000:] + done.stderr[-3000:]
    steps = read_history(tmp_path / "runs" / "small" / "metrics.jsonl").steps
    assert [step.channel for step in steps] == list("ABAB")
    with pytest.raises(requests.RequestException):
        requests.get(f"{base_url}/health", timeout=(1, 1))
    signs = (str(config), f"--port {base_url.rpartition(':')[2]} ")
    assert not any(sign in words for words in alive() for sign in signs)


def alive():
    """The command lines of all processes of this machine."""
    for process in psutil.process_iter(["cmdline"]):
        yield " ".join(process.info["cmdline"] or [])


def test_no_cache_of_the_server_outlives_the_weights_that_filled_it(shipped, server):
    """The same request three times: as it was, with another vision tower alone, with other tied embeddings alone."""
    with mock.patch.dict(os.environ):
        fill_launcher_variables()
        world = World(start_process_group(1800))
        bench = load_bench(shipped, num_samples=1)
        image_processor = bench.encoder.image_processor
        image_processor.size = {**dict(image_processor.size), "longest_edge": MAX_PIXELS}
        records = read_records(shipped.data / "train.jsonl", image_root=None, box_format="bins")
        bench = replace(bench, samples=[bench.encoder.encode(next(iter(records)), 0)])
        served, alone = both_backends(bench, server.base_url, world)
        answers = [the_answer(served, bench, 0)]
        for step, changed in enumerate((bench.model.model.visual, bench.model.get_input_embeddings()), start=1):
            disturb(changed)
            answers.append(the_answer(served, bench, step))
            assert served.probe_gap < TOLERANCE / 10
            assert answers[-1] == the_answer(alone, bench, step)
    assert len(set(answers)) == 3


def both_backends(bench, base_url, world):
    """(by the server, by the model itself), of the same weights."""
    positions, lent = position_index(bench.model), WholeModel(bench.model, world, is_partitioned=False)
    section = replace(SECTION.vllm, server=servers_at(base_url))
    served = open_servers(
        section, needs_of(bench), bench.model, positions, lent, lambda: merged_tensors(bench.model), world,
        start_id="caches", seed=42, probe_tolerance=TOLERANCE,
    )  # fmt: skip
    return served, HfBackend(lent, bench.vocabulary, positions, decode_batch_size=4, start_id="caches", seed=42)


def servers_at(base_url):
    one = ServerSection(base_url=base_url, group_port=None, tensor_parallel_size=1)
    return replace(SECTION.vllm.server, servers=(one,), timeout_s=30.0)


def disturb(module):
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


def the_answer(backend, bench, step):
    with backend.current_weights(step):
        (rollout,) = backend.generate(bench.samples, greedy_sampling(), finished_steps=step)
    assert rollout.weight_version == f"caches/{step}"
    return rollout.response_ids
