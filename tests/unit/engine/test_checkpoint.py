"""Checkpoints of a real one-rank engine: whole or not there, and a Hugging Face folder that anyone can load."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from ds_stage2ab.config.load import load_config
from ds_stage2ab.detector_file import DetectorFile, read_detector_file, write_detector_file
from ds_stage2ab.engine.build import load_checkpoint
from ds_stage2ab.engine.checkpoint import Checkpoints
from ds_stage2ab.engine.export import export
from ds_stage2ab.engine.resume import unusable
from ds_stage2ab.engine.shards import StoredTensors
from ds_stage2ab.engine.training_state import restore_weights
from ds_stage2ab.engine.whole_model import WholeModel
from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.model_folder.read import CHANGING
from tests.parts import Quickstart, config_values, merged, write_config
from tests.unit.engine.saving import save, section
from tests.unit.parts import NO_GUARD

DETECTOR = DetectorFile(
    system_prompt=None,
    user_prompt="Find the cats.",
    codec="array",
    min_pixels=None,
    max_pixels=10**6,
    max_new_tokens=64,
    repeat_terminate=NO_GUARD,
)
WHOLE = ["hf", "manifest.json", "random.safetensors", "state.json", "training"]


def listed(folder):
    return sorted(path.name for path in folder.iterdir())


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def move(model, seed):
    """Change every weight, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)


def logits(model, sample):
    ids = torch.tensor(sample.prompt_ids)[None]
    with torch.no_grad():
        return model.eval()(
            input_ids=ids,
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            pixel_values=sample.vision.pixel_values,
            image_grid_thw=sample.vision.image_grid_thw,
        ).logits


def assert_same_weights(seen, expected):
    assert seen.keys() == expected.keys()
    assert all(torch.equal(seen[name], tensor) for name, tensor in expected.items())


def test_an_exported_model_gives_the_same_logits_bit_by_bit(bench, whole_model, source, own, tmp_path):
    move(bench.model, seed=1)
    export(whole_model, source, own, tmp_path / "hf")
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "hf")
    sample = bench.samples[0]
    assert torch.equal(logits(loaded, sample), logits(bench.model, sample))
    original = Qwen3VLForConditionalGeneration.from_pretrained(source)
    assert not torch.equal(logits(original, sample), logits(bench.model, sample))


def test_tied_weights_stay_tied_and_are_stored_once(bench, whole_model, source, own, tmp_path):
    export(whole_model, source, own, tmp_path / "hf")
    with safe_open(tmp_path / "hf" / "model.safetensors", framework="pt") as stored:
        names = set(stored.keys())
    assert "lm_head.weight" not in names
    assert names == {name for name, _ in bench.model.named_parameters()}
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "hf")
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight


def test_the_first_error_of_an_export_is_raised_after_the_last_gather(bench, whole_model, source, own, tmp_path):
    """The other ranks take part in every gather, and the first error is the cause of what follows."""
    gathered, part = [], whole_model.part

    def failing(names, device, *, only_first):
        gathered.append(names)
        if len(gathered) in (2, 4):
            raise MemoryError(f"no room for tensor {len(gathered)}")
        return part(names, device, only_first=only_first)

    with mock.patch.object(whole_model, "part", failing), pytest.raises(MemoryError, match="no room for tensor 2"):
        export(whole_model, source, own, tmp_path / "hf")
    assert len(gathered) == len(list(bench.model.parameters()))


def test_everything_but_weights_is_copied(bench, whole_model, source, own, tmp_path):
    for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "a.gguf"):
        (source / name).write_text("weights of another form")
    for name in CHANGING:
        (source / name).write_text("{}")
    (source / "NOTICE").write_text("kept")
    (source / "original").mkdir()
    export(whole_model, source, own, tmp_path / "hf")
    weights_of_others = {"model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"}
    assert set(listed(tmp_path / "hf")) == set(listed(source)) - weights_of_others - {"a.gguf", "original", *CHANGING}
    copied = ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "NOTICE")
    for name in (*copied, "video_preprocessor_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (source / name).read_bytes(), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.convert_tokens_to_ids("<|coord_999|>") == bench.vocabulary.coordinate_ids[999]
    assert Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "hf").patch_size == 8


def trained_with(source, tmp_path, **limits):
    """The image processor of a run whose config sets these limits of `data`."""
    values = merged(config_values(Quickstart(model=source, plain=source, data=tmp_path), tmp_path, "limits"), limits)
    config = load_config(write_config(tmp_path / "limits.yaml", values)).config
    limits = {"min_pixels": config.data.min_pixels, "max_pixels": config.data.max_pixels}
    return load_checkpoint(config.model, **limits).image_processor


