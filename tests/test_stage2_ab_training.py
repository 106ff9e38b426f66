"""Acceptance: a run of the real launcher, from config to run folder.

    PYTHONPATH=. python -m pytest -q tests/test_stage2_ab_training.py
"""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from ds_stage2ab.codec.vocabulary import Vocabulary
from ds_stage2ab.config.load import load_config
from ds_stage2ab.errors import EXIT_CONFIG
from ds_stage2ab.metrics.journal import read_history
from tests.parts import config_values, launch, merged, write_config

STEPS = 12
BATCH = 8


@pytest.fixture(scope="module")
def trained(quickstart, tmp_path_factory):
    """Two ranks, ZeRO 1, AdamW, evaluation before and after; returns (finished process, run folder, config file)."""
    folder = tmp_path_factory.mktemp("trained")
    changes = {
        "training.optimizer": "adamw",
        "training.learning_rate": 2e-3,
        "training.max_steps": STEPS,
        "training.effective_batch_size": BATCH,
        "training.per_device_train_batch_size": 2,
        "data.validation": str(quickstart.data / "validation.jsonl"),
        "deepspeed.zero_stage": 1,
        "deepspeed.gradient_clipping": 1.0,
        "logging.tensorboard": True,
        "checkpoint.every_steps": 5,
        "checkpoint.keep_last": 2,
        "evaluation.num_pictures": 2,
    }
    config = write_config(
        folder / "small.yaml", merged(config_values(quickstart, folder / "runs", "small"), changes)
    )
    done = launch(config, ranks=2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done, folder / "runs" / "small", config


def test_every_step_uses_exactly_the_effective_batch(trained):
    _, run, _ = trained
    steps = read_history(run / "metrics.jsonl").steps
    assert [record.step for record in steps] == list(range(1, STEPS + 1))
    assert {record.metrics["train/samples"] for record in steps} == {BATCH}
    assert all(record.applied and record.channel == "A" for record in steps)


def test_it_learns(trained):
    _, run, _ = trained
    losses = [record.metrics["loss/total"] for record in read_history(run / "metrics.jsonl").steps]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])


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


def test_run_folder_is_complete_and_released(trained):
    _, run, _ = trained
    names = {path.name for path in run.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "tensorboard", "curves.png", "pictures", "checkpoints"}
    assert {path.name for path in (run / "pictures").glob("*.png")} == {"step_000000.png", f"step_0000{STEPS}.png"}
    assert len(list((run / "pictures" / "step_000000").glob("*.png"))) == 2
    assert any((run / "tensorboard").iterdir())


def test_resolved_config_resolves_to_itself(trained):
    _, run, config = trained
    saved = load_config(run / "config.json")
    assert saved.config == load_config(config).config
    assert saved.resolved == json.loads((run / "config.json").read_text())


def test_newest_checkpoint_is_a_plain_hugging_face_folder(trained, quickstart):
    _, run, _ = trained
    checkpoints = run / "checkpoints"
    assert {path.name for path in checkpoints.iterdir()} == {"latest", "step-000010", "step-000012"}
    assert (checkpoints / "latest").read_text() == "step-000012\n"
    exported = checkpoints / "step-000012" / "hf"
    model = Qwen3VLForConditionalGeneration.from_pretrained(exported)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    vocabulary = Vocabulary.from_tokenizer(AutoTokenizer.from_pretrained(exported))
    assert len(vocabulary.coordinate_ids) == 1000
    before, after = load_file(quickstart.model / "model.safetensors"), load_file(exported / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.isfinite(after[name]).all() for name in after)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == len(before)
    assert (exported / "preprocessor_config.json").read_bytes() == (
        quickstart.model / "preprocessor_config.json"
    ).read_bytes()


def test_channel_b_is_refused_in_words(quickstart, tmp_path):
    values = merged(config_values(quickstart, tmp_path / "runs", "b"), {"stage2_ab.schedule.b_ratio": 0.5})
    done = launch(write_config(tmp_path / "b.yaml", values), ranks=1)
    assert done.returncode == EXIT_CONFIG
    assert "stage2_ab.schedule.b_ratio" in done.stderr and "Traceback" not in done.stderr
