"""Each rule at its border: the last number that holds and the first that does not."""

import pytest

from ds_stage2ab.codec.names import SCORED
from ds_stage2ab.config import score_rules
from ds_stage2ab.config.rules import (
    RULES,
    absent_classes_have_a_place,
    answer_fits_length,
    best_checkpoint_has_data,
    constant_rate_does_not_fall,
    evaluation_has_data,
    evaluation_temperature_can_be_felt,
    greedy_decoding_draws_nothing,
    greedy_evaluation_draws_nothing,
    offload_needs_zero,
    only_appended_objects_have_a_multiplier,
    only_rewritten_answers_have_an_order,
    pixel_limits_are_ordered,
    repeated_sequences_have_length_and_number,
    replay_has_run,
    rollout_fits_length,
    rollouts_to_choose_from_differ,
    rows_are_trained_beside_adapters,
    servers_differ,
    some_part_trains,
    stopping_early_has_a_metric,
    temperature_can_be_felt,
    trained_rows_lie_in_a_part_that_trains,
    vllm_has_servers,
)
from ds_stage2ab.config.schema import config_schema, leaves
from ds_stage2ab.config.score_rules import noise_objects_have_a_score, spurious_objects_stay_where_they_were_said
from ds_stage2ab.config.topology_rules import server_rule
from ds_stage2ab.errors import ConfigError
from tests.unit.config.checked import check_file

ONE = {"base_url": "http://a", "group_port": None}
TWO = {"base_url": "http://b", "group_port": 51216}

BORDERS = [
    (greedy_decoding_draws_nothing, (0, 1, 0), (0, 0.9, 0)),
    (greedy_decoding_draws_nothing, (0.1, 0.9, 5), (0, 1, 5)),
    (temperature_can_be_felt, (0,), (0.00099,)),
    (temperature_can_be_felt, (0.001,), (1e-39,)),
    (greedy_evaluation_draws_nothing, (0, 1, 0), (0, 0.9, 0)),
    (evaluation_temperature_can_be_felt, (0.001,), (1e-39,)),
    (rollouts_to_choose_from_differ, ("hf", 1, 0, 1), ("hf", 2, 0, 0)),
    (rollouts_to_choose_from_differ, ("vllm", 4, 0.7, 2), ("vllm", 4, 0.7, 1)),
    (rollouts_to_choose_from_differ, ("replay", 2, 0, 0), ("vllm", 2, 0, 0)),
    (repeated_sequences_have_length_and_number, (None, None), (2, None)),
    (repeated_sequences_have_length_and_number, (2, 3), (None, 3)),
    (only_rewritten_answers_have_an_order, ("rewrite", "generated"), ("append", "generated")),
    (only_rewritten_answers_have_an_order, ("append", None), ("append", "data")),
    (noise_objects_have_a_score, ("array", 0), ("array", 1)),
    (noise_objects_have_a_score, ("compact_scored", 1), ("compact", 1)),
    (spurious_objects_stay_where_they_were_said, ("array", None, False), ("array", "generated", True)),
    (spurious_objects_stay_where_they_were_said, ("array_scored", "generated", True), ("array_scored", "data", True)),
    (only_appended_objects_have_a_multiplier, ("append", 0.5), ("rewrite", 0.5)),
    (only_appended_objects_have_a_multiplier, ("rewrite", 1), ("rewrite", 0)),
    (answer_fits_length, (511, 512), (512, 512)),
    (rollout_fits_length, (60, 452, 512, 4096), (61, 452, 512, 4096)),
    (rollout_fits_length, (60, 40, 512, 100), (61, 40, 512, 100)),
    (constant_rate_does_not_fall, ("constant", 0), ("constant", 0.1)),
    (constant_rate_does_not_fall, ("cosine", 0.1), ("constant", 1)),
    (offload_needs_zero, ("cpu", 1), ("cpu", 0)),
    (offload_needs_zero, ("none", 0), ("cpu", 0)),
    (rows_are_trained_beside_adapters, ("coordinates", "lora"), ("coordinates", "full")),
    (rows_are_trained_beside_adapters, (None, "full"), ("coordinates", "full")),
    (trained_rows_lie_in_a_part_that_trains, ("coordinates", ["vision", "aligner"]), ("coordinates", ["language"])),
    (trained_rows_lie_in_a_part_that_trains, (None, ["language"]), ("coordinates", ["vision", "language"])),
    (some_part_trains, (["vision", "aligner"],), (["vision", "aligner", "language"],)),
    (pixel_limits_are_ordered, (100, 100), (101, 100)),
    (pixel_limits_are_ordered, (100, None), (2, 1)),
    (pixel_limits_are_ordered, (None, 100), (2, 1)),
    (absent_classes_have_a_place, (0, "Detect."), (1, "Detect.")),
    (absent_classes_have_a_place, (1, "Find {classes}."), (1, "Find classes.")),
    (evaluation_has_data, (None, None), (1, None)),
    (evaluation_has_data, (1, "v.jsonl"), (1, None)),
    (best_checkpoint_has_data, (None, None), ("eval/f1", None)),
    (best_checkpoint_has_data, ("eval/f1", "v.jsonl"), ("eval/f1", None)),
    (stopping_early_has_a_metric, (None, None, None), (1, None, "v.jsonl")),
    (stopping_early_has_a_metric, (1, "eval/f1", "v.jsonl"), (1, "eval/f1", None)),
    (vllm_has_servers, ("hf", []), ("vllm", [])),
    (vllm_has_servers, ("vllm", [ONE]), ("vllm", [])),
    (replay_has_run, ("replay", "runs/x"), ("replay", None)),
    (replay_has_run, ("hf", None), ("replay", None)),
    (servers_differ, ([ONE, TWO],), ([ONE, ONE],)),
    (servers_differ, ([ONE, TWO],), ([ONE, TWO, TWO | {"base_url": "http://c"}],)),
    (servers_differ, ([ONE, ONE | {"base_url": "http://b"}],), ([ONE, ONE | {"base_url": "http://a/"}],)),
]


