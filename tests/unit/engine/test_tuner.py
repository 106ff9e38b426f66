"""Adapters on a real model: where they are, what trains, and that a merged export is the model that was trained."""

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import Qwen3VLForConditionalGeneration

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.sections import TunerSection
from ds_stage2ab.engine.build import build_optimizer, load_checkpoint
from ds_stage2ab.engine.export import export
from ds_stage2ab.engine.tuner import adapted_layers, adapters_of, add_adapters, merged_tensors, part_of, save_adapter
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.losses.objective import Objective
from tests.parts import config_values, merged, write_config
from tests.unit.parts import load_bench

RANK = 4
PARTS = ("vision", "aligner", "language")


def tuner(kind: str, rows: str | None = None) -> TunerSection:
    return TunerSection(type=kind, lora_rank=RANK, lora_alpha=8.0, trainable_token_rows=rows)


@pytest.fixture
def bench(quickstart):
    return load_bench(quickstart, num_samples=1)


def adapt(
    bench, quickstart, kind: str, frozen: tuple[str, ...] = (), seed: int = 0, rows: str | None = None
) -> nn.Module:
    coordinates = bench.vocabulary.coordinate_ids
    add_adapters(bench.model, tuner(kind, rows), frozen, coordinates, seed=seed, source=quickstart.model)
    return bench.model


def logits(model, sample):
    ids = torch.tensor(sample.prompt_ids)[None]
    with torch.no_grad():
        return model.eval()(
            input_ids=ids,
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            pixel_values=sample.vision.pixel_values,
            image_grid_thw=sample.vision.image_grid_thw,
        ).logits


