import json
from pathlib import Path

import pytest

from ds_stage2ab.config.load import load_config
from ds_stage2ab.errors import EXIT_CONFIG, ConfigError, exit_code
from tests.unit.config.checked import check_file

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "valid"
FILES = sorted(EXAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_resolved_config_is_valid_and_resolves_to_itself(path, tmp_path):
    resolved = load_config(path).resolved
    again = tmp_path / "config.json"
    again.write_text(json.dumps(resolved, ensure_ascii=False), encoding="utf-8")
    assert load_config(again).resolved == resolved


def test_the_run_is_named_after_the_file_unless_the_config_names_it():
    assert load_config(EXAMPLES / "minimal.yaml").name == "minimal"
    assert load_config(EXAMPLES / "every_key.yaml").name == "my-run_1.0"


def test_merging_reaches_the_sections():
    config = load_config(EXAMPLES / "diamond.yaml").config
    # left: learning_rate 1e-3, seed 1, two parts frozen; right: seed 2, one part; the file: warm-up
    assert (config.training.learning_rate, config.training.seed, config.training.warmup_steps) == (1e-3, 2, 3)
    assert config.model.freeze == ("vision",)


def test_an_error_with_one_problem_reads_as_a_sentence(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(f"extends: {EXAMPLES}/minimal.yaml\ntraining: {{seed: -1}}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    assert str(raised.value).splitlines() == [
        f"{file}:2:18: training.seed: must be at least 0, got -1",
        "    2 | training: {seed: -1}",
        "      |                  ^",
        "  fix: write a number at least 0 and at most 4294967295",
    ]
    assert exit_code(raised.value) == EXIT_CONFIG


def test_an_error_with_several_problems_lists_them_in_reading_order(tmp_path):
    base, file = tmp_path / "a_base.yaml", tmp_path / "child.yaml"
    base.write_text(f"extends: {EXAMPLES}/minimal.yaml\ntraining: {{seed: -1}}\n", encoding="utf-8")
    file.write_text("extends: a_base.yaml\nmodel: {precision: fp8}\ntrainin: 1\n", encoding="utf-8")
    with pytest.raises(ConfigError) as raised:
        load_config(file)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"{file}: the config has 3 problems"
    assert lines[1::5] == [
        f"{base}:2:18: training.seed",
        f"{file}:2:20: model.precision",
        f"{file}:3:1: trainin",
    ]


def test_a_rule_that_reads_a_faulty_key_is_not_applied(tmp_path):
    file = tmp_path / "c.yaml"
    # max_new_tokens would break rule 4 against the default cap; the cap itself is faulty, so nothing can be said.
    text = "training: {global_max_length: 0}\ncustom: {extra: {rollout_matching: {max_new_tokens: 9999}}}\n"
    file.write_text(f"extends: {EXAMPLES}/minimal.yaml\n{text}", encoding="utf-8")
    assert [problem.key for problem in check_file(file)] == ["training.global_max_length"]


def test_a_faulty_section_silences_the_rules_on_its_keys(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(f"extends: {EXAMPLES}/minimal.yaml\ntraining: 3\n", encoding="utf-8")
    assert [problem.why for problem in check_file(file)] == ["must be a mapping, got the number 3"]


def test_the_number_of_learners_enters_the_batch_rules(tmp_path):
    file = EXAMPLES / "minimal.yaml"  # R 32, p 1
    assert check_file(file, 4) == []
    problems = check_file(file, 5)
    assert [problem.key for problem in problems] == ["training.effective_batch_size"]
    assert "30 or 35" in problems[0].fix


def test_a_given_accumulation_speaks_of_its_own_number_of_learners():
    file = EXAMPLES / "every_key.yaml"  # R 24, p 3, G 4: 2 learners
    assert check_file(file) == []
    assert check_file(file, 2) == []
    assert "which is 8" in check_file(file, 1)[0].why


@pytest.mark.parametrize(
    ("wrong", "right", "key"),
    [
        ("effective_batch_size", "effective_batch_siz", "training.effective_batch_siz"),
        ("\ntraining:", "\ntrainin:", "trainin"),
        ("  schedule:\n    b_ratio: 0\n", "  b_ratio: 0\n", "stage2_ab.b_ratio"),
    ],
)
def test_a_required_key_under_a_wrong_name_or_in_a_wrong_place_is_one_mistake(wrong, right, key, tmp_path):
    text = (EXAMPLES / "minimal.yaml").read_text(encoding="utf-8")
    assert wrong in text
    (tmp_path / "c.yaml").write_text(text.replace(wrong, right), encoding="utf-8")
    assert [problem.key for problem in check_file(tmp_path / "c.yaml")] == [key]


def test_a_missing_key_is_not_excused_by_a_misspelt_section_without_it(tmp_path):
    text = (EXAMPLES / "minimal.yaml").read_text(encoding="utf-8")
    text = text.replace("training:\n  effective_batch_size: 32", "trainin:\n  seed: 1")
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
    assert {problem.key for problem in check_file(tmp_path / "c.yaml")} == {"trainin", "training.effective_batch_size"}


def test_a_rule_is_silent_about_a_key_that_was_misspelt(tmp_path):
    file = tmp_path / "c.yaml"
    # The default of max_new_tokens is above this cap; the one that was meant is not.
    matching = "custom: {extra: {rollout_matching: {max_new_token: 48}}}"
    file.write_text(f"extends: {EXAMPLES}/minimal.yaml\ntraining: {{global_max_length: 64}}\n{matching}\n")
    assert [problem.path[-1] for problem in check_file(file)] == ["max_new_token"]
    file.write_text(f"extends: {EXAMPLES}/minimal.yaml\ntraining: {{global_max_length: 64}}\n")
    assert [problem.path[-1] for problem in check_file(file)] == ["max_new_tokens"]
