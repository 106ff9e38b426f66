"""A folder whose parts contradict each other is refused before anything is loaded, by all who take one."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.data.records import read_records
from ds_stage2ab.engine.build import load_checkpoint
from ds_stage2ab.errors import EXIT_ENVIRONMENT, DataError, EnvironmentFault
from ds_stage2ab.evaluation.command import weights_folder
from ds_stage2ab.model_folder.checks import check_folder, warnings_of
from ds_stage2ab.preflight.lengths import image_sizes
from ds_stage2ab.preflight.report import preflight_report
from ds_stage2ab.tools.add_coord_tokens import add_coord_tokens
from tests.parts import ROOT
from tests.unit.engine.test_build import section


@pytest.fixture
def folder(quickstart, tmp_path) -> Path:
    """A good checkpoint folder that a test may damage."""
    return Path(shutil.copytree(quickstart.model, tmp_path / "model"))


def change(file: Path, **values) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def change_tensor(folder: Path, name: str, made) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name] = made(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


TABLE = "model.language_model.embed_tokens.weight"


def adapters(folder):
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"a": torch.zeros(1)}, folder / "adapter_model.safetensors")


def adapters_of_no_json(folder):
    (folder / "adapter_config.json").write_text("{garbage")


def adapters_cut_short(folder):
    (folder / "adapter_model.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")


def a_folder_for_adapters(folder):
    (folder / "adapter_config.json").mkdir()


def a_link_to_adapters_that_are_gone(folder):
    (folder / "adapter_config.json").symlink_to("/nowhere")


def adapters_alone(folder):
    adapters(folder)
    (folder / "config.json").unlink()


def older_adapters(folder):
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.bin").write_bytes(b"0")


def quantised_config(folder):
    change(folder / "config.json", quantization_config={"quant_method": "gptq"})


def quantised_text_config(folder):
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", text_config={**config["text_config"], "quantization_config": {}})


def quantised_side_file(folder):
    (folder / "hf_quant_config.json").write_text("{}")


def two_sets(folder):
    (folder / "pytorch_model.bin").write_bytes(b"0")


def left_over_shard(folder):
    save_file({"a": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")


def index_without_its_files(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pointer_of_git_lfs(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n")


def fewer_rows_than_tokens(folder):
    config = json.loads((folder / "config.json").read_text())
    rows = config["text_config"]["vocab_size"] - 8
    change(folder / "config.json", text_config={**config["text_config"], "vocab_size": rows})
    change_tensor(folder, TABLE, lambda tensors: tensors[TABLE][:rows].clone())


def vocab_size_of_another(folder):
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", text_config={**config["text_config"], "vocab_size": 151_936})


def head_that_is_nowhere(folder):
    config = json.loads((folder / "config.json").read_text())
    text = {**config["text_config"], "tie_word_embeddings": False}
    change(folder / "config.json", text_config=text, tie_word_embeddings=False)


def image_id_of_another(folder):
    change(folder / "config.json", image_token_id=151_655)


def patches_of_another(folder):
    change(folder / "preprocessor_config.json", patch_size=14, merge_size=1, temporal_patch_size=1)


def patches_by_default(folder):
    values = json.loads((folder / "preprocessor_config.json").read_text())
    values.pop("patch_size")  # transformers takes 14 then
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def no_rescaling(folder):
    change(folder / "preprocessor_config.json", do_rescale=False)


def means_of_grey(folder):
    change(folder / "preprocessor_config.json", image_mean=[0.5])


def areas_that_cross(folder):
    change(folder / "preprocessor_config.json", size={"shortest_edge": 4096, "longest_edge": 1024})


def older_areas_that_cross(folder):
    change(folder / "preprocessor_config.json", min_pixels=100_000)


def processors_that_differ(folder):
    older = json.loads((folder / "preprocessor_config.json").read_text())
    newer = {"image_processor": {**older, "size": {"shortest_edge": 1024, "longest_edge": 4096}}}
    (folder / "processor_config.json").write_text(json.dumps(newer))


def stop_of_another(folder):
    change(folder / "generation_config.json", eos_token_id=[151_645, 151_643])


def broken_generation_config(folder):
    (folder / "generation_config.json").write_text("{")


def another_model(folder):
    change(folder / "config.json", model_type="qwen2_5_vl")


DAMAGES = {
    adapters: "adapter_config.json and adapter_model.safetensors",
    older_adapters: "adapter_config.json and adapter_model.bin",
    adapters_of_no_json: "adapter_config.json lie beside the weights",
    adapters_cut_short: "adapter_model.safetensors lie beside the weights",
    a_folder_for_adapters: "adapter_config.json lie beside the weights",
    a_link_to_adapters_that_are_gone: "adapter_config.json lie beside the weights",
    adapters_alone: "these are adapters (adapter_config.json and adapter_model.safetensors), not a checkpoint",
    quantised_config: "config.json says that the weights are quantised",
    quantised_text_config: "config.json says that the weights are quantised",
    quantised_side_file: "hf_quant_config.json",
    two_sets: "model.safetensors and pytorch_model.bin are two sets of weights",
    left_over_shard: "model-00001-of-00002.safetensors belongs to no set",
    index_without_its_files: "names model-00001-of-00002.safetensors, which is missing (1 of 1 files)",
    pointer_of_git_lfs: "git lfs pull",
    fewer_rows_than_tokens: "tokenizer.json has ids up to",
    vocab_size_of_another: "says vocab_size 151936",
    head_that_is_nowhere: "set tie_word_embeddings to true",
    image_id_of_another: "image_token_id 151655",
    patches_of_another: "patch_size 14, where config.json says patch_size 8",
    patches_by_default: "patch_size 14, where config.json says patch_size 8",
    no_rescaling: "do_rescale False",
    means_of_grey: "image_mean [0.5]",
    areas_that_cross: "'shortest_edge': 4096, 'longest_edge': 1024",
    older_areas_that_cross: "'shortest_edge': 100000",
    processors_that_differ: "processor_config.json and preprocessor_config.json differ in size",
    stop_of_another: "generation_config.json stops at id 151645",
    broken_generation_config: "generation_config.json cannot be read",
    another_model: "is that of a qwen2_5_vl",
}


def refused(take, *arguments, **options) -> str:
    with pytest.raises(EnvironmentFault) as caught:
        take(*arguments, **options)
    assert caught.value.code == EXIT_ENVIRONMENT and caught.value.where and caught.value.fix
    return str(caught.value)


@pytest.mark.parametrize(("damage", "words"), DAMAGES.items(), ids=lambda one: getattr(one, "__name__", ""))
def test_a_contradiction_is_refused_by_all_who_take_a_folder(folder, damage, words):
    damage(folder)
    said = refused(check_folder, folder)
    assert words in said and str(folder) in said
    # the run and `evaluate` load by this function
    assert said == refused(load_checkpoint, section(folder), min_pixels=None, max_pixels=None)
    overrides = read_overrides([f"model.path={folder}"])
    config = ROOT / "configs" / "quickstart" / "ab_mixed.yaml"
    assert said == refused(preflight_report, config, overrides, learners=2, rollout_devices=None, records=None)


@pytest.mark.parametrize("damage", [adapters, quantised_side_file, two_sets, left_over_shard, patches_of_another])
def test_coordinates_are_not_added_to_a_contradiction(quickstart, tmp_path, damage):
    plain = Path(shutil.copytree(quickstart.plain, tmp_path / "plain"))
    damage(plain)
    assert DAMAGES[damage] in refused(add_coord_tokens, plain, tmp_path / "made")
    assert not (tmp_path / "made").exists()


HUGE = 1_000_000  # legal, and of a model that no machine can hold


@pytest.mark.parametrize(
    ("part", "key"),
    [
        *(("text_config", key) for key in ("hidden_size", "intermediate_size", "head_dim", "num_attention_heads")),
        *(("text_config", key) for key in ("num_key_value_heads", "num_hidden_layers")),
        *(("vision_config", key) for key in ("hidden_size", "intermediate_size", "depth", "num_position_embeddings")),
        *(("vision_config", key) for key in ("out_hidden_size", "in_channels")),
    ],
)
def test_sizes_that_the_weights_contradict_are_refused_before_a_model_of_them_is_built(folder, part, key):
    config = json.loads((folder / "config.json").read_text())
    own, config[part][key] = config[part][key], HUGE
    (folder / "config.json").write_text(json.dumps(config))
    said = refused(load_checkpoint, section(folder), min_pixels=None, max_pixels=None)
    assert re.search(rf"says {part}\.[a-z_ ]*{key}[a-z_ ]* [0-9]*000000, and the weights have [0-9]+ ", said)
    if " x " not in said:
        assert f"{key} {HUGE}, and the weights have {own} " in said


def test_all_problems_come_at_once(folder):
    adapters(folder)
    patches_of_another(folder)
    said = refused(check_folder, folder)
    assert "adapter_config.json" in said and "patch_size 14" in said


def test_a_plan_judges_what_is_there(tmp_path):
    """Nothing but a config has to be on this machine."""
    assert check_folder(tmp_path / "nowhere", whole=False).config == {}
    assert "config.json is missing" in refused(check_folder, tmp_path / "nowhere")


@pytest.mark.parametrize("key", ["image_mean", "image_std"])
def test_values_of_another_family_are_warned_of(folder, key):
    assert warnings_of(check_folder(folder)) == ()
    change(folder / "preprocessor_config.json", **{key: [0.48, 0.46, 0.41]})
    (warning,) = warnings_of(check_folder(folder))
    assert key in warning and "[0.48, 0.46, 0.41]" in warning
    loaded = load_checkpoint(section(folder), min_pixels=None, max_pixels=None)
    assert loaded.warnings == (warning,)


def test_a_stop_that_is_not_the_end_of_turn_is_warned_of(folder):
    change(folder / "generation_config.json", eos_token_id=0)
    (warning,) = warnings_of(check_folder(folder))
    assert "eos_token_id" in warning


def test_what_newer_and_older_releases_write_is_read(folder, quickstart):
    """The image processor in processor_config.json, the tie in text_config, the template as chat_template.json."""
    (folder / "preprocessor_config.json").rename(folder / "older")
    older = json.loads((folder / "older").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": older}))
    (folder / "older").unlink()
    config = json.loads((folder / "config.json").read_text())
    config.pop("tie_word_embeddings")
    assert config["text_config"]["tie_word_embeddings"]
    (folder / "config.json").write_text(json.dumps(config))
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    found, expected = (
        load_checkpoint(section(path), min_pixels=None, max_pixels=None) for path in (folder, quickstart.model)
    )
    assert found.tokenizer.chat_template == expected.tokenizer.chat_template
    assert dict(found.image_processor.size) == dict(expected.image_processor.size)
    assert found.model.lm_head.weight is found.model.get_input_embeddings().weight
    config_file = ROOT / "configs" / "quickstart" / "ab_mixed.yaml"
    overrides = read_overrides([f"model.path={folder}", "data.train=nowhere.jsonl", "data.validation=nowhere.jsonl"])
    report = preflight_report(config_file, overrides, learners=2, rollout_devices=None, records=64)
    assert report.memory is not None and report.lengths.image == 65_536 // 256


LONG = "x" * 300  # more than a file system takes: pathlib's own questions raise


def test_a_name_that_no_file_can_have_is_no_traceback(tmp_path):
    assert "cannot be read: File name too long" in refused(check_folder, tmp_path / LONG)
    assert "no checkpoint here" in refused(weights_folder, tmp_path / LONG)
    (tmp_path / "a.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match="the image root is no folder"):
        read_records(tmp_path / "a.jsonl", image_root=tmp_path / LONG, box_format="bins")
    assert image_sizes(tmp_path / LONG) is None


def test_a_tokenizer_that_its_library_cannot_read_gets_no_coordinates(quickstart, tmp_path):
    plain = Path(shutil.copytree(quickstart.plain, tmp_path / "plain"))
    change(plain / "tokenizer.json", model={"type": "of another kind"})
    said = refused(add_coord_tokens, plain, tmp_path / "made")
    assert "the coordinate tokens cannot be added" in said
    (tmp_path / "file").write_text("in the way")
    assert "Not a directory" in refused(add_coord_tokens, quickstart.plain, tmp_path / "file" / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "plain"]  # nothing half made
