import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from ds_stage2ab.config.load import check_file, load_config
from ds_stage2ab.config.schema import config_schema, leaves, removed_keys, schema_folder, with_defaults, with_sections

MINIMAL = """\
training: {effective_batch_size: 32}
stage2_ab: {schedule: {b_ratio: 0}}
model: {path: checkpoint}
data: {train: train.jsonl, user_prompt: Detect every object.}
"""
REQUIRED = {
    ("training", "effective_batch_size"),
    ("stage2_ab", "schedule", "b_ratio"),
    ("model", "path"),
    ("data", "train"),
    ("data", "user_prompt"),
}
KEYWORDS_WITH_A_MESSAGE = {
    "type",
    "enum",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "pattern",
    "uniqueItems",
    "additionalProperties",
    "required",
}
KEYWORDS_OF_STRUCTURE = {"title", "description", "default", "items", "properties", "if", "else", "patternErrorMessage"}

REMOVED = [
    "stage2_ab.channel_b.mode",
    "stage2_ab.channel_b.async",
    "stage2_ab.channel_b.enable_pipeline",
    "stage2_ab.channel_b.rollouts_per_step",
    "stage2_ab.channel_b.rollout_decode_batch_size",
    "stage2_ab.channel_b.reordered_gt_sft",
    "stage2_ab.channel_b.semantic_desc_gate",
    "stage2_ab.channel_b.desc_ce_weight_matched",
    "stage2_ab.schedule.pattern",
    "stage2_ab.bbox_l1_weight",
    "stage2_ab.bbox_giou_weight",
    "custom.extra.rollout_matching.rollout_generate_batch_size",
    "custom.extra.rollout_matching.rollout_infer_batch_size",
    "custom.extra.rollout_matching.post_rollout_pack_scope",
    "custom.extra.rollout_matching.rollout_buffer",
    "custom.extra.rollout_matching.temperature",
    "custom.extra.rollout_matching.top_p",
    "custom.extra.rollout_matching.top_k",
    "custom.extra.rollout_matching.maskiou_gate",
    "custom.extra.rollout_matching.maskiou_resolution",
    "custom.extra.rollout_matching.decode_mode",
    "custom.extra.rollout_matching.num_beams",
    "custom.extra.rollout_matching.num_return_sequences",
    "custom.extra.rollout_matching.vllm.mode",
    "custom.extra.rollout_matching.vllm.sync.mode",
    "custom.trainer_variant",
    "custom.emit_norm",
    "training.packing_buffer",
    "training.packing_min_fill_ratio",
    "training.packing_drop_last",
    "training.packing_length",
]


def sections(schema: dict, path=()):
    yield path, schema
    for key, child in schema["properties"].items():
        if child.get("type") == "object":
            yield from sections(child, (*path, key))


@pytest.mark.parametrize("file", sorted(schema_folder().glob("*.schema.json")), ids=lambda file: file.name)
def test_every_schema_file_is_valid_2020_12(file):
    schema = json.loads(file.read_text(encoding="utf-8"))
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    Draft202012Validator.check_schema(schema)


def test_every_section_refuses_unknown_keys_and_says_what_it_is():
    for path, schema in sections(config_schema()):
        assert schema["additionalProperties"] is False, path
        assert schema["title"], path
        assert schema["description"], path


@pytest.mark.parametrize(("path", "schema"), list(leaves(config_schema())), ids=".".join)
def test_every_key_is_described_bounded_and_has_a_default_unless_required(path, schema):
    assert schema["title"]
    assert schema["description"].endswith(".")
    assert ("default" in schema) != (path in REQUIRED)
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if {"integer", "number"} & set(kinds):
        assert {"minimum", "exclusiveMinimum", "enum"} & schema.keys()
        assert "Unit: " in schema["description"] or "enum" in schema


def test_every_default_satisfies_its_own_schema():
    for path, schema in leaves(config_schema()):
        if "default" in schema:
            assert list(Draft202012Validator(schema).iter_errors(schema["default"])) == [], path


