"""Keys of other packages: each is told what it is called here, or that there is none, and never taken for another."""

import re
from collections import Counter

import pytest

from ds_stage2ab.config import unknown_keys
from ds_stage2ab.config.schema import UNKNOWN, _all_keys, config_schema, foreign_keys, schema_at, similar_keys
from tests.unit.config.checked import check_file

SCHEMA = config_schema()
KNOWN = list(_all_keys(SCHEMA))
SECTIONS = [(), *(path for path in KNOWN if "properties" in schema_at(SCHEMA, path))]
NO_KEYS = (
    *("ds-stage2ab plan", "deepspeed --num_gpus N", "--resume auto"),
    *("hf/", "eval/", "base_url", "tensor_parallel_size"),
)
"""What a remedy puts in quotes besides keys."""
MINIMAL = """\
training: {effective_batch_size: 32}
stage2_ab: {schedule: {b_ratio: 0}}
model: {path: checkpoint}
data: {train: train.jsonl, user_prompt: Detect every object.}
"""


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("lr", "training.learning_rate"),
        ("bf16", "model.precision"),
        ("save_steps", "checkpoint.every_steps"),
        ("save_total_limit", "checkpoint.keep_last"),
        ("eval_steps", "evaluation.every_steps"),
        ("logging_steps", "logging.every_steps"),
        ("report_to", "logging.trackers"),
        ("num_train_epochs", "training.num_epochs"),
        ("resume_from_checkpoint", "model.path"),
        ("lora_r", "tuner.lora_rank"),
        ("warmup_ratio", "training.warmup_steps"),
        ("train_batch_size", "training.effective_batch_size"),
        ("train_micro_batch_size_per_gpu", "training.per_device_train_batch_size"),
        ("per_device_train_batch_size", "training.per_device_train_batch_size"),
        ("gradient_accumulation_steps", "training.gradient_accumulation_steps"),
        ("max_steps", "training.max_steps"),
        ("output_dir", "logging.root"),
    ],
)
@pytest.mark.parametrize("section", ["deepspeed", "training", "tuner", "checkpoint"])
def test_the_common_ones_in_any_section(tmp_path, name, ours, section):
    if f"{section}.{name}" == ours:
        return
    sections = {"training": {"effective_batch_size": "32"}}
    sections.setdefault(section, {})[name] = "1"
    text = MINIMAL.replace("training: {effective_batch_size: 32}\n", "")
    for key, values in sections.items():
        text += f"{key}: {{{', '.join(f'{k}: {v}' for k, v in values.items())}}}\n"
    path = tmp_path / "config.yaml"
    path.write_text(text)
    (problem,) = check_file(path)
    assert (problem.key, problem.why) == (f"{section}.{name}", UNKNOWN)
    assert f"`{ours}" in problem.fix


def test_the_table_names_keys_that_there_are():
    for row in foreign_keys():
        named = [text.split(":")[0] for text in re.findall(r"`([^`]+)`", row["fix"])]
        keys = [text for text in named if (text not in NO_KEYS and "." in text) or text in SCHEMA["properties"]]
        assert set(row["ours"]) <= {".".join(path) for path in KNOWN}, row
        assert {tuple(key.split(".")) for key in keys} <= set(KNOWN), row
        assert set(named) == {*keys, *(text for text in named if text in NO_KEYS)}, row
        if row["fix"].startswith("write"):
            assert row["ours"] and row["ours"][0] in keys, row


def test_a_name_stands_once_and_is_none_of_ours():
    names = Counter(name for row in foreign_keys() for name in row["names"])
    assert [name for name, count in names.items() if count > 1] == []
    assert {path[-1] for path in KNOWN} & names.keys() == set()
    assert all(name == unknown_keys.plain_name(name) for name in names)


@pytest.mark.parametrize("section", SECTIONS, ids=".".join)
def test_in_every_section_the_table_decides(section):
    for row in foreign_keys():
        for name in row["names"]:
            for written in (name, name.upper(), name.replace("_", "-"), f"trainer.{name}"):
                assert similar_keys((*section, written)) == [tuple(key.split(".")) for key in row["ours"]]


AS_NEAR = {"scheduler", "dtype", "revision", "timeout", "vit_gradient_checkpointing", "vllm_tensor_parallel_size"}
"""As near to a key of ours as a slip is; the table has them."""


@pytest.mark.parametrize("section", SECTIONS, ids=".".join)
def test_without_the_table_none_is_led_to_a_key_of_another_meaning(section):
    """So a key that the table does not have is not led astray either."""
    siblings = list(schema_at(SCHEMA, section)["properties"])
    for row in foreign_keys():
        for name in set(row["names"]) - AS_NEAR:
            found = unknown_keys.similar_keys((*section, name), siblings, KNOWN, [])
            assert {".".join(key) for key in found} <= set(row["ours"]), name


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("learning_rat", "training.learning_rate"),
        ("learningrate", "training.learning_rate"),
        ("global_max_len", "training.global_max_length"),
        ("warm_up_steps", "training.warmup_steps"),
        ("max-step", "training.max_steps"),
        ("weigth_decay", "training.weight_decay"),
    ],
)
def test_a_slip_of_the_pen_is_still_seen(name, right):
    assert similar_keys(("training", name)) == [tuple(right.split("."))]
