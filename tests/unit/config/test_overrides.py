import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ds_stage2ab.config.load import check_config, load_config
from ds_stage2ab.config.nodes import MAX_DEPTH
from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.config.problems import Problem
from ds_stage2ab.config.rules import RULES
from ds_stage2ab.config.topology_rules import topology_rules
from ds_stage2ab.errors import EXIT_CONFIG, ConfigError

ROOT = Path(__file__).resolve().parents[3]
MINIMAL = ROOT / "tests" / "examples" / "valid" / "minimal.yaml"
EVERY_KEY = ROOT / "tests" / "examples" / "valid" / "every_key.yaml"


def resolved(*arguments: str, file: Path = MINIMAL) -> dict:
    return load_config(file, read_overrides(arguments)).resolved


def problems(*arguments: str, file: Path = MINIMAL) -> list[Problem]:
    return list(check_config(file, (*topology_rules(None, None), *RULES), read_overrides(arguments)).problems)


def only(*arguments: str) -> tuple[str, str, str, str]:
    """Place, key, why and fix of the one problem that the arguments make in a valid file."""
    (problem,) = problems(*arguments)
    return str(problem.where), problem.key, problem.why, problem.fix


def refusal(*arguments: str) -> str:
    with pytest.raises(ConfigError) as raised:
        read_overrides(arguments)
    assert raised.value.code == EXIT_CONFIG
    str(raised.value).encode("utf-8")  # else a terminal cannot show it
    return str(raised.value)


# -- what is set ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("training.seed=43", 43),
        ("training.learning_rate=1e-4", 1e-4),
        ("logging.name=long-43", "long-43"),
        ("logging.name='43'", "43"),
        ("model.freeze=[vision]", ["vision"]),
        ("model.freeze=[]", []),
        ("data.validation=null", None),
        ("data.validation=a=b.jsonl", "a=b.jsonl"),
        ("training.packing=false", False),
        ("data.user_prompt=Find cats, dogs.", "Find cats, dogs."),
        ('data.user_prompt="Find: #3"', "Find: #3"),
        ("data.system_prompt=''", ""),
    ],
)
def test_a_value_is_read_as_in_a_file(argument, value):
    found = resolved(argument)
    for key in argument.partition("=")[0].split("."):
        found = found[key]
    assert found == value
    assert type(found) is type(value)


def test_without_any_argument_nothing_changes():
    assert read_overrides([]) is None
    assert resolved() == load_config(MINIMAL).resolved


def test_the_command_line_wins_over_the_file_and_leaves_the_rest_of_a_section():
    before, after = resolved(file=EVERY_KEY), resolved("training.seed=43", file=EVERY_KEY)
    assert before["training"]["seed"] != 43
    assert after == {**before, "training": {**before["training"], "seed": 43}}


def test_mappings_merge_and_lists_replace():
    found = resolved("model.freeze=[vision, aligner]", "model.freeze=[language]", "training={seed: 5, max_steps: 7}")
    assert found["model"]["freeze"] == ["language"]
    # effective_batch_size: the file's
    assert [found["training"][key] for key in ("seed", "max_steps", "effective_batch_size")] == [5, 7, 32]


def test_the_last_of_several_for_one_key_wins():
    assert resolved("training.seed=1", "training={seed: 2}", "training.seed=3")["training"]["seed"] == 3


def test_the_merged_config_is_valid_and_resolves_to_itself(tmp_path):
    merged = resolved("training.seed=43", "logging.name=long-43")
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(merged), encoding="utf-8")
    assert load_config(saved).resolved == merged
    assert load_config(saved).name == "long-43"


# -- problems of what is set ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "key", "fix"),
    [
        ("training.sead=43", "training.sead", "did you mean `training.seed`?"),
        ("sead=43", "sead", "did you mean `training.seed`?"),
        ("trainin.seed=43", "trainin", "did you mean `training`?"),
        ("training.extends=43", "training.extends", "did you mean `extends`?"),
    ],
)
def test_an_unknown_key_has_the_argument_as_its_place_and_the_usual_advice(argument, key, fix):
    assert only(argument) == (f"--set {argument}", key, "is no key of a config", fix)