def pixels(processor):
    """Of a small and of a large picture, so that each limit shows."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randint(256, (*size, 3), generator=generator, dtype=torch.uint8) for size in ((48, 40), (96, 200))]
    found = processor(images=[Image.fromarray(part.numpy()) for part in noise], return_tensors="pt")
    return found["pixel_values"], found["image_grid_thw"].tolist()


LIMITS = [
    {"data.min_pixels": 64 * 64},
    {"data.max_pixels": 96 * 96},
    {"data.min_pixels": 64 * 64, "data.max_pixels": 96 * 96},
]


@pytest.mark.parametrize("limits", LIMITS, ids=["min", "max", "both"])
@pytest.mark.parametrize("form", ["size", "older names", "nested", "plain processor_config"])
def test_the_export_resizes_as_training_did(bench, whole_model, source, tmp_path, form, limits):
    path = source / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    if form == "older names":
        settings |= {"min_pixels": 40 * 40, "max_pixels": 250 * 250}
        path.write_text(json.dumps(settings))
    elif form == "nested":
        (source / "processor_config.json").write_text(json.dumps({"image_processor": settings, "more": 1}))
    elif form == "plain processor_config":
        (source / "processor_config.json").write_text('{"more": 1}')
    training = trained_with(source, tmp_path, **limits)
    export(whole_model, source, training, tmp_path / "hf")
    exported = Qwen2VLImageProcessorPil.from_pretrained(tmp_path / "hf")
    values, grids = pixels(exported)
    expected_values, expected_grids = pixels(training)
    assert grids == expected_grids and torch.equal(values, expected_values)
    assert grids != pixels(Qwen2VLImageProcessorPil.from_pretrained(source))[1]
    written = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    # A reader that knows this file alone finds the same limits; whatever else it holds is the source's.
    assert written == {key: settings[key] for key in settings if key not in ("min_pixels", "max_pixels")} | {
        "size": dict(training.size)
    }
    if form == "plain processor_config":
        assert (tmp_path / "hf" / "processor_config.json").read_text() == '{"more": 1}'


def test_without_limits_the_files_stay_as_they_are(bench, whole_model, source, tmp_path):
    path = source / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_pixels": 250 * 250}, indent=7))
    export(whole_model, source, trained_with(source, tmp_path), tmp_path / "hf")
    assert (tmp_path / "hf" / path.name).read_bytes() == path.read_bytes()


def test_a_checkpoint_of_a_run_holds_its_limits(source, engine, bench, world, tmp_path):
    training = trained_with(source, tmp_path, **LIMITS[2])
    whole_model = WholeModel(bench.model, world, is_partitioned=False)
    parts = (tmp_path / "checkpoints", source, training, engine, whole_model, world)
    write_detector_file(source, DETECTOR)  # of the stage before: not what this run trains
    own = replace(DETECTOR, user_prompt="Find all.", max_pixels=None)
    folder = save(Checkpoints(*parts, section=section(), warn=print, detector=own), 1)
    limits = {"min_pixels": training.size["shortest_edge"], "max_pixels": training.size["longest_edge"]}
    assert read_detector_file(folder / "hf") == replace(own, **limits)
    assert pixels(Qwen2VLImageProcessorPil.from_pretrained(folder / "hf"))[1] == pixels(training)[1]


def test_a_checkpoint_is_whole_and_latest_names_it(checkpoints):
    assert save(checkpoints, 3) == checkpoints.folder / "step-000003"
    assert listed(checkpoints.folder) == ["latest", "step-000003"]
    assert (checkpoints.folder / "latest").read_text() == "step-000003\n"
    whole = checkpoints.folder / "step-000003"
    assert listed(whole) == WHOLE
    assert json.loads((whole / "state.json").read_text()) == {
        "format": 2,
        "engine_state": True,
        "finished_steps": 3,
        "updates": 0,
    }
    assert unusable(whole) == ""
    Qwen3VLForConditionalGeneration.from_pretrained(whole / "hf")


def test_both_halves_hold_the_weights_of_that_moment(checkpoints, bench):
    move(bench.model, seed=2)
    saved = weights(bench.model)
    folder = save(checkpoints, 4)
    move(bench.model, seed=3)
    assert not torch.equal(next(bench.model.parameters()), next(iter(saved.values())))
    exported = Qwen3VLForConditionalGeneration.from_pretrained(folder / "hf")
    assert_same_weights(weights(exported), saved)
    restore_weights(bench.model, StoredTensors(folder / "training"))
    assert_same_weights(weights(bench.model), saved)


@pytest.mark.parametrize("first", [8, 999_999], ids=["six-digits", "seven-digits"])
def test_the_oldest_beyond_keep_last_are_deleted(checkpoints, first):
    """By their numbers: of names, step-1000000 comes before step-999999."""
    for step in (first, first + 1, first + 2):
        save(checkpoints, step)
    newest = f"step-{first + 2:06d}"
    assert listed(checkpoints.folder) == ["latest", f"step-{first + 1:06d}", newest]
    assert (checkpoints.folder / "latest").read_text() == f"{newest}\n"


def test_an_export_answers_greedily(bench, whole_model, source, own, tmp_path):
    """As Qwen3-VL's own file says it: the boxes would be sampled at temperature 0.7."""
    sampled = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    ids = {"bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0, "transformers_version": "4.57.0"}
    (source / "generation_config.json").write_text(json.dumps({**ids, **sampled, "num_beams": 4, "max_length": 99}))
    export(whole_model, source, own, tmp_path / "hf")
    written = json.loads((tmp_path / "hf" / "generation_config.json").read_text())
    assert written == {**ids, "max_length": 99, "do_sample": False}
    sample = bench.samples[0]
    ids = torch.tensor(sample.prompt_ids)[None]
    loaded = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "hf")
    given = {
        "input_ids": ids,
        "mm_token_type_ids": (ids == loaded.config.image_token_id).int(),
        "pixel_values": sample.vision.pixel_values,
        "image_grid_thw": sample.vision.image_grid_thw,
    }
    answers = [loaded.generate(**given, max_length=None, max_new_tokens=12) for _ in range(3)]
    assert all(torch.equal(answer, answers[0]) for answer in answers)
    with torch.no_grad():
        best = loaded(**given).logits[0, -1].argmax()
    assert answers[0][0, ids.shape[1]] == best


