"""Parameter counts against real models without weights, bytes against sums by hand, activations against autograd."""

import json
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.sections import Config, TunerSection
from ds_stage2ab.engine.build import build_engine, build_optimizer
from ds_stage2ab.engine.tuner import add_adapters, freeze_parts
from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.losses.attention import segment_arguments, use_segments
from ds_stage2ab.plan import make_plan
from ds_stage2ab.preflight.memory import REDUCE_BUCKET, Memory, activation_bytes, estimate
from ds_stage2ab.preflight.model_shape import PARTS, ModelShape, adapter_parameters, parameters_of, read_shape
from tests.parts import ROOT

STAGE1 = ROOT / "assets" / "quickstart" / "stage1"
CONFIG = load_config(ROOT / "configs" / "quickstart" / "ab_mixed.yaml").config
OTHER = {
    "tie_word_embeddings": False,
    "text_config": {"attention_bias": True, "hidden_size": 96, "head_dim": 24, "num_attention_heads": 6}
    | {"num_key_value_heads": 3, "intermediate_size": 200, "num_hidden_layers": 3, "vocab_size": 2000},
    "vision_config": {"depth": 5, "hidden_size": 64, "intermediate_size": 100, "num_heads": 2, "patch_size": 6}
    | {"out_hidden_size": 96, "num_position_embeddings": 64, "deepstack_visual_indexes": [1, 2, 3], "in_channels": 1}
    | {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "axial"}},
}
"""Another shape in every number that parameters depend on: an untied head, biases in the attention, three mergers."""


def other_folder(folder: Path) -> Path:
    values = json.loads((STAGE1 / "config.json").read_text())
    for key, value in OTHER.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    values["text_config"]["rope_parameters"]["mrope_section"] = [4, 4, 4]
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(params=["quickstart", "other"])
def folder(request, tmp_path) -> Path:
    return STAGE1 if request.param == "quickstart" else other_folder(tmp_path)


def model_without_weights(folder: Path) -> nn.Module:
    with torch.device("meta"):
        return Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(folder))