def test_a_wrong_value_has_the_argument_as_its_place():
    where, key, why, _ = only("training.seed=-1")
    assert (where, key, why) == ("--set training.seed=-1", "training.seed", "must be at least 0, got -1")
    assert only("model.freeze=vision")[3] == "write a list: [vision]"


def test_a_place_inside_a_value_has_its_column():
    # m is column 1 of `model.freeze=[vision, visoin]`, = is 13, [ is 14, v is 15, the second v is 23
    where, key, _, fix = only("model.freeze=[vision, visoin]")
    assert (where, key) == ("--set model.freeze=[vision, visoin] (column 23)", "model.freeze.1")
    assert fix == "did you mean vision?"
    # t 1, = 9, { 10, s 11, second s 20
    assert only("training={seed: 1, sead: 2}")[0] == "--set training={seed: 1, sead: 2} (column 20)"


def test_the_argument_that_won_is_the_place():
    assert only("training.seed=-1", "training.seed=-2")[0] == "--set training.seed=-2"
    assert problems("training.seed=-1", "training.seed=2") == []


def test_removed_keys_are_refused():
    where, key, why, fix = only("stage2_ab.channel_b.mode=async")
    assert (where, key) == ("--set stage2_ab.channel_b.mode=async", "stage2_ab.channel_b.mode")
    assert why.startswith("was removed")
    assert fix


