"""Keys of earlier configs: every row of the table alone, all together, and the value that goes with the advice."""

import re

import pytest

from ds_stage2ab.config.problems import Problem
from ds_stage2ab.config.removed import removed_keys
from ds_stage2ab.config.schema import accepts, config_schema, schema_at
from tests.unit.config.checked import check_file

MINIMAL = """\
training: {effective_batch_size: 32}
stage2_ab: {schedule: {b_ratio: 0}}
model: {path: checkpoint}
data: {train: train.jsonl, user_prompt: Detect every object.}
"""
REMOVED = [
    "stage2_ab.channel_b.mode",
    "logging.tensorboard",
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


@pytest.fixture
def problems_of(tmp_path):
    def problems(text: str) -> list[Problem]:
        (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
        return check_file(tmp_path / "config.yaml")

    return problems


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


def without(text: str, part: str) -> str:
    assert part in text
    return text.replace(part, "")


def test_the_table_of_removed_keys_is_complete():
    assert sorted(row["key"] for row in removed_keys()) == sorted(REMOVED)


@pytest.mark.parametrize("row", removed_keys(), ids=lambda row: row["key"])
def test_a_removed_key_alone_gives_its_own_advice_and_no_other_problem(row, problems_of):
    (problem,) = problems_of(with_key(row["key"], row.get("value", "7")))
    assert (problem.key, problem.why) == (row["key"], row["why"])
    assert "{" not in problem.fix
    if "{value}" in row["fix"]:
        assert row["replaced_by"] in problem.fix


@pytest.mark.parametrize("row", removed_keys(), ids=lambda row: row["key"])
def test_advice_that_names_a_value_names_the_key_that_takes_it(row):
    assert row.keys() <= {"key", "why", "fix", "value", "replaced_by", "is_pattern"}
    if "{value}" in row["fix"]:
        assert f"`{row['replaced_by']}: {{value}}`" in row["fix"]
    assert not re.search(r"[.]$", row["why"] + row["fix"])


@pytest.mark.parametrize(
    ("key", "old", "advice"),
    [
        ("custom.extra.rollout_matching.rollout_infer_batch_size", "16", "rollout_matching.decode_batch_size: 16`"),
        ("custom.extra.rollout_matching.rollout_infer_batch_size", '"16"', "rollout_matching.decode_batch_size: 16`"),
        ("custom.extra.rollout_matching.temperature", "0.7", "rollout_matching.decoding.temperature: 0.7`"),
        ("stage2_ab.bbox_giou_weight", "2.5", "`stage2_ab.bbox_ciou_weight: 2.5`"),
        ("training.packing_length", "12000", "`training.global_max_length: 12000`"),
        # What the new key would refuse is not advised.
        ("custom.extra.rollout_matching.rollout_infer_batch_size", "0", "(a whole number, at least 1)"),
        ("custom.extra.rollout_matching.rollout_infer_batch_size", "null", "(a whole number, at least 1)"),
        ("custom.extra.rollout_matching.maskiou_gate", "1.5", "(a number, above 0 and at most 1)"),
        ("stage2_ab.bbox_l1_weight", "[1]", "(a number, at least 0)"),
        ("stage2_ab.bbox_l1_weight", ".inf", "(a number, at least 0)"),
    ],
)
def test_advice_names_the_value_that_goes_with_the_new_key(key, old, advice, problems_of):
    (problem,) = problems_of(with_key(key, old))
    assert advice in problem.fix


@pytest.mark.parametrize(
    ("pattern", "advice"),
    [
        ("[A, B]", "b_ratio: 0.5`"),
        ("[A, A, A, B]", "b_ratio: 0.25`"),
        ('"AAB"', "b_ratio: 0.333333`, the share of Channel B steps, and delete this key (rounded: 1 of 3 steps train"),
        ("'a b,b-b'", "b_ratio: 0.75`"),
        ("[B]", "b_ratio: 1`"),
        ("AAA", "b_ratio: 0`"),
        ("[A, C]", "`stage2_ab.schedule.b_ratio` (a number, at least 0 and at most 1)"),
        ("7", "`stage2_ab.schedule.b_ratio` (a number, at least 0 and at most 1)"),
        ("[]", "`stage2_ab.schedule.b_ratio` (a number, at least 0 and at most 1)"),
    ],
)
def test_a_pattern_becomes_the_share_of_b(pattern, advice, problems_of):
    (problem,) = problems_of(MINIMAL.replace("b_ratio: 0", f"pattern: {pattern}"))
    assert advice in problem.fix


def test_where_the_new_key_is_there_the_advice_compares_them(problems_of):
    key = "stage2_ab.channel_b.rollouts_per_step"
    (same,) = problems_of(with_key(key, "32"))
    assert same.fix.startswith("delete this key: `training.effective_batch_size` says the same already (")
    assert same.fix.endswith("config.yaml:1)")
    (other,) = problems_of(with_key(key, "48"))
    assert "`training.effective_batch_size` is set to 32 already (" in other.fix
    assert other.fix.endswith("put there what you mean (48 here)")
    (unusable,) = problems_of(with_key(key, "many"))
    assert unusable.fix.endswith("put there what you mean")


def test_a_required_key_whose_predecessor_is_there_is_not_also_missing(problems_of):
    text = without(with_key("stage2_ab.channel_b.rollouts_per_step", "48"), "effective_batch_size: 32")
    (problem,) = problems_of(text)
    assert problem.fix == "set `training.effective_batch_size: 48` and delete this key"


def test_no_rule_speaks_about_a_key_whose_value_an_old_key_holds(problems_of):
    # 4096 new tokens would not fit beside a prompt below the default cap; the old key says that the cap is another.
    text = (
        with_key("training.packing_length", "12000") + "custom: {extra: {rollout_matching: {max_new_tokens: 4096}}}\n"
    )
    assert [problem.key for problem in problems_of(text)] == ["training.packing_length"]
    assert [p.path[-1] for p in problems_of(text.replace(", packing_length: 12000", ""))] == ["max_new_tokens"]


def test_all_of_them_together_each_give_their_own_advice(problems_of):
    sections = {}
    for row in removed_keys():
        node = sections
        *parents, last = row["key"].split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = row.get("value", 7)
    sections["stage2_ab"]["schedule"]["b_ratio"] = 0
    sections["training"]["effective_batch_size"] = 32
    text = MINIMAL.splitlines()[2:] + [f"{name}: {value}".replace("'", '"') for name, value in sections.items()]
    assert sorted(problem.key for problem in problems_of("\n".join(text))) == sorted(REMOVED)


def test_everything_under_a_removed_key_goes_with_it(problems_of):
    text = with_key("stage2_ab.channel_b.async", "{queue: 3, workers: {n: 2}}")
    assert [problem.key for problem in problems_of(text)] == ["stage2_ab.channel_b.async"]


def test_what_replaces_a_key_exists():
    for row in removed_keys():
        if "replaced_by" in row:
            assert schema_at(config_schema(), tuple(row["replaced_by"].split(".")))
    assert accepts({"type": "integer"}, 3)
    assert not accepts({"type": "integer"}, 3.0)