def test_a_source_without_that_file_gets_none(bench, whole_model, source, own, tmp_path):
    (source / "generation_config.json").unlink()
    export(whole_model, source, own, tmp_path / "hf")
    assert not (tmp_path / "hf" / "generation_config.json").exists()


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(checkpoints):
    flushed = []
    with mock.patch("os.fsync", lambda handle: flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}")))):
        folder = save(checkpoints, 6)
    unnamed = checkpoints.folder / ".step-000006.partial"
    assert {unnamed / path.relative_to(folder) for path in (folder, *folder.rglob("*"))} <= {*flushed}
    assert flushed.index(checkpoints.folder) > flushed.index(unnamed)


def test_what_a_killed_save_left_is_replaced(checkpoints):
    left = checkpoints.folder / ".step-000005.partial"
    (left / "hf").mkdir(parents=True)
    (left / "hf" / "junk").write_text("half a file")
    folder = save(checkpoints, 5)
    assert listed(checkpoints.folder) == ["latest", "step-000005"]
    assert not (folder / "hf" / "junk").exists()
    assert listed(folder) == WHOLE


def test_a_failed_save_leaves_the_one_before(checkpoints, source):
    before = save(checkpoints, 1)
    source.rename(source.with_name("vanished"))
    with pytest.raises(EnvironmentFault, match="checkpoint"):
        save(checkpoints, 2)
    assert (checkpoints.folder / "latest").read_text() == "step-000001\n"
    assert before.is_dir() and not (checkpoints.folder / "step-000002").exists()
    Qwen3VLForConditionalGeneration.from_pretrained(before / "hf")


def test_after_a_failed_save_the_next_one_is_whole(checkpoints, source):
    save(checkpoints, 1)
    source.rename(source.with_name("vanished"))
    with pytest.raises((EnvironmentFault, OSError)):
        save(checkpoints, 2)
    source.with_name("vanished").rename(source)
    save(checkpoints, 2)
    assert listed(checkpoints.folder) == ["latest", "step-000001", "step-000002"]
    assert (checkpoints.folder / "latest").read_text() == "step-000002\n"


def test_saving_under_a_file_is_a_fault_of_the_environment(checkpoints):
    checkpoints.folder.write_text("in the way")
    with pytest.raises(EnvironmentFault, match=re.escape(str(checkpoints.folder))):
        save(checkpoints, 1)


def test_a_source_that_is_damaged_meanwhile_is_a_fault_of_the_environment(checkpoints, source):
    before = save(checkpoints, 1)
    (source / "generation_config.json").write_text("{")
    with pytest.raises(EnvironmentFault, match="a checkpoint cannot be written: Expecting property name"):
        save(checkpoints, 2)
    assert (checkpoints.folder / "latest").read_text() == f"{before.name}\n"