def test_what_the_file_lacks_is_missing_from_the_file(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(f"extends: {MINIMAL}\ndata:\n  user_prompt: null\n", encoding="utf-8")
    assert [str(p.where) for p in problems("data.object_order=random", file=file)] == [f"{file}:3:16"]
    file.write_text(MINIMAL.read_text().replace("  train: train.jsonl\n", ""), encoding="utf-8")
    (problem,) = problems("data.object_order=random", file=file)
    assert (problem.key, problem.why) == ("data.train", "is required and missing")
    assert problem.where.file == str(file)


def test_a_broken_rule_names_the_arguments_that_take_part():
    where, key, why, _ = only("training.per_device_train_batch_size=5")
    assert (where, key) == (f"{MINIMAL}:3:25", "training.effective_batch_size")
    assert why.endswith("(with --set training.per_device_train_batch_size=5)")
    where, _, why, _ = only("evaluation.every_steps=5")
    assert where == "--set evaluation.every_steps=5"
    assert "with --set" not in why
    assert problems("evaluation.every_steps=5", "data.validation=v.jsonl") == []


def test_files_come_first_then_arguments_in_their_order(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(f"extends: {MINIMAL}\nzzz: 1\n", encoding="utf-8")
    found = problems("training.seed=x", "model.precision=fp8", "aaa=1", file=file)
    assert [p.key for p in found] == ["zzz", "training.seed", "model.precision", "aaa"]


# -- arguments of a wrong form -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argument", "why"),
    [
        ("training.seed", "has no `=` between a key and a value"),
        ("", "has no `=`"),
        ("=43", "has no key before the `=`"),
        (" =43", "has no key before the `=`"),
        ("training..seed=43", "has an empty name in its key"),
        (".seed=43", "has an empty name in its key"),
        ("training.seed =43", "has a blank or an unprintable character in its key"),
        ("se\udce9d=43", "has a blank or an unprintable character in its key"),
        ("extends=base.yaml", "cannot set `extends`"),
        ("extends.a=base.yaml", "cannot set `extends`"),
        ("data.validation=", "has no value"),
        ("data.validation= # none", "has no value"),
        ("model.freeze=- vision", "reads as a list in lines"),
        ("training=seed: 1", "reads as a line `key: value`"),
        ("data.user_prompt=|", "`|` begins a text of several lines"),
        ("data.user_prompt=a\nb", "has more than one line"),
        ("data.user_prompt=Find #3", "(column 23): a comment stands behind the value"),
        ("data.user_prompt='a' b", "(column 22): more text stands behind the value"),
        ("model.freeze=[vision", "ends before every bracket and quote is closed"),
        ("data.user_prompt=@all", "is not YAML: found character '@'"),
        ("training={seed: 1, seed: 2}", "training.seed: is given twice in the same mapping, first in column 11"),
        ("training.seed=!!int 3", "the tag !!int is not allowed"),
        ("training.seed=*x", "no anchor &x"),
        ("data.user_prompt=a\udce9", "control character"),
        ("a." * MAX_DEPTH + "b=1", f"leads more than {MAX_DEPTH} mappings deep"),
        ("a." * 30_000 + "b=1", f"leads more than {MAX_DEPTH} mappings deep"),
        ("a.b=" + "[" * MAX_DEPTH + "]" * MAX_DEPTH, f"leads more than {MAX_DEPTH} mappings deep"),
        ("a=" + "[" * 5000, "nested more than"),
    ],
    ids=lambda text: text[:30].encode("unicode_escape").decode("ascii"),
)
def test_an_argument_of_a_wrong_form_is_refused(argument, why):
    message = refusal(argument)
    assert message.startswith("--set ")
    assert why in message
    assert "\n  fix: " in message
    assert len(message) < 500


def test_as_many_mappings_as_a_file_may_nest_are_read():
    assert read_overrides(["a." * (MAX_DEPTH - 1) + "b=1"]).depth == MAX_DEPTH
    assert read_overrides(["a." * (MAX_DEPTH - 2) + "b=[1]"]).depth == MAX_DEPTH


@pytest.mark.parametrize("value", ["Find: all", "Find: a: b", "Find #3", "@all", "- one", "it's #1", "|", "a: \\b"])
def test_the_advice_for_text_can_be_pasted_into_a_shell(value):
    advice = refusal(f"data.user_prompt={value}").split("and this as text: --set ")[1]
    done = subprocess.run(["sh", "-c", f"printf %s {advice}"], check=True, capture_output=True, text=True, timeout=60)
    assert resolved(done.stdout)["data"]["user_prompt"] == value


def test_all_arguments_of_a_wrong_form_are_named():
    lines = refusal("a", "training.seed=1", "=b").splitlines()
    assert lines[0] == "command line: --set has 2 problems"
    assert lines[1::5] == ["--set a", "--set =b"]


def test_a_long_argument_is_shown_in_part():
    text = "very long " * 100
    assert only(f"data.user_promp={text}")[0].endswith("very long v...")
    assert len(refusal(f"data.user_prompt=Find: {text}")) < 500


@given(st.text(max_size=40))
def test_any_value_is_read_or_refused(text):
    # No other exception: that would be a traceback for a user.
    try:
        root = read_overrides([f"a.b={text}"])
    except ConfigError as error:
        str(error).encode("utf-8")
    else:
        assert set(root.entries) == {"a"}


@example("a=\ufeff")
@example("a=1 \ufeff")
@given(st.text(alphabet="ab.=[]{}:,'\"#-&*!|> \t\n\\\ufeff\u2028", max_size=20))
def test_any_argument_is_read_or_refused(text):
    try:
        read_overrides([text])
    except ConfigError as error:
        str(error).encode("utf-8")


# -- the training command ------------------------------------------------------------------------------------------


def train(*arguments: str, rank: int) -> tuple[int, str]:
    command = [sys.executable, "ds_stage2ab/train.py", "--config", str(MINIMAL), *arguments]
    environment = {**os.environ, "RANK": str(rank)}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.stdout == ""
    return done.returncode, done.stderr


@pytest.mark.parametrize(("argument", "why"), [("training.sead=43", "is no key"), ("training.seed", "has no `=`")])
def test_the_training_command_refuses_once_however_many_ranks(argument, why):
    code, seen = train("--set", argument, rank=0)
    assert code == EXIT_CONFIG
    assert seen.startswith(f"error: --set {argument}: ")
    assert why in seen
    assert train("--set", argument, rank=1) == (EXIT_CONFIG, "")