def test_every_keyword_that_can_fail_has_a_message():
    def keywords(node: dict):
        for key, value in node.items():
            yield key
            if key == "properties":
                for child in value.values():
                    yield from keywords(child)
            elif key in ("items", "if", "else"):
                yield from keywords(value)

    assert set(keywords(config_schema())) <= KEYWORDS_WITH_A_MESSAGE | KEYWORDS_OF_STRUCTURE


def test_filling_twice_changes_nothing_and_leaves_the_input_alone():
    values = {"training": {"effective_batch_size": 8}}
    once = with_defaults(values, config_schema())
    assert with_defaults(once, config_schema()) == once
    assert values == {"training": {"effective_batch_size": 8}}
    assert once["training"]["learning_rate"] == 1e-4
    assert once["custom"]["extra"]["rollout_matching"]["decode_batch_size"] == 1


def test_missing_sections_become_empty_ones_and_values_in_their_place_stay():
    filled = with_sections({"model": 3}, config_schema())
    assert filled["model"] == 3
    assert filled["custom"]["extra"]["rollout_matching"]["vllm"] == {"server": {}, "sync": {}, "probe": {}}


def with_key(path: str, value: str) -> str:
    """MINIMAL in which one key more is set, written in flow style."""
    section, *inner = path.split(".")
    nested = f"{inner[-1]}: {value}"
    for key in reversed(inner[:-1]):
        nested = f"{key}: {{{nested}}}"
    lines = MINIMAL.splitlines()
    for number, line in enumerate(lines):
        if line.startswith(f"{section}:"):
            # `schedule` is there already; no test needs a second key next to b_ratio but `pattern`.
            inside = "schedule: {b_ratio: 0, pattern: " + value + "}" if inner[0] == "schedule" else None
            lines[number] = f"{section}: {{{inside}}}" if inside else line[:-1] + f", {nested}}}"
            return "\n".join(lines) + "\n"
    return MINIMAL + f"{section}: {{{nested}}}\n"


def test_the_table_of_removed_keys_is_complete():
    assert sorted(row["key"] for row in removed_keys()) == sorted(REMOVED)


@pytest.mark.parametrize("row", removed_keys(), ids=lambda row: row["key"])
def test_a_removed_key_alone_gives_its_own_advice_and_no_other_problem(row, tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text(with_key(row["key"], row.get("value", "7")), encoding="utf-8")
    problems = check_file(file)
    assert [(problem.key, problem.why) for problem in problems] == [(row["key"], row["why"])]
    assert problems[0].fix == row["fix"].replace("{value}", "7")


def test_advice_names_the_value_that_the_old_key_had(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(with_key("stage2_ab.channel_b.rollouts_per_step", "48"), encoding="utf-8")
    assert "`training.effective_batch_size: 48`" in check_file(file)[0].fix


def test_a_quoted_value_is_advised_without_its_quotes(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(with_key("custom.extra.rollout_matching.rollout_infer_batch_size", '"16"'), encoding="utf-8")
    assert "decode_batch_size: 16`" in check_file(file)[0].fix


@pytest.mark.parametrize("row", removed_keys(), ids=lambda row: row["key"])
def test_advice_that_names_a_value_names_the_key_that_takes_it(row):
    assert row.keys() <= {"key", "why", "fix", "value", "replaced_by"}
    if "{value}" in row["fix"]:
        assert f"`{row['replaced_by']}: {{value}}`" in row["fix"]
    assert not re.search(r"[.]$", row["why"] + row["fix"])


def test_everything_under_a_removed_key_goes_with_it(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(with_key("stage2_ab.channel_b.async", "{queue: 3, workers: {n: 2}}"), encoding="utf-8")
    assert [problem.key for problem in check_file(file)] == ["stage2_ab.channel_b.async"]


def test_a_key_that_is_null_counts_as_given(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(MINIMAL + "deepspeed: {zero_stage: null}\n", encoding="utf-8")
    assert "got null" in check_file(file)[0].why


def test_a_whole_number_is_a_number(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(MINIMAL + "deepspeed: {gradient_clipping: 1}\n", encoding="utf-8")
    assert load_config(file).config.deepspeed.gradient_clipping == 1.0
