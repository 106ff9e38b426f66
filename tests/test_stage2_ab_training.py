"""Acceptance: a run of the real launcher on both channels, from config to run folder.

PYTHONPATH=. python -m pytest -q tests/test_stage2_ab_training.py
"""

import json
import re

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from ds_stage2ab.cli import main
from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.load import load_config
from ds_stage2ab.metrics.journal import read_history
from ds_stage2ab.metrics.registry import METRICS
from tests.parts import config_values, merged, write_config
from tests.ranks import launch, train

STEPS = 12
BATCH = 8


@pytest.fixture(scope="module", params=["rewrite", pytest.param("append", marks=pytest.mark.soak)])
def trained(request, shipped, tmp_path_factory):
    """Two ranks, ZeRO 1, AdamW, evaluation before and after; returns (finished process, run folder, config file).

    With both targets of Channel B; one is started by the launcher, the other as the ranks that it would start.

    From the shipped checkpoint, with a strict IoU gate: its rollouts hold matched, spurious and missed objects. Every
    step sees the same 8 scenes, so that losses of different steps can be compared.
    """
    folder = tmp_path_factory.mktemp("trained")
    lines = (shipped.data / "train.jsonl").read_text().splitlines(keepends=True)
    (folder / "train.jsonl").write_text("".join(lines[:BATCH]))
    changes = {
        "training.optimizer": "adamw",
        "training.learning_rate": 3e-4,
        "stage2_ab.schedule.b_ratio": 0.5,
        "stage2_ab.channel_b.target": request.param,
        "custom.extra.rollout_matching.iou_gate": 0.75,
        "training.max_steps": STEPS,
        "training.effective_batch_size": BATCH,
        "training.per_device_train_batch_size": 2,
        "data.train": str(folder / "train.jsonl"),
        "data.image_root": str(shipped.data),
        "data.validation": str(shipped.data / "validation.jsonl"),
        "deepspeed.zero_stage": 1,
        "deepspeed.gradient_clipping": 1.0,
        "logging.trackers": ["tensorboard"],
        "logging.rollouts": True,
        "checkpoint.every_steps": 5,
        "checkpoint.keep_last": 2,
        "evaluation.num_pictures": 2,
    }
    config = write_config(folder / "small.yaml", merged(config_values(shipped, folder / "runs", "small"), changes))
    done = launch(config, ranks=2) if request.param == "rewrite" else train(config, ranks=2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done, folder / "runs" / "small", config


def test_every_step_uses_exactly_the_effective_batch(trained):
    _, run, _ = trained
    steps = read_history(run / "metrics.jsonl").steps
    assert [record.step for record in steps] == list(range(1, STEPS + 1))
    assert {record.metrics["train/samples"] for record in steps} == {BATCH}
    assert all(record.applied for record in steps)
    assert "".join(record.channel for record in steps) == "AB" * (STEPS // 2)


def test_both_channels_supervise_every_true_object_once(trained):
    """Teacher-forced, matched or appended: the boxes that are learned are exactly those of the records."""
    _, run, config = trained
    lines = (config.parent / "train.jsonl").read_text().splitlines()
    num_objects = sum(len(json.loads(line)["objects"]) for line in lines)
    assert {r.metrics["train/objects"] for r in read_history(run / "metrics.jsonl").steps} == {num_objects}


def test_rollouts_are_the_models_own_answers(trained):
    """Written by the current weights, read as objects, and near enough to the true ones to be matched."""
    _, run, _ = trained
    steps = [record for record in read_history(run / "metrics.jsonl").steps if record.channel == "B"]
    lines = [json.loads(line) for file in (run / "rollouts").iterdir() for line in file.read_text().splitlines()]
    for record in steps:
        own = [line for line in lines if line["finished_steps"] == record.step - 1]
        assert sorted(line["draw"] for line in own) == list(range(BATCH * (record.step - 1), BATCH * record.step))
        assert {line["weight_version"].split("/")[1] for line in own} == {str(record.step - 1)}
        assert record.metrics["rollout/count"] == len(own) == BATCH
        assert record.metrics["rollout/tokens"] == sum(len(line["response_ids"]) for line in own)
        assert sum('"desc"' in line["text"] for line in own) >= 0.75 * BATCH
        assert record.metrics["parse/ok"] >= 0.75
        assert record.metrics["match/f1"] > 0.2


def test_what_a_rollout_missed_is_taught_with_its_text(trained):
    """With `append` the only descriptions that a B step supervises are those of appended objects."""
    _, run, _ = trained
    missing = [r for r in read_history(run / "metrics.jsonl").steps if r.metrics.get("match/recall", 1.0) < 1.0]
    assert len(missing) >= 2
    assert all(record.metrics["loss/desc_ce"] > 0 for record in missing)


def test_a_b_step_says_what_became_of_the_objects(trained):
    _, run, config = trained
    appends = "append" in config.read_text()
    for metrics in (r.metrics for r in read_history(run / "metrics.jsonl").steps if r.channel == "B"):
        told = {name: metrics[f"target/{name}"] for name in ("matched", "missed", "spurious", "duplicate")}
        assert told["matched"] + told["missed"] == metrics["train/objects"]
        predicted = told["matched"] + told["spurious"] + told["duplicate"]
        assert predicted / metrics["train/objects"] == pytest.approx(metrics["match/predicted_per_true"])
        assert metrics["target/renamed"] <= told["matched"]
        assert metrics["target/stop"] == BATCH
        # A rewritten answer decides once before each true object, an appended one not before what was said first.
        assert (metrics["target/go_on"] == metrics["train/objects"]) != appends
        assert metrics["target/seam_fallback"] == 0


def test_each_channel_reports_its_own_figures_alone(trained):
    _, run, _ = trained
    for record in read_history(run / "metrics.jsonl").steps:
        foreign = [name for name in record.metrics if METRICS[name].channel not in ("both", record.channel)]
        own = [name for name in record.metrics if METRICS[name].channel == "B"]
        assert not foreign
        assert bool(own) == (record.channel == "B")


def test_both_channels_learn(trained):
    _, run, _ = trained
    steps = read_history(run / "metrics.jsonl").steps
    for channel in "AB":
        losses = [record.metrics["loss/total"] for record in steps if record.channel == channel]
        assert losses[-1] < 0.8 * losses[0]


def test_evaluated_before_and_after_each_sample_once(trained):
    _, run, _ = trained
    evaluations = read_history(run / "metrics.jsonl").evaluations
    assert [record.step for record in evaluations] == [0, STEPS]
    assert all(record.metrics["eval/samples"] == 12 for record in evaluations)
    assert all("eval/f1" in record.metrics and "eval/f1_boxes" in record.metrics for record in evaluations)


def test_the_user_sees_the_batch_sum_and_a_table_once(trained):
    done, _, _ = trained
    assert done.stdout.count("8 samples per step = 2 per rank x 2 ranks x 2 micro-steps") == 1
    assert done.stdout.count(f"step  1/{STEPS}") == 1
    assert "eval/f1" in done.stdout and "before" in done.stdout
    lines = [line for line in done.stdout.splitlines() if line.startswith(("wall time ", "checkpoint: ", "next: "))]
    took, checkpoint, following = lines
    assert re.fullmatch(r"wall time \d+:\d\d:\d\d, peak memory [\d.]+ GiB on the rank that took most", took)
    assert checkpoint.endswith("/runs/small/checkpoints/step-000012/hf")
    assert following.startswith("next: ds-stage2ab report ") and following.endswith("/runs/small --html")


def test_run_folder_is_complete_and_released(trained):
    _, run, _ = trained
    names = {path.name for path in run.iterdir()}
    records = {"config.json", "sampling.json", "attempts.jsonl", "metrics.jsonl", "rollouts", "tensorboard"}
    records |= {"origins.json", "environment.json"}
    assert names == records | {"curves.png", "evaluations", "pictures", "checkpoints"}
    answers = sorted((run / "evaluations").iterdir())
    assert [path.name for path in answers] == ["step-000000.jsonl", f"step-{STEPS:06d}.jsonl"]
    assert [len(path.read_text().splitlines()) for path in answers] == [12, 12]
    assert {path.name for path in (run / "pictures").glob("*.png")} == {"step_000000.png", f"step_0000{STEPS}.png"}
    assert len(list((run / "pictures" / "step_000000").glob("*.png"))) == 2
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    assert {"loss/total/A", "loss/total/B", "eval/f1"} <= set(events.Tags()["scalars"])
    assert [len(events.Images(tag)) for tag in events.Tags()["images"]] == [2, 2]


def test_its_report_is_one_page(trained, tmp_path):
    """Of a real run every section has something to show."""
    _, run, config = trained
    assert main(["report", str(run), "--html", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    keys = ("figures", "curves", "thresholds", "pictures", "descriptions", "names", "health", "config", "environment")
    assert [key for key in keys if f"<h2 id={key}>" not in page] == []
    assert page.count("data:image/jpeg;base64,") >= 8 and len(page) < 6_000_000
    assert f"{config}:" in page and "<td>learners</td><td>2</td>" in page


def test_resolved_config_resolves_to_itself(trained):
    _, run, config = trained
    saved = load_config(run / "config.json")
    assert saved.config == load_config(config).config
    assert saved.resolved == json.loads((run / "config.json").read_text())


def test_newest_checkpoint_is_a_plain_hugging_face_folder(trained, shipped):
    _, run, _ = trained
    checkpoints = run / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"latest", "step-000010", "step-000012"}
    assert (checkpoints / "latest").read_text() == "step-000012\n"
    exported = checkpoints / "step-000012" / "hf"
    model = Qwen3VLForConditionalGeneration.from_pretrained(exported)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    vocabulary = Vocabulary.from_tokenizer(AutoTokenizer.from_pretrained(exported))
    assert len(vocabulary.coordinate_ids) == 1000
    before, after = load_file(shipped.model / "model.safetensors"), load_file(exported / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.isfinite(after[name]).all() for name in after)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == len(before)
    assert (exported / "preprocessor_config.json").read_bytes() == (
        shipped.model / "preprocessor_config.json"
    ).read_bytes()
