"""The command as users run it: output, exit codes, imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from ds_stage2ab import validate

ROOT = Path(__file__).resolve().parents[2]
VALID = Path("tests/examples/valid/minimal.yaml")
BATCH = Path("tests/examples/valid/every_key.yaml")
TYPO = Path("tests/examples/invalid/typo_of_a_key.yaml")
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
    assert lines[:3] == [
        f"{TYPO}:4:3: training.learning_rat",
        "  is no key of a config",
        "  fix: did you mean `training.learning_rate`?",
    ]
    assert lines[3].startswith(f"{VALID}: valid")
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


@pytest.mark.parametrize("arguments", [[], ["--learners", "0", "x.yaml"], ["--learners", "two", "x.yaml"], ["--nope"]])
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
    block = ["--set training.sead=43: training.sead", "  is no key of a config", "  fix: did you mean `training.seed`?"]
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
