"""Checkpoint folder -> model, processor and optimizer: what is loaded, frozen, decayed, refused."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.sections import ModelSection
from ds_stage2ab.engine import build
from ds_stage2ab.engine.build import build_optimizer, load_checkpoint, position_index, share_cores
from ds_stage2ab.engine.tuner import freeze_parts
from ds_stage2ab.errors import EXIT_ENVIRONMENT, EnvironmentFault
from tests.parts import ROOT
from tests.unit.parts import load_bench

TRAINING = load_config(ROOT / "tests" / "examples" / "valid" / "minimal.yaml").config.training
BLOCK_NORMS = ("input_layernorm", "post_attention_layernorm")
AXIS_NORMS = ("self_attn.q_norm", "self_attn.k_norm")


def section(folder: Path, **changes: object) -> ModelSection:
    plain = {"attn_implementation": "sdpa", "precision": "fp32", "freeze": (), "gradient_checkpointing": False}
    return ModelSection(path=folder, **{**plain, **changes})


def load(folder, *, min_pixels=None, max_pixels=None, **changes):
    return load_checkpoint(section(folder, **changes), min_pixels=min_pixels, max_pixels=max_pixels)


@pytest.fixture
def model(quickstart):
    return load(quickstart.model).model


@pytest.fixture
def copied(quickstart, tmp_path):
    """A copy of the checkpoint that a test may damage."""
    return Path(shutil.copytree(quickstart.model, tmp_path / "model"))


def frozen(model):
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def part_of(name):
    """Which part a parameter belongs to, by the names that Qwen3-VL gives."""
    if "visual.merger." in name or "visual.deepstack_merger_list." in name:
        return "aligner"
    return "vision" if "visual." in name else "language"


@pytest.mark.parametrize("parts", [(), ("vision",), ("aligner",), ("language",), ("vision", "aligner")])
def test_exactly_the_named_parts_are_frozen(model, parts):
    freeze_parts(model, parts)
    assert frozen(model) == {name for name, _ in model.named_parameters() if part_of(name) in parts}


def test_no_part_is_empty_and_together_they_are_the_model(model):
    names = {name for name, _ in model.named_parameters()}
    sizes = []
    for part in ("vision", "aligner", "language"):
        before = frozen(model)
        freeze_parts(model, (part,))
        sizes.append(len(frozen(model) - before))
    assert min(sizes) > 0
    assert frozen(model) == names


def test_an_untied_head_is_part_of_language(model):
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    freeze_parts(model, ("language",))
    assert "lm_head.weight" in frozen(model)
    assert {part_of(name) for name, p in model.named_parameters() if p.requires_grad} == {"vision", "aligner"}


def test_decay_is_on_matrices_alone(model):
    settings = replace(TRAINING, optimizer="adamw", weight_decay=0.125, learning_rate=0.5, adam_beta2=0.75)
    optimizer = build_optimizer(model, settings)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.125, 0.0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, plain = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert decayed | plain == set(names.values()) and not decayed & plain
    text = "model.language_model"
    assert {f"{text}.embed_tokens.weight", f"{text}.layers.0.mlp.up_proj.weight"} <= decayed
    norms = {f"{text}.layers.0.{name}.weight" for name in BLOCK_NORMS + AXIS_NORMS} | {f"{text}.norm.weight"}
    biases = {name for name in names.values() if name.endswith(".bias")}
    assert biases and norms | biases <= plain
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["lr"] == 0.5
    assert optimizer.defaults["betas"] == (TRAINING.adam_beta1, 0.75)
    assert optimizer.defaults["eps"] == TRAINING.adam_epsilon


def test_what_is_frozen_is_not_optimised(model):
    freeze_parts(model, ("language", "vision"))
    optimizer = build_optimizer(model, replace(TRAINING, optimizer="sgd"))
    optimised = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimised == {id(p) for name, p in model.named_parameters() if part_of(name) == "aligner"}
    assert isinstance(optimizer, torch.optim.SGD)


def test_an_optimizer_for_vectors_alone_has_one_group(model):
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.ndim < 2)
    groups = build_optimizer(model, TRAINING).param_groups
    assert [group["weight_decay"] for group in groups] == [0.0]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_the_precision_is_that_of_every_parameter(quickstart, precision, dtype):
    model = load(quickstart.model, precision=precision).model
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_the_attention_implementation_reaches_both_towers(quickstart):
    config = load(quickstart.model, attn_implementation="eager").model.config
    assert config.text_config._attn_implementation == config.vision_config._attn_implementation == "eager"


def test_gradient_checkpointing_is_on_in_both_towers_if_asked(quickstart, model):
    assert not model.is_gradient_checkpointing
    asked = load(quickstart.model, gradient_checkpointing=True).model
    switches = [m.gradient_checkpointing for m in asked.modules() if hasattr(m, "gradient_checkpointing")]
    assert switches and all(switches)


@pytest.mark.parametrize(
    ("limits", "grid"),
    [
        # 96 x 80 pixels lie within the checkpoint's own 32 * 32 .. 256 * 256: 80 / 8 = 10 rows, 96 / 8 = 12 columns
        ({}, [1, 10, 12]),
        # sqrt(96 * 80 / 4096) = 1.37: floor(80 / 1.37 / 16) = 3 and floor(96 / 1.37 / 16) = 4 tokens, 2 patches each
        ({"max_pixels": 64 * 64}, [1, 6, 8]),
        # sqrt(160 * 160 / (96 * 80)) = 1.83: ceil(80 * 1.83 / 16) = 10, ceil(96 * 1.83 / 16) = 11 tokens
        ({"min_pixels": 160 * 160}, [1, 20, 22]),
    ],
)
def test_pixel_limits_replace_the_checkpoints_own(quickstart, limits, grid):
    processor = load(quickstart.model, **limits).image_processor
    found = processor(images=[Image.new("RGB", (96, 80))], return_tensors="pt")
    assert found["image_grid_thw"].tolist() == [grid]


def test_a_limit_leaves_the_other_alone(quickstart):
    size = load(quickstart.model, max_pixels=64 * 64).image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (32 * 32, 64 * 64)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(EnvironmentFault) as caught:
        load(tmp_path / "nothing")
    assert caught.value.code == EXIT_ENVIRONMENT
    assert str(caught.value) == (
        f"{tmp_path / 'nothing'}: no Hugging Face checkpoint of a Qwen3-VL here (config.json is missing)\n"
        "  fix: take the whole folder of a stage-1 checkpoint, from one source"
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json", "model.safetensors"])
def test_an_incomplete_folder_is_named(copied, name):
    (copied / name).unlink()
    with pytest.raises(EnvironmentFault, match=rf"\({name}.* is missing\)") as caught:
        load(copied)
    assert caught.value.where == str(copied)
    assert "the whole folder" in caught.value.fix


def test_weights_that_are_cut_short_are_a_fault_of_the_folder(copied):
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(EnvironmentFault, match=r"model\.safetensors is no safetensors file, or is cut short"):
        load(copied)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["[]", "{", ""])
def test_damaged_json_is_a_fault_of_the_folder(copied, name, text):
    (copied / name).write_text(text)
    with pytest.raises(EnvironmentFault, match=f"{name} (cannot be read: |is no JSON object)"):
        load(copied)


def test_a_tensor_that_is_missing_is_not_made_up(copied):
    # transformers would start it at random and say so in a note
    weights = load_file(copied / "model.safetensors")
    weights.pop("model.language_model.layers.1.mlp.up_proj.weight")
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EnvironmentFault, match=r"layers\.1\.mlp.up_proj\.weight"):
        load(copied)


def test_positions_are_the_models_own_with_a_text_row(quickstart):
    bench = load_bench(quickstart, num_samples=3)
    positions = position_index(bench.model)
    for sample in bench.samples:
        ids = torch.tensor(sample.prompt_ids)
        seen = positions(ids, sample.vision.image_grid_thw)
        expected, _ = bench.model.model.get_rope_index(
            ids[None],
            mm_token_type_ids=(ids == bench.vocabulary.image_id).int()[None],
            image_grid_thw=sample.vision.image_grid_thw,
        )
        assert seen[0].tolist() == list(range(len(ids)))
        assert torch.equal(seen[1:], expected[:, 0])
        # the first image token and the one below it differ by one row of the merged grid
        first, width = sample.prompt_ids.index(bench.vocabulary.image_id), int(sample.vision.image_grid_thw[0, 2]) // 2
        assert (seen[1:, first + width] - seen[1:, first]).tolist() == [0, 1, 0]


def test_cores_are_shared_unless_the_user_says_otherwise(monkeypatch):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        monkeypatch.setenv("LOCAL_SIZE", "1000")
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        share_cores()
        assert torch.get_num_threads() == 2
        monkeypatch.delenv("OMP_NUM_THREADS")
        share_cores()
        assert torch.get_num_threads() == 1  # never less than one
    finally:
        torch.set_num_threads(threads)


class Gpu:
    """DeepSpeed's accelerator where there is a GPU."""

    def set_device(self, index):
        self.index = index

    def device_name(self, index=None):
        return "cuda" if index is None else f"cuda:{index}"

    def communication_backend_name(self):
        return "nccl"


def test_ranks_on_gpus_share_the_cores_too(monkeypatch):
    threads, asked = torch.get_num_threads(), {}
    monkeypatch.setattr(build, "get_accelerator", Gpu)
    monkeypatch.setattr(build.deepspeed, "init_distributed", lambda **settings: asked.update(settings))
    for name, value in {"LOCAL_RANK": "3", "LOCAL_SIZE": "1000"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        torch.set_num_threads(2)
        assert build.start_process_group(60) == "cuda:3"
        assert (torch.get_num_threads(), asked["dist_backend"]) == (1, "nccl")
    finally:
        torch.set_num_threads(threads)
