"""Channel B draws its rollouts from a real vLLM server, whose weights are proven; nothing here stands in for it."""

import json
import os
import re
import signal
import subprocess
from dataclasses import replace
from functools import partial

import psutil
import pytest
import requests
import torch
from PIL import Image, ImageOps
from safetensors.torch import load_file

from ds_stage2ab.carriers import Record
from ds_stage2ab.cli import main
from ds_stage2ab.data.images import EXIF_ORIENTATION
from ds_stage2ab.data.records import read_records
from ds_stage2ab.errors import EXIT_OK
from ds_stage2ab.metrics.journal import read_history
from ds_stage2ab.rollout.server.api import ServerApi
from tests.contract.backends import PATIENT_S, TOLERANCE, by_model, by_server, disturbed, drawn, limited_bench, one_rank
from tests.equivalence.runs import Runs
from tests.parts import LAUNCHER, ROOT, config_values, free_port, merged, write_config
from tests.proxy import Proxy
from tests.served_runs import MOVING, assert_the_server_ended, run, run_that_loses
from tests.unit.parts import greedy_sampling
from tests.unit.serving import needs_of
from tests.vllm_process import MATCHING, PYTHON, server_changes

SCENES = 32


@pytest.mark.soak
@pytest.mark.parametrize("updates", [2, 10])
def test_two_ranks_train_as_one_that_draws_its_own_rollouts(shipped, server, tmp_path, updates):
    """The first step draws 32 scenes with the weights of the start, the last with those of all updates before it, each
    sent to the server: not a token differs. And the recording makes the run once more, to the last bit."""
    launched = Runs(shipped, tmp_path, {
        **server_changes(server.base_url),
        "training.effective_batch_size": SCENES,
        "training.global_max_length": 200,  # many packs for each rank, other ones while answers come
        "training.learning_rate": 0.005,
        "training.max_steps": updates + 1,
        "stage2_ab.schedule.b_ratio": 1,
    })  # fmt: skip
    alone = launched("hf", 1, {f"{MATCHING}.rollout_backend": "hf"})
    served = launched("vllm", 2, {"deepspeed.zero_stage": 2})
    assert launched.rollouts("vllm") == launched.rollouts("hf")
    assert len(launched.rollouts("vllm")) == (updates + 1) * SCENES
    assert served[0] == pytest.approx(alone[0], rel=1e-5)
    records = [(tmp_path / "runs" / name / "sampling.json").read_text() for name in ("hf", "vllm")]
    assert records[0] == records[1] and set(json.loads(records[0])) == {"training", "evaluation"}
    first, last = alone[1], served[1]
    assert all(torch.allclose(last[name], first[name], rtol=1e-4, atol=1e-6) for name in first)
    gaps = [step.metrics["rollout/probe_gap"] for step in launched.history("vllm").steps]
    assert all(0 <= gap < TOLERANCE / 10 for gap in gaps)
    recorded = {f"{MATCHING}.rollout_backend": "replay", f"{MATCHING}.replay.run": str(tmp_path / "runs" / "vllm")}
    again = launched("again", 2, {"deepspeed.zero_stage": 2, **recorded})
    assert again[0] == served[0]
    assert all(again[1][name].equal(tensor) for name, tensor in served[1].items())


def test_both_sides_feed_the_vision_tower_the_same_pixels(shipped, server, tmp_path):
    """Of every scene, and of every kind of image that the server could read otherwise."""
    bench = limited_bench(shipped, num_samples=SCENES)
    conversation, api = needs_of(bench).conversation, ServerApi(server.base_url, timeout_s=30, connections=1)
    odd = [bench.encoder.encode(record, draw) for draw, record in enumerate(odd_records(tmp_path))]
    for sample in (*bench.samples, *odd):
        rendered = api.render(conversation.probe(sample, num_tokens=1, seed=0), read_s=60)
        assert sample.vision.pixel_values.numpy().tobytes() in rendered.image, sample.id