@pytest.mark.parametrize(("rule", "holds", "breaks"), BORDERS)
def test_a_rule_holds_up_to_its_border(rule, holds, breaks):
    rule(*holds)
    with pytest.raises(ConfigError) as raised:
        rule(*breaks)
    assert raised.value.why
    assert raised.value.fix


def test_the_rules_know_the_forms_with_scores():
    assert score_rules.SCORED == SCORED


def test_every_rule_has_a_border_here():
    assert {rule.check for rule in RULES} | {rollout_fits_length} == {rule for rule, _, _ in BORDERS}


def test_every_rule_reads_keys_that_exist():
    known = {path for path, _ in leaves(config_schema())}
    assert {path for rule in RULES for path in rule.paths} <= known


def test_a_rule_on_a_key_at_its_default_points_at_a_key_that_was_written(tmp_path):
    file = tmp_path / "c.yaml"
    lines = ["training: {effective_batch_size: 8,", "  global_max_length: 100}", "stage2_ab: {schedule: {b_ratio: 0}}"]
    lines += ["model: {path: m}", "data: {train: t, user_prompt: u}"]
    file.write_text("\n".join(lines), encoding="utf-8")
    (problem,) = check_file(file)
    assert problem.key.endswith("max_new_tokens")
    assert problem.why.endswith("(max_new_tokens is at its default)")
    assert str(problem.where) == f"{file}:2:22"


def test_rule_3_counts_replicas_and_learners():
    server = {"base_url": "http://a", "group_port": None, "tensor_parallel_size": 2}
    numbers = (64, 1, None)
    server_rule(4, None).check("vllm", [server], 4, *numbers)
    server_rule(8, 4).check("vllm", [server], 4, *numbers)
    server_rule(100, None).check("hf", [server], 1, *numbers)
    for learners, devices, why in ((5, None, "fewer than the 5 learner ranks"), (1, 3, "cannot be dealt out evenly")):
        with pytest.raises(ConfigError, match=why):
            server_rule(learners, devices).check("vllm", [server], 4, *numbers)


def test_a_faulty_entry_of_a_list_causes_no_rule_error(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(
        "training: {effective_batch_size: 8}\nstage2_ab: {schedule: {b_ratio: 0}}\nmodel: {path: m}\n"
        "data: {train: t, user_prompt: u}\n"
        "custom: {extra: {rollout_matching: {rollout_backend: vllm, vllm: {server: {servers: [{group_port: 1}]}}}}}\n",
        encoding="utf-8",
    )
    assert [problem.why for problem in check_file(file)] == ["is required and missing"]