def trained(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_parameters_are_those_of_the_model(folder):
    assert sum(parameters_of(read_shape(folder)).values()) == trained(model_without_weights(folder))


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_what_freezing_it_takes_out_of_training(folder, part):
    model = model_without_weights(folder)
    whole = trained(model)
    freeze_parts(model, (part,))
    assert parameters_of(read_shape(folder))[part] == whole - trained(model)


@pytest.mark.parametrize("frozen", [(), ("vision", "aligner"), ("vision", "language"), ("aligner", "language")])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_are_those_of_the_run(folder, frozen, kind):
    tuner = TunerSection(type=kind, lora_rank=5, lora_alpha=10.0, trainable_token_rows=None)
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(folder))
    add_adapters(model, tuner, frozen, (), seed=0, source=folder)
    parts = [part for part in PARTS if part not in frozen]
    assert adapter_parameters(read_shape(folder), tuner, parts) == trained(model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_trained_rows_are_counted_and_so_are_the_same_as_they_were(precision, dtype, tied):
    """The latter are a buffer of peft's, which every learner has whole under ZeRO 3 too."""
    asked = changed(
        tuner={"type": "lora", "trainable_token_rows": "coordinates"},
        model={"freeze": ("vision",), "precision": precision},
    )
    model = real_model("sdpa", dtype, tied=tied)
    before = {id(buffer) for buffer in model.buffers()}
    add_adapters(model, asked.tuner, ("vision",), range(300, 1300), seed=0, source=STAGE1)
    shape = replace(read_shape(STAGE1), tied=tied)
    memory = estimate(shape, asked, learners=1, zero_stage=1)
    assert memory.trained == trained(model)
    buffers = sum(buffer.nbytes for buffer in model.buffers() if id(buffer) not in before)
    assert memory.weights == sum(parameter.nbytes for parameter in model.parameters()) + buffers
    shared = estimate(shape, asked, learners=4, zero_stage=3)
    assert shared.weights - buffers == -(-(memory.weights - buffers) // 4)


def changed(**sections: dict) -> Config:
    """The quickstart config with some values of some sections replaced."""
    return replace(CONFIG, **{name: replace(getattr(CONFIG, name), **values) for name, values in sections.items()})


def test_an_offloaded_optimizer_takes_no_memory_of_the_device():
    kept = quickstart_estimate(2)
    offloaded = quickstart_estimate(2, deepspeed={"zero_stage": 2, "offload_optimizer": "cpu"})
    assert kept.optimizer > 0 == offloaded.optimizer
    assert offloaded.total == kept.total - kept.optimizer  # fp32: the gradients and their bucket stay


def quickstart_estimate(zero_stage: int, learners: int = 4, **sections: dict) -> Memory:
    return estimate(read_shape(STAGE1), changed(**sections), learners=learners, zero_stage=zero_stage)


def test_bytes_of_full_training_without_sharing():
    # 1,797,024 parameters in fp32: weights and gradients 4 bytes each = 7,188,096; two moments 8 bytes = 14,376,192
    memory = quickstart_estimate(0)
    assert (memory.parameters, memory.trained) == (1_797_024, 1_797_024)
    assert (memory.weights, memory.gradients, memory.optimizer) == (7_188_096, 7_188_096, 14_376_192)
    assert memory.reduce_bucket == 0
    assert memory.total == 7_188_096 + 7_188_096 + 14_376_192 + memory.activations


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [
        # bf16: 2 bytes = 3,594,048; moments and fp32 copy 12 bytes = 21,564,288, of which a fourth is 5,391,072;
        # gradients are summed in 4 bytes = 7,188,096, and stage 1 keeps a pack's own 3,594,048 too
        (1, 3_594_048, 10_782_144, 5_391_072),
        (2, 3_594_048, 1_797_024, 5_391_072),
        (3, 898_512, 1_797_024, 5_391_072),
    ],
)
def test_four_learners_share_what_the_stage_says(stage, weights, gradients, optimizer):
    memory = quickstart_estimate(stage, model={"precision": "bf16"})
    assert (memory.weights, memory.gradients, memory.optimizer) == (weights, gradients, optimizer)


def test_deepspeed_keeps_what_is_counted_as_its_own(world):
    # In fp32 too, ZeRO works on a copy of the trained weights, padded to a few values per group.
    assert DeepSpeedZeroConfig().reduce_bucket_size == REDUCE_BUCKET
    asked = changed(deepspeed={"zero_stage": 1})
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(STAGE1))
    engine = build_engine(model, build_optimizer(model, asked.training), make_plan(asked, 1, 64).deepspeed_config)
    copies = engine.optimizer.single_partition_of_fp32_groups
    kept = sum(copy.untyped_storage().nbytes() for copy in copies)
    sgd = quickstart_estimate(1, learners=world.size, training={"optimizer": "sgd"}).optimizer
    assert kept == pytest.approx(sgd, abs=64)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    assert not weights & {copy.untyped_storage().data_ptr() for copy in copies}


def test_plain_sgd_keeps_no_moments():
    assert quickstart_estimate(0, training={"optimizer": "sgd"}).optimizer == 0
    # the fp32 copy alone: 4 x 1,797,024 / 4
    assert quickstart_estimate(1, training={"optimizer": "sgd"}).optimizer == 1_797_024


def test_frozen_parts_have_weights_and_nothing_else():
    memory = quickstart_estimate(0, model={"freeze": ("vision", "aligner")})
    assert (memory.parameters, memory.trained) == (1_797_024, 967_040)
    assert (memory.weights, memory.gradients, memory.optimizer) == (7_188_096, 4 * 967_040, 8 * 967_040)


def test_adapters_train_beside_a_still_model():
    # Per layer: q (128 + 128), k and v (128 + 64) each, o (128 + 128), gate and up (128 + 384) each, down (384 + 128):
    # 2 x 256 + 2 x 192 + 3 x 512 = 2,432; x rank 8 x 4 layers = 77,824
    memory = quickstart_estimate(0, model={"freeze": ("vision", "aligner")}, tuner={"type": "lora", "lora_rank": 8})
    assert (memory.parameters, memory.trained) == (1_797_024 + 77_824, 77_824)
    assert (memory.gradients, memory.optimizer) == (4 * 77_824, 8 * 77_824)


