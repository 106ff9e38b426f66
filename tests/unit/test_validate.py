"""The command as users run it: output, exit codes, imports."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ds_stage2ab import validate

ROOT = Path(__file__).resolve().parents[2]
VALID = Path("tests/examples/valid/minimal.yaml")
BATCH = Path("tests/examples/valid/every_key.yaml")
TYPO = Path("tests/examples/invalid/typo_of_a_key.yaml")
MIXED = Path("configs/stage2_ab/prod/ab_mixed.yaml")
SEVERAL = Path("tests/examples/invalid/several_problems.yaml")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def run(capsys, *arguments: object) -> tuple[int, str]:
    code = validate.main([str(argument) for argument in arguments])
    seen = capsys.readouterr()
    assert seen.err == ""
    return code, seen.out


def test_a_valid_file_gives_one_line_with_the_derived_numbers(capsys):
    code, out = run(capsys, VALID, "--learners", 4)
    assert code == 0
    sentence = "32 samples per step = 1 per rank x 4 ranks x 8 micro-steps; 8 samples per rank and step; b_ratio 0"
    assert out == f"{VALID}: valid: {sentence}\n"


def test_several_valid_files_give_one_line_each(capsys):
    code, out = run(capsys, VALID, BATCH)
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [str(VALID), str(BATCH)]


def test_a_given_accumulation_implies_the_learners(capsys):
    _, out = run(capsys, BATCH)
    assert "24 samples per step = 3 per rank x 2 ranks x 4 micro-steps" in out


def test_problems_come_as_blocks_and_a_count(capsys):
    code, out = run(capsys, TYPO, VALID, SEVERAL)
    assert code == 1
    lines = out.splitlines()
    assert lines[:5] == [
        f"{TYPO}:4:3: training.learning_rat",
        "  is no key of a config",
        "    4 |   learning_rat: 1e-4",
        "      |   ^",
        "  fix: did you mean `training.learning_rate`?",
    ]
    assert lines[5].startswith(f"{VALID}: valid")
    assert lines[-1] == "5 problems in 2 of 3 files"
    assert sum(line.startswith("  fix: ") for line in lines) == 5


def test_the_number_of_learners_can_make_a_file_a_problem(capsys):
    code, out = run(capsys, VALID, "--learners", 5)
    assert code == 1
    assert "set training.effective_batch_size to 30 or 35" in out


def test_a_file_that_cannot_be_opened_or_decoded_gives_2(capsys, tmp_path):
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: \xe9\n")
    for path, why in ((tmp_path / "nowhere.yaml", "does not exist"), (tmp_path, "is a folder"), (latin, "not UTF-8")):
        code, out = run(capsys, path)
        assert code == 2
        assert out.startswith(f"{path}: ")
        assert why in out
        assert out.endswith("1 problem in 1 of 1 file\n")


def test_the_largest_code_wins(capsys):
    assert run(capsys, TYPO, "nowhere.yaml", VALID)[0] == 2
    assert run(capsys, VALID, TYPO)[0] == 1


def test_rollout_devices_that_make_no_whole_replicas_are_a_problem(capsys):
    code, out = run(capsys, MIXED, "--learners", 2, "--rollout-gpus", 7)
    assert code == 1
    assert "7 rollout devices cannot be dealt out evenly" in out
    assert out.endswith("1 problem in 1 of 1 file\n")
    # 4 sequences x 6 replicas = 24 places
    code, out = run(capsys, MIXED, "--learners", 32, "--rollout-gpus", 6)
    assert code == 1
    assert "24 sequences at once, fewer than the 32 learner ranks" in out


def test_show_prints_a_config_with_the_origin_of_every_value(capsys, tmp_path):
    code, out = run(capsys, MIXED, "--show", "--set", "training.seed=7")
    lines = out.splitlines()
    assert (code, lines[0].startswith(f"# {MIXED}: valid: ")) == (0, True)
    seen = {line.split("#")[0].strip(): line.split("# ")[-1] for line in lines[1:]}
    assert seen["seed: 7"] == "--set training.seed=7"
    assert seen["rollout_backend: vllm"].startswith(f"{MIXED}:")
    assert seen["decode_batch_size: 4"].startswith("configs/stage2_ab/base_rollout_matching_sft.yaml:")
    assert seen["top_k: 0"] == "default"
    (tmp_path / "again.yaml").write_text(out)
    again = run(capsys, tmp_path / "again.yaml", "--show")[1].splitlines()
    assert [line.split("#")[0].rstrip() for line in again[1:]] == [line.split("#")[0].rstrip() for line in lines[1:]]


def test_show_of_a_bad_file_shows_the_problems(capsys):
    assert run(capsys, TYPO, "--show") == run(capsys, TYPO)


def test_json_says_the_same_to_programs(capsys):
    code, out = run(capsys, TYPO, VALID, "nowhere.yaml", "--format", "json", "--show", "--learners", 4)
    said = json.loads(out)
    assert (code, said["exit_code"], said["num_problems"]) == (2, 2, 2)
    bad, good, missing = said["files"]
    assert bad["problems"] == [
        {
            "file": str(TYPO),
            "line": 4,
            "column": 3,
            "key": "training.learning_rat",
            "why": "is no key of a config",
            "fix": "did you mean `training.learning_rate`?",
        },
    ]
    assert (good["exit_code"], good["problems"], good["derived"]["accumulation_steps"]) == (0, [], 8)
    assert good["resolved"]["training"]["seed"] == 42
    assert good["origins"]["training.seed"] == "default"
    assert (missing["exit_code"], missing["problems"][0]["why"]) == (2, "does not exist")


def test_json_of_an_argument_names_it_and_no_line(capsys):
    _, out = run(capsys, VALID, "--format", "json", "--set", "x.hf_token=hunter2")
    (problem,) = json.loads(out)["files"][0]["problems"]
    assert (problem["argument"], problem["line"], problem["key"]) == ("x.hf_token=*******", None, "x")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--learners", "0", "x.yaml"],
        ["--learners", "two", "x.yaml"],
        ["--nope"],
        ["--rollout-gpus", "-1", "x.yaml"],
    ],
)
def test_a_wrong_command_line_gives_2(arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        validate.main(arguments)
    assert raised.value.code == 2
    assert "usage: python -m ds_stage2ab.validate" in capsys.readouterr().err


def test_set_changes_every_file(capsys):
    code, out = run(capsys, VALID, BATCH, "--set", "training.effective_batch_size=48")
    assert code == 0
    assert ["48 samples per step" in line for line in out.splitlines()] == [True, True]


def test_files_and_options_may_take_turns(capsys):
    apart = [VALID, "--set", "training.effective_batch_size=48", BATCH, "--learners", 2]
    together = [VALID, BATCH, "--learners", 2, "--set", "training.effective_batch_size=48"]
    assert run(capsys, *apart) == run(capsys, *together)
    code, out = run(capsys, "--learners", 2, VALID, "--set", "training.sead=43", BATCH)
    assert (code, out.splitlines()[-1]) == (1, "2 problems in 2 of 2 files")


def test_a_problem_in_set_is_shown_for_each_file(capsys):
    block = [
        "--set training.sead=43: training.sead",
        "  is no key of a config",
        "--set | training.sead=43",
        "      | ^",
        "  fix: did you mean `training.seed`?",
    ]
    code, out = run(capsys, VALID, "--set", "training.sead=43")
    assert (code, out.splitlines()) == (1, [*block, "1 problem in 1 of 1 file"])
    code, out = run(capsys, VALID, BATCH, "--set", "training.sead=43")
    assert code == 1
    heads = [f"{VALID}: {block[0]}", f"{BATCH}: {block[0]}"]
    assert out.splitlines() == [heads[0], *block[1:], heads[1], *block[1:], "2 problems in 2 of 2 files"]


@pytest.mark.parametrize("argument", ["training.seed", "=43", "extends=x.yaml", "model.freeze=[vision"])
def test_a_set_of_a_wrong_form_is_a_wrong_command_line(argument, capsys):
    with pytest.raises(SystemExit) as raised:
        validate.main([str(VALID), "--set", argument])
    assert raised.value.code == 2
    seen = capsys.readouterr().err
    assert seen.startswith("usage: python -m ds_stage2ab.validate")
    assert f"error: --set {argument}: " in seen


def test_help_says_which_of_several_wins(capsys):
    with pytest.raises(SystemExit) as raised:
        validate.main(["--help"])
    assert raised.value.code == 0
    assert "the last of several for one key wins" in " ".join(capsys.readouterr().out.split())


def test_the_module_runs_as_a_command_and_passes_its_code_on():
    command = [sys.executable, "-m", "ds_stage2ab.validate", str(TYPO)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert "did you mean `training.learning_rate`?" in done.stdout


def test_neither_validate_nor_plan_imports_torch():
    program = "import sys, ds_stage2ab.validate, ds_stage2ab.plan; print(sorted(set(sys.modules) & set(sys.argv[1:])))"
    heavy = ["torch", "transformers", "deepspeed", "numpy", "requests"]
    command = [sys.executable, "-c", program, *heavy]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_runbook_shows_what_the_command_prints(capsys, tmp_path, monkeypatch):
    runbook = (ROOT / "docs" / "training" / "STAGE2_RUNBOOK.md").read_text(encoding="utf-8")
    assert f"```\n{run(capsys, 'configs/quickstart/ab_mixed.yaml', '--learners', 2)[1]}```" in runbook
    monkeypatch.chdir(tmp_path)
    base = f"# the run of the runbook\nextends: {ROOT}/configs/own_data.yaml\n"
    Path("my.yaml").write_text(f"{base}training:\n  learning_rat: 1e-4\n  effective_batch_size: 30\n")
    assert f"```\n{run(capsys, 'my.yaml', '--learners', 8)[1]}```" in runbook