def odd_records(folder):
    """A picture of three colours in many forms."""
    picture = Image.new("RGB", (96, 64), "red")
    picture.paste("lime", (32, 0, 64, 64))
    picture.paste("blue", (64, 32, 96, 64))
    alpha = Image.linear_gradient("L").resize(picture.size)
    shown = {"LA": "L", "RGBA": "RGB"}
    for mode, color in shown.items():
        layered = picture.convert(color)
        layered.putalpha(alpha)
        assert layered.mode == mode
        yield kept(layered, folder / f"{mode}.png")
    few = picture.quantize(4)
    yield kept(few, folder / "palette.png")
    yield kept(few, folder / "palette-clear.png", transparency=bytes([0, 128, 255]))
    yield kept(few, folder / "palette.gif", transparency=1)
    yield kept(picture, folder / "color-key.png", transparency=(255, 0, 0))
    for mode in ("1", "L", "CMYK"):
        yield kept(picture.convert(mode), folder / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = turn
        yield kept(picture, folder / f"turned-{turn}.jpg", exif=exif)


def kept(image, path, **settings):
    image.save(path, **settings)
    width, height = ImageOps.exif_transpose(Image.open(path)).size
    return Record(id=path.name, image=path, width=width, height=height, objects=(), where=path.name)


def test_both_channels_train_with_adapters_under_zero_3(shipped, server, tmp_path):
    """Every rollout says which weights made it, and evaluation asks the server too. What does not train was sent before
    the first step."""
    changes = {
        "deepspeed.zero_stage": 3,
        "model.freeze": ["vision"],
        "stage2_ab.channel_b.target": "append",
        "tuner.type": "lora",
        "data.validation": str(shipped.data / "validation.jsonl"),
        f"{MATCHING}.vllm.sync.bucket_mb": 1,
        f"{MATCHING}.decoding.temperature": 1.0,
    }
    done, steps, folder = run(shipped, tmp_path, server.base_url, changes)
    assert done.returncode == EXIT_OK, done.stdout[-3000:] + done.stderr[-3000:]
    assert "".join(step.channel for step in steps) == "ABAB"
    assert [step.metrics.get("rollout/count") for step in steps] == [None, 8, None, 8]
    told = [step.metrics for step in steps if step.channel == "B"]
    assert all(0 <= one["rollout/probe_gap"] < TOLERANCE for one in told)
    weights = load_file(shipped.model / "model.safetensors")
    adapted = re.compile(r"language_model\.layers\.\d+\.(self_attn|mlp)\.|visual\.(merger|deepstack_merger_list)\.")
    num_bytes = sum(tensor.nbytes for name, tensor in weights.items() if adapted.search(name))
    assert num_bytes < 0.7 * sum(tensor.nbytes for tensor in weights.values())
    assert all(one["rollout/sync_bytes"] == num_bytes and one["rollout/sync_s"] > 0 for one in told)
    files = [file.read_text().splitlines() for file in (folder / "rollouts").glob("*.jsonl")]
    lines = [json.loads(line) for file in files for line in file]
    assert {line["source"] for line in lines} == {f"vllm {server.base_url}"}
    versions = {line["weight_version"] for line in lines}
    assert {version.split("/")[1] for version in versions} == {"1", "3"}
    assert len({version.split("/")[0] for version in versions}) == 1
    (evaluation,) = read_history(folder / "metrics.jsonl").evaluations[-1:]
    assert evaluation.metrics["eval/samples"] == 12


def test_a_server_that_only_says_that_it_took_the_weights_is_found_out(shipped, server, tmp_path):
    """It goes on with those that it has, of an earlier start."""
    bench = limited_bench(shipped, num_samples=1)
    with one_rank() as world:
        by_server(bench, server.base_url, world, start_id="earlier").verify_weights(0)
    with Proxy(server.base_url) as proxy:
        ran = run(shipped, tmp_path, proxy.base_url, {f"{MATCHING}.vllm.sync.timeout_s": 5})
    assert_the_server_ended(ran, proxy.base_url)
    assert not ran.steps
    assert f"error: {proxy.base_url}: connecting for the transfer of weights: " in ran.done.stderr
    assert "workers must reach rank 0 at 127.0.0.1:" in ran.done.stderr
    assert server.weight_version() == "earlier/0"


def test_a_head_that_keeps_its_old_weights_is_found_out(shipped, server, tmp_path):
    """Version and every checksum are right then: only the probe can tell."""
    server.spoil_heads(spoil=True)
    try:
        ran = run(shipped, tmp_path, server.base_url, {"training.learning_rate": 0.2})
    finally:
        server.spoil_heads(spoil=False)
    assert_the_server_ended(ran, server.base_url)
    assert "the server computes with other weights than the learner" in ran.done.stderr
    assert [step.channel for step in ran.steps] == ["A"]


def test_a_weight_that_does_not_train_and_changes_at_the_server_is_found_out(shipped, server):
    """It is not sent again: the probe tells, and the server is sent everything before it serves."""
    bench = limited_bench(shipped, num_samples=1)
    for module in (bench.model.get_input_embeddings(), bench.model.model.language_model.norm):
        module.requires_grad_(False)
    with one_rank() as world:
        served = by_server(bench, server.base_url, world, start_id="table")
        served.verify_weights(0)
        everything = served.transfer.num_bytes
        served.verify_weights(1)
        assert served.transfer.num_bytes < everything and not served.settle(counts=True).lost
        server.spoil_the_table()
        served.servers.recover_s = PATIENT_S
        served.verify_weights(2)
        assert served.transfer.num_bytes == everything and served.probe_gap < TOLERANCE / 10
        changes = served.settle(counts=True)
    assert (changes.lost, changes.back) == (1, 1)
    assert "the server computes with other weights than the learner" in changes.warnings[0]


@pytest.mark.soak
def test_a_frozen_server_ends_the_run_which_saves_what_is_finished(shipped, server, tmp_path):
    """The server goes on with the next run as if nothing had been."""
    impatient = {
        f"{MATCHING}.vllm.server.timeout_s": 4,
        f"{MATCHING}.vllm.server.infer_timeout_s": 6,
        f"{MATCHING}.vllm.sync.timeout_s": 6,
    }
    freeze = partial(server.signal, signal.SIGSTOP)
    try:
        ran = run_that_loses(shipped, tmp_path, server.base_url, impatient, happens=freeze)
    finally:
        server.signal(signal.SIGCONT)
    assert_the_server_ended(ran, server.base_url)
    assert "within" in ran.done.stderr
    done, steps, _ = run(shipped, tmp_path / "runs", server.base_url, {})
    assert done.returncode == EXIT_OK, done.stderr[-3000:]
    assert [step.channel for step in steps] == list("ABAB")


@pytest.mark.soak
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
    bench = limited_bench(shipped, num_samples=1)
    with one_rank() as world:
        served = by_server(bench, server.base_url, world, start_id="caches")
        alone = by_model(bench, world, start_id="caches")
        answers = [the_answer(served, bench, 0)]
        for step, changed in enumerate((bench.model.model.visual, bench.model.get_input_embeddings()), start=1):
            with disturbed(changed):
                answers.append(the_answer(served, bench, step))
                assert served.probe_gap < TOLERANCE / 10
                assert answers[-1] == the_answer(alone, bench, step)
    assert len(set(answers)) == 3


def the_answer(backend, bench, step):
    (rollout,) = drawn(backend, bench.samples, greedy_sampling(), step)
    assert rollout.weight_version == f"caches/{step}"
    return rollout.response_ids


def test_a_prompt_of_its_own_reaches_the_server_as_the_same_ids(shipped, server):
    """A rollout whose prompt has other ids than the learner's is refused, and so never returned."""
    bench = limited_bench(shipped, num_samples=1)
    (record, *_) = read_records(shipped.data / "train.jsonl", image_root=None, box_format="bins")
    prompts = ("Find: boat, caf\u00e9, two.", " What is left of the 3?\nName it. ", "{classes}")
    asked = [bench.encoder.encode(replace(record, prompt=prompt), draw) for draw, prompt in enumerate(prompts)]
    with one_rank() as world:
        rollouts = drawn(by_server(bench, server.base_url, world, start_id="own"), asked, greedy_sampling(), 0)
        alone = drawn(by_model(bench, world, start_id="own"), asked, greedy_sampling(), 0)
    assert [one.prompt_ids for one in rollouts] == [sample.prompt_ids for sample in asked]
    assert [one.response_ids for one in rollouts] == [one.response_ids for one in alone]
    assert len({sample.prompt_ids for sample in asked}) == 3


def test_predict_asks_a_server_and_gets_the_answers_of_the_checkpoint_that_it_serves(shipped, server, tmp_path):
    """From the command line: boxes, names and text to the last token, scores up to rounding."""
    bench = limited_bench(shipped, num_samples=1)
    with one_rank() as world:  # the weights of the test before are gone then
        by_server(bench, server.base_url, world, start_id="0").verify_weights(0)
    values = merged(config_values(shipped, tmp_path, "run"), server_changes(server.base_url))
    config = write_config(tmp_path / "c.yaml", values)  # the server's images are small, and the checkpoint's are not
    images = sorted((shipped.data / "images").glob("validation*.png"))
    lines = []
    for checkpoint, name in ((server.base_url, "served"), (shipped.model, "alone")):
        words = ["predict", checkpoint, *images, "--config", config, "--batch", 4, "--out", tmp_path / name]
        assert main([*map(str, words), "--no-pictures"]) == EXIT_OK
        lines.append([json.loads(line) for line in (tmp_path / name / "predictions.jsonl").read_text().splitlines()])
    served, alone = ([[dict(one) for one in line.pop("objects")] for line in some] for some in lines)
    scores = [[one.pop("score") for line in some for one in line] for some in (served, alone)]
    assert (served, lines[0]) == (alone, lines[1])
    assert len(scores[0]) > len(images) / 2 and scores[0] == pytest.approx(scores[1], rel=1e-2)  # 30 tokens each