class ManagedProcess:
    """Bytes of all storages that a live graph keeps, the model's own left out."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.saved: list[weakref.ref[torch.Tensor]] = []
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        held = tensor.detach()  # the graph alone holds it: a branch that leads nowhere lets go
        self.saved.append(weakref.ref(held))
        return held

    def __enter__(self) -> "ManagedProcess":
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.hooks.__exit__(*error)

    @property
    def sizes(self) -> list[int]:
        storages = [tensor.untyped_storage() for saved in self.saved if (tensor := saved()) is not None]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        return [size for address, size in sizes.items() if address not in self.own]

    @property
    def total(self) -> int:
        return sum(self.sizes)


def real_model(attention: str, dtype: torch.dtype, *, tied: bool = True) -> nn.Module:
    shape = Qwen3VLConfig.from_pretrained(STAGE1, tie_word_embeddings=tied)
    model = Qwen3VLForConditionalGeneration._from_config(shape, attn_implementation=attention, dtype=dtype).train()
    if attention == "sdpa":
        use_segments(model)  # as a run does
    return model


def without_logits() -> ModelShape:
    shape = read_shape(STAGE1)
    return replace(shape, text=replace(shape.text, vocabulary=0))


def kept_by_language(model: nn.Module) -> int:
    """Bytes that a forward pass over 512 tokens in four segments keeps."""
    ids = torch.arange(512)[None] % 90 + 10
    positions = (torch.arange(512) % 128).expand(4, 1, 512).contiguous()
    with ManagedProcess(model) as kept:
        embedded = model.get_input_embeddings()(ids)
        parted = segment_arguments(model, (0, 128, 256, 384, 512))
        output = model.model.language_model(
            inputs_embeds=embedded, position_ids=positions, use_cache=False, **parted
        )
    assert output.last_hidden_state.shape == (1, 512, 128)
    return kept.total


DTYPES = [("fp32", torch.float32), ("bf16", torch.bfloat16)]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("precision", "dtype"), DTYPES)
def test_the_language_model_keeps_what_is_estimated(precision, dtype, attention):
    asked = changed(model={"precision": precision, "attn_implementation": attention})
    kept = kept_by_language(real_model(attention, dtype))
    assert activation_bytes(without_logits(), asked, ["language"]) == pytest.approx(kept, rel=0.02)


@pytest.mark.parametrize(("precision", "dtype"), DTYPES)
@pytest.mark.parametrize(("kind", "most"), [("lora", 1.15), ("dora", 1.08)])
def test_with_adapters_it_keeps_no_more_than_is_estimated(precision, dtype, kind, most):
    # Weights that do not train let their layers keep less, which the estimate leaves out.
    asked = changed(model={"precision": precision}, tuner={"type": kind})
    model = real_model("sdpa", dtype)
    add_adapters(model, asked.tuner, ("vision", "aligner"), (), seed=0, source=STAGE1)
    estimated = activation_bytes(without_logits(), asked, ["language"])
    assert 1 < estimated / kept_by_language(model) < most


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("precision", "dtype"), DTYPES)
def test_trained_rows_keep_a_copy_of_the_table_for_a_tied_head_in_each_pass(precision, dtype, tied):
    """The embedding makes one as well, and its graph lets go of it: it needs the ids alone."""
    asked = changed(model={"precision": precision, "freeze": ("vision", "aligner")}, stage2_ab={"n_softctx_iter": 2})
    with_rows = replace(asked, tuner=replace(asked.tuner, type="lora", trainable_token_rows="coordinates"))
    model = real_model("sdpa", dtype, tied=tied)
    add_adapters(model, with_rows.tuner, asked.model.freeze, range(300, 1300), seed=0, source=STAGE1)
    passes, positions = [], torch.arange(16).expand(4, 1, 16).contiguous()
    with ManagedProcess(model) as kept:
        for _ in range(2):
            embedded = model.get_input_embeddings()(torch.arange(16)[None] + 290)
            output = model(inputs_embeds=embedded, position_ids=positions, use_cache=False, logits_to_keep=4)
            passes.append(output.logits)
    table = 1400 * 128 * dtype.itemsize
    seen = sum(size for size in kept.sizes if size == table)
    assert seen == (2 * table if tied else 0)
    shape = replace(read_shape(STAGE1), tied=tied)
    lora = replace(with_rows, tuner=replace(with_rows.tuner, trainable_token_rows=None))
    assert activation_bytes(shape, with_rows, ["language"]) - activation_bytes(shape, lora, ["language"]) == seen


@pytest.mark.parametrize(("precision", "dtype"), DTYPES)
def test_the_vision_tower_keeps_what_is_estimated(precision, dtype):
    model = real_model("sdpa", dtype)
    # 32 images of 8 x 8 patches, 16 tokens each: a pack of 512 image tokens
    grid = torch.tensor([[1, 8, 8]] * 32)
    pixels = torch.linspace(-1, 1, 32 * 64 * 3 * 2 * 8 * 8, dtype=dtype).view(32 * 64, -1)
    with ManagedProcess(model) as kept:
        output = model.get_image_features(pixels, grid, return_dict=True)
    assert output.pooler_output[0].shape == (16, 128)
    asked, shape = changed(model={"precision": precision}), without_logits()
    estimated = activation_bytes(shape, asked, list(PARTS)) - activation_bytes(shape, asked, ["language"])
    assert estimated == pytest.approx(kept.total, rel=0.02)


@pytest.mark.parametrize(("precision", "dtype"), DTYPES)
def test_logits_by_hand(precision, dtype):
    # A row of logits, its gradient, and that joined with the slots': 3 x 1,400 values x 512 tokens, of 4 bytes in fp32
    asked = changed(model={"precision": precision})
    with_logits = activation_bytes(read_shape(STAGE1), asked, ["language"])
    assert with_logits - activation_bytes(without_logits(), asked, ["language"]) == 3 * 1400 * 512 * dtype.itemsize


def test_checkpointing_keeps_one_layer_and_the_entries_of_the_others():
    # fp32, c = 1, per token: a layer 6 x 128 + 6 x 128 + 2 x 64 + 4 x 384 = 3,200.
    # Without: 4 x 3,200; with: 3,200 and 4 entries of 128. The last norm: 3 x 128.
    plain = activation_bytes(without_logits(), CONFIG, ["language"])
    assert plain == 4 * 512 * (4 * 3200 + 384)
    checkpointed = activation_bytes(without_logits(), changed(model={"gradient_checkpointing": True}), ["language"])
    assert checkpointed == 4 * 512 * (3200 + 4 * 128 + 384)


def test_passes_that_are_kept_count():
    def kept(**stage2_ab: object) -> int:
        return activation_bytes(without_logits(), changed(stage2_ab=stage2_ab), ["language"])

    one = kept()
    assert kept(n_softctx_iter=3, softctx_grad_mode="unroll") == 3 * one
    assert kept(n_softctx_iter=3, softctx_grad_mode="em_detach") == 2 * one
    only_b = replace(CONFIG.stage2_ab.schedule, b_ratio=CONFIG.stage2_ab.schedule.b_ratio * 2)
    assert kept(n_softctx_iter=3, schedule=only_b) == one


def test_dora_keeps_two_values_per_output_more():
    # Outputs of a layer: 128 + 64 + 64 + 128 + 384 + 384 + 128 = 1,280; x 2 x 4 layers x 512 tokens x 4 bytes
    lora, dora = (
        activation_bytes(without_logits(), changed(tuner={"type": kind}), ["language"]) for kind in ("lora", "dora")
    )
    assert dora - lora == 2 * 1280 * 4 * 512 * 4


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "is not on this machine"),
        ("{", "cannot be read: "),
        ('{"model_type": "llama"}', "is that of a llama, not of a qwen3_vl"),
        ('{"model_type": "qwen3_vl"}', "does not say text_config"),
        ('{"model_type": "qwen3_vl", "text_config": {"hidden_size": 8}}', "does not say num_hidden_layers"),
        ('{"model_type": "qwen3_vl", "text_config": []}', "does not have the form of a Qwen3-VL's"),
        ('{"model_type": "qwen3_vl", "text_config": {"hidden_size": "8"}}', "does not have the form of a Qwen3-VL's"),
        ("[]", "does not have the form of a Qwen3-VL's"),
    ],
)
def test_a_folder_that_does_not_tell_says_why(tmp_path, text, why):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(EnvironmentFault) as raised:
        read_shape(tmp_path)
    assert raised.value.why.startswith(why)
    assert raised.value.where == str(tmp_path / "config.json")