def move_what_trains(model, seed: int = 1) -> None:
    """Change the adapters, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def merged_weights(model) -> dict[str, torch.Tensor]:
    return {one.name: one.make() for one in merged_tensors(model)}


def test_every_linear_layer_of_the_parts_that_train_is_adapted_and_no_other(bench, quickstart):
    linear = {name for name, module in bench.model.named_modules() if isinstance(module, nn.Linear)}
    expected = {name for name in linear if part_of(name) in ("vision", "language") and name != "lm_head"}
    assert "model.visual.merger.linear_fc1" in linear - expected
    model = adapt(bench, quickstart, "lora", ("aligner",))
    assert set(adapters_of(model)) == expected


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone(bench, part):
    frozen = tuple(other for other in PARTS if other != part)
    layers = adapted_layers(bench.model, frozen)
    assert layers
    assert {part_of(name) for name in layers} == {part}
    assert set(adapted_layers(bench.model, ())) >= set(layers)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_the_adapters_alone_train(bench, quickstart, kind):
    sizes = {
        name: module
        for name, module in bench.model.named_modules()
        if isinstance(module, nn.Linear) and part_of(name) == "language" and name != "lm_head"
    }
    # A [r, in] and B [out, r]; DoRA one length per output more
    per_layer = [
        RANK * (m.in_features + m.out_features) + (m.out_features if kind == "dora" else 0) for m in sizes.values()
    ]
    model = adapt(bench, quickstart, kind, ("vision", "aligner"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert sum(p.numel() for p in trained.values()) == sum(per_layer)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_new_adapter_changes_no_output(bench, quickstart, kind):
    before = logits(bench.model, bench.samples[0])
    after = logits(adapt(bench, quickstart, kind), bench.samples[0])
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)


def test_adapters_take_the_precision_of_the_model_and_no_buffer_is_rounded(bench, quickstart):
    model = Qwen3VLForConditionalGeneration.from_pretrained(quickstart.model, dtype=torch.bfloat16)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any(buffer.dtype == torch.float32 for buffer in before.values())  # the rotary frequencies
    add_adapters(model, tuner("dora"), (), (), seed=0, source=quickstart.model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, before[name], atol=0, rtol=0)


def test_the_first_weights_follow_from_the_seed_alone(bench, quickstart):
    first = {
        name: p.clone() for name, p in adapt(bench, quickstart, "lora", seed=3).named_parameters() if "lora_A" in name
    }
    torch.rand(7)
    again = adapt(load_bench(quickstart, num_samples=1), quickstart, "lora", seed=3)
    other = adapt(load_bench(quickstart, num_samples=1), quickstart, "lora", seed=4)
    assert all(torch.equal(dict(again.named_parameters())[name], value) for name, value in first.items())
    assert not any(torch.equal(dict(other.named_parameters())[name], value) for name, value in first.items())


@pytest.mark.parametrize(("kind", "rows"), [("lora", None), ("dora", None), ("lora", "coordinates")])
def test_an_export_holds_merged_weights_and_leaves_the_trained_ones_alone(
    bench, quickstart, world, kind, rows, tmp_path
):
    model = adapt(bench, quickstart, kind, rows=rows)
    move_what_trains(model)
    expected = logits(model, bench.samples[0])
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole_model = WholeModel(model, world, is_partitioned=False)
    export(whole_model, quickstart.model, bench.encoder.image_processor, tmp_path / "hf")
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    plain, report = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert not any(report.values())
    assert plain.lm_head.weight is plain.get_input_embeddings().weight
    torch.testing.assert_close(logits(plain, bench.samples[0]), expected, atol=1e-5, rtol=1e-5)
    start = Qwen3VLForConditionalGeneration.from_pretrained(quickstart.model)
    assert (logits(start, bench.samples[0]) - expected).abs().max() > 1e-2


@pytest.mark.parametrize(("kind", "rows"), [("lora", None), ("dora", None), ("lora", "coordinates")])
def test_the_adapter_folder_is_loaded_by_peft(bench, quickstart, kind, rows, tmp_path):
    model = adapt(bench, quickstart, kind, rows=rows)
    move_what_trains(model)
    save_adapter(model, tmp_path / "adapter")
    start = Qwen3VLForConditionalGeneration.from_pretrained(quickstart.model)
    loaded = PeftModel.from_pretrained(start, tmp_path / "adapter").base_model.model
    torch.testing.assert_close(logits(loaded, bench.samples[0]), logits(model, bench.samples[0]), atol=1e-5, rtol=1e-5)


def test_of_the_embedding_exactly_the_coordinates_train(bench, quickstart):
    table = bench.model.get_input_embeddings().weight.detach().clone()
    model = adapt(bench, quickstart, "lora", rows="coordinates")
    (rows,) = (p for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name)
    ids = list(bench.vocabulary.coordinate_ids)
    assert torch.equal(rows, table[ids])
    move_what_trains(model)
    exported = merged_weights(model)
    after = exported["model.language_model.embed_tokens.weight"]
    others = [row for row in range(len(table)) if row not in set(ids)]
    assert torch.equal(after[others], table[others])
    assert torch.equal(after[ids], rows) and not torch.equal(rows, table[ids])
    assert "lm_head.weight" not in exported  # the head is tied


def test_a_model_without_adapters_is_exported_as_it_is(bench):
    """Each tensor once, though the head is tied, made from itself alone and in its own memory."""
    parameters = dict(bench.model.named_parameters())
    tensors = merged_tensors(bench.model)
    assert [one.name for one in tensors] == list(parameters)
    for one in tensors:
        assert one.needs == (one.name,)
        assert one.make().data_ptr() == parameters[one.name].data_ptr()


@pytest.mark.parametrize("rows", [None, "coordinates"])
def test_a_merged_tensor_says_what_it_is_made_from(bench, quickstart, rows):
    """With everything else emptied, as under ZeRO 3, it is made all the same."""
    model = adapt(bench, quickstart, "lora", rows=rows)
    move_what_trains(model)
    expected = merged_weights(model)
    parameters = dict(model.named_parameters())
    kept = {name: parameter.data for name, parameter in parameters.items()}
    for one in merged_tensors(model):
        for name, parameter in parameters.items():
            parameter.data = kept[name] if name in one.needs else torch.empty(0)
        assert torch.equal(one.make(), expected[one.name]), one.name


def test_a_merge_in_bf16_rounds_once(bench, quickstart):
    model = adapt(bench, quickstart, "lora").to(torch.bfloat16)
    move_what_trains(model)
    name, layer = next(iter(adapters_of(model).items()))
    down, up = (getattr(layer, f"lora_{side}")["default"].weight.double() for side in "AB")
    # alpha / rank = 8 / 4
    exact = layer.base_layer.weight.double() + 2 * up @ down
    torch.testing.assert_close(merged_weights(model)[f"{name}.weight"], exact.to(torch.bfloat16), atol=0, rtol=2**-8)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_optimizer_holds_what_trains_and_each_of_it_gets_a_gradient(
    bench, quickstart, kind, checkpointing, tmp_path
):
    values = config_values(quickstart, tmp_path, "tuner")
    values = merged(values, {"model.gradient_checkpointing": checkpointing, "model.freeze": ["vision"]})
    config = load_config(write_config(tmp_path / "c.yaml", values)).config
    model = load_checkpoint(config.model, min_pixels=None, max_pixels=None).model
    add_adapters(model, tuner(kind), config.model.freeze, (), seed=0, source=quickstart.model)
    optimizer = build_optimizer(
        Objective(model, torch.tensor(bench.vocabulary.coordinate_ids), config.stage2_ab), config.training
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in trained}
    move_what_trains(model)  # B is zero at first, which leaves A without a gradient
    sample = bench.samples[0]
    ids = torch.tensor(sample.prompt_ids)[None]
    out = model.train()(
        input_ids=ids,
        mm_token_type_ids=(ids == model.config.image_token_id).int(),
        pixel_values=sample.vision.pixel_values,
        image_grid_thw=sample.vision.image_grid_thw,
    )
    out.logits.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
