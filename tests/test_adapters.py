"""Acceptance: runs of two ranks that train LoRA or DoRA adapters on both channels."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from ds_stage2ab.engine.shards import StoredTensors
from ds_stage2ab.errors import EXIT_ENVIRONMENT
from ds_stage2ab.metrics.journal import read_history
from tests import ranks
from tests.parts import config_values, free_port, merged, write_config

STEPS = 4
BATCH = 4


def train(shipped, folder: Path, changes: dict) -> Path:
    """Two ranks on both channels, the vision tower frozen; returns the run folder."""
    settings = {
        "training.optimizer": "adamw",
        "training.learning_rate": 1e-3,
        "training.max_steps": STEPS,
        "training.effective_batch_size": BATCH,
        "training.per_device_train_batch_size": 1,
        "stage2_ab.schedule.b_ratio": 0.5,
        "stage2_ab.n_softctx_iter": 2,
        "model.freeze": ["vision"],
        "deepspeed.zero_stage": 1,
        "tuner.lora_rank": 4,
        **changes,
    }
    config = write_config(folder / "adapters.yaml", merged(config_values(shipped, folder / "runs", "run"), settings))
    done = ranks.train(config, ranks=2)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert f"{changes['tuner.type']}, rank 4, alpha" in done.stdout
    assert (", and 1,000 rows of the embedding" in done.stdout) == ("tuner.trainable_token_rows" in changes)
    return folder / "runs" / "run"


def check(
    run: Path, shipped, tolerance: float, dtype: torch.dtype = torch.float32, *, rows_train: bool = False
) -> None:
    """Both channels took part, and the exported model is the start with the adapters, which moved."""
    steps = read_history(run / "metrics.jsonl").steps
    assert "".join(record.channel for record in steps) == "ABAB"
    assert all(record.applied and record.metrics["train/samples"] == BATCH for record in steps)
    newest = run / "checkpoints" / f"step-{STEPS:06d}"
    exported = Qwen3VLForConditionalGeneration.from_pretrained(newest / "hf", dtype=torch.float32)
    weights = exported.state_dict()
    start = load_file(shipped.model / "model.safetensors")
    moved = {name for name in start if not torch.equal(weights[name], start[name].to(dtype).float())}
    assert any("language_model" in name for name in moved)
    assert any("merger" in name for name in moved)
    tables = {"model.language_model.embed_tokens.weight", "lm_head.weight"}
    assert all("_proj" in name or "merger.linear_fc" in name or "merger_list" in name for name in moved - tables)
    for name in tables & moved:
        rows = (weights[name] != start[name].to(dtype).float()).any(dim=1).nonzero().squeeze(-1)
        assert {*rows.tolist()} <= {*range(len(start[name]) - 1000, len(start[name]))}, "coordinates are the last rows"
        assert len(rows) > 900
    assert bool(tables & moved) == rows_train
    added = {name.split("/")[0] for name in StoredTensors(newest / "training").names}
    assert added and all(".lora_" in name or ".trainable_tokens_" in name for name in added), "the base is stored again"
    base = Qwen3VLForConditionalGeneration.from_pretrained(shipped.model, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, newest / "adapter")
    # Merged weights are rounded once each; in bf16 four layers of such roundings add up in the logits.
    most = tolerance if dtype is torch.float32 else 4 * tolerance
    torch.testing.assert_close(logits(exported), logits(adapted), atol=most, rtol=most)
    for name, tensor in adapted.merge_and_unload().state_dict().items():
        torch.testing.assert_close(weights[name], tensor, atol=tolerance, rtol=tolerance)


def logits(model: nn.Module) -> torch.Tensor:
    """Of ten words and ten coordinates."""
    last = model.get_input_embeddings().weight.shape[0]
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[*range(10, 20), *range(last - 10, last)]])).logits


def test_lora_trains_on_both_channels(shipped, tmp_path):
    check(train(shipped, tmp_path, {"tuner.type": "lora"}), shipped, tolerance=1e-5)


ROWS = {"tuner.type": "lora", "tuner.trainable_token_rows": "coordinates", "training.weight_decay": 0.1}


def test_the_rows_of_the_coordinates_train_beside_adapters(shipped, tmp_path):
    """Under ZeRO 3, where the frozen table lies in parts on both ranks."""
    run = train(shipped, tmp_path, {**ROWS, "deepspeed.zero_stage": 3})
    check(run, shipped, tolerance=1e-5, rows_train=True)


@pytest.mark.soak
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_rows_of_the_coordinates_train_under_every_stage(shipped, tmp_path, stage):
    run = train(shipped, tmp_path, {**ROWS, "deepspeed.zero_stage": stage})
    check(run, shipped, tolerance=1e-5, rows_train=True)


@pytest.mark.soak
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_train_under_every_stage(shipped, tmp_path, kind, stage, checkpointing):
    changes = {
        "tuner.type": kind,
        "deepspeed.zero_stage": stage,
        "model.gradient_checkpointing": checkpointing,
    }
    check(train(shipped, tmp_path, changes), shipped, tolerance=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_train_in_bf16(shipped, tmp_path, kind):
    changes = {"tuner.type": kind, "model.precision": "bf16", "deepspeed.zero_stage": 2}
    # bf16 keeps 8 bits: weights of the size 1 differ by up to 2^-8 after one rounding each.
    check(train(shipped, tmp_path, changes), shipped, tolerance=2**-6, dtype=torch.bfloat16)


def test_a_run_never_draws_its_rollouts_elsewhere_than_told(shipped, tmp_path):
    """Nor does it begin while the servers that it is told are not there."""
    servers = [{"base_url": f"http://127.0.0.1:{free_port()}"}]
    changes = {
        "stage2_ab.schedule.b_ratio": 0.5,
        "custom.extra.rollout_matching.rollout_backend": "vllm",
        "custom.extra.rollout_matching.vllm.server.servers": servers,
    }
    values = merged(config_values(shipped, tmp_path / "runs", "run"), changes)
    done = ranks.train(write_config(tmp_path / "servers.yaml", values), ranks=1)
    assert done.returncode == EXIT_ENVIRONMENT
    assert "error: 1 of 1 rollout servers cannot be used" in done.stderr
    assert "reached: the connection failed in /openapi.json: " in done.stderr
    assert not (tmp_path / "runs").exists()
