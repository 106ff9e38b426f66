"""Steps on a real one-rank DeepSpeed engine that train the rows of the coordinates beside adapters."""

import shutil
from dataclasses import replace

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from ds_stage2ab.engine.tuner import merged_tensors

DECAYED = {
    "training.optimizer": "adamw",
    "training.weight_decay": 0.1,
    "tuner": {"type": "lora", "lora_rank": 4, "trainable_token_rows": "coordinates"},
}
TABLE, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
PADDING = 64  # values that ZeRO adds to a group at most


@pytest.fixture
def untied(quickstart, tmp_path):
    """The tiny checkpoint with a head of its own, of other weights than the table."""
    folder = tmp_path / "untied"
    shutil.copytree(quickstart.model, folder)
    config = Qwen3VLConfig.from_pretrained(folder, tie_word_embeddings=False)
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, config=config)
    model.lm_head.weight.data.normal_(std=0.02)
    model.save_pretrained(folder)
    return replace(quickstart, model=folder)


@pytest.mark.parametrize(("zero_stage", "is_tied"), [(0, True), (0, False), (2, True)])
def test_weight_decay_reaches_the_rows_of_the_coordinates_and_no_other(
    build, quickstart, untied, zero_stage, is_tied, tmp_path
):
    """Every weight that does not train stays bit by bit: in the model, in DeepSpeed's saved state, in an export."""
    stage = build({**DECAYED, "deepspeed.zero_stage": zero_stage}, quickstart if is_tied else untied)
    before, exported_before = stage.weights(), exported(stage)
    trained = {name: p for name, p in stage.bench.model.named_parameters() if p.requires_grad}
    for step in range(2):
        stage.window.run(step, stage.channel)
    stage.engine.save_checkpoint(str(tmp_path), tag="saved", save_latest=False)
    saved = torch.load(tmp_path / "saved" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    for name, weight in stage.weights().items():
        assert torch.equal(weight, before[name]) == (name not in trained), name
        assert torch.equal(saved[f"model.{name}"], weight), name

    after, ids = exported(stage), list(stage.bench.vocabulary.coordinate_ids)
    moved = (after[TABLE] != exported_before[TABLE]).any(dim=1).nonzero().squeeze(-1)
    assert moved.tolist() == sorted(ids) and len(ids) == 1000
    assert (HEAD in after) == (not is_tied)
    if not is_tied:
        assert torch.equal(after[HEAD], exported_before[HEAD])
        assert not torch.equal(after[HEAD], exported_before[TABLE])

    hidden = after[TABLE].shape[1]
    assert [p.shape for name, p in trained.items() if ".lora_" not in name] == [(1000, hidden)]
    adapters = sum(p.numel() for name, p in trained.items() if ".lora_" in name)
    held = sum(state["exp_avg"].numel() for state in stage.engine.optimizer.state.values())
    assert 0 <= held - (adapters + 1000 * hidden) <= (PADDING if zero_stage else 0)


def exported(stage):
    """The plain model's tensors, as an export writes them."""
    return {one.name: one.make().clone() for one in merged_tensors(stage.bench.model)}
