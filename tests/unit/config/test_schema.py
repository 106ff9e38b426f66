import json
import re

import pytest
from jsonschema import Draft202012Validator

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.schema import config_schema, leaves, schema_folder, with_defaults, with_sections
from tests.unit.config.checked import check_file

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
    "maxLength",
    "pattern",
    "uniqueItems",
    "additionalProperties",
    "required",
}
KEYWORDS_OF_STRUCTURE = {
    *("title", "description", "default", "items", "properties", "if", "else", "patternErrorMessage", "writeOnly")
}


NAMES_OF_OTHERS = {"bbox_2d", "coord_k", "object_1"}  # of records and of answers


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


def test_a_key_that_is_null_counts_as_given(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(MINIMAL + "deepspeed: {zero_stage: null}\n", encoding="utf-8")
    assert "got null" in check_file(file)[0].why


def test_a_whole_number_is_a_number(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(MINIMAL + "deepspeed: {gradient_clipping: 1}\n", encoding="utf-8")
    assert load_config(file).config.deepspeed.gradient_clipping == 1.0


def test_descriptions_name_only_what_can_be_set():
    """As `flash_attention_2` was named where the key refuses it."""
    words = {word for path, _ in leaves(config_schema()) for word in path}
    words |= {str(choice) for _, schema in leaves(config_schema()) for choice in schema.get("enum", ())}
    for path, schema in leaves(config_schema()):
        named = set(re.findall(r"(?<![\w./-])[a-z0-9]+(?:_[a-z0-9]+)+(?![\w/-])", schema["description"]))
        assert named <= words | NAMES_OF_OTHERS, (path, named - words)
