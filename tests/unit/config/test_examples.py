"""Config files as examples: every shipped one is valid, every bad one gives exactly the problems on its first line.

The first line of a bad file: `# expect: part | part | ...`, one part per problem in reading order, each part a piece
of `line:column key: what is wrong; what to do`.
"""

from pathlib import Path

import pytest

from ds_stage2ab.config.load import check_config, load_config
from ds_stage2ab.config.problems import Problem
from ds_stage2ab.config.report import redacted
from ds_stage2ab.errors import ConfigError
from tests.unit.config.checked import check_file

ROOT = Path(__file__).resolve().parents[3]
VALID = sorted((ROOT / "tests" / "examples" / "valid").glob("*.yaml"))
INVALID = sorted((ROOT / "tests" / "examples" / "invalid").glob("*.yaml"))
SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
MARK = "# expect: "


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def relative(path: Path) -> Path:
    return path.relative_to(ROOT)


def in_one_line(problem: Problem) -> str:
    return f"{problem.where.line}:{problem.where.column} {problem.key}: {problem.why}; {problem.fix}"


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_a_bad_file_gives_exactly_the_problems_that_it_names(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(MARK)
    expected = first.removeprefix(MARK).split(" | ")
    seen = [in_one_line(problem) for problem in check_file(relative(path))]
    assert len(seen) == len(expected), seen
    for part, line in zip(expected, seen, strict=True):
        assert part in line


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_loading_a_bad_file_raises_one_error_with_every_problem(path):
    # Rules 1 to 3 are the plan's to apply when a config is loaded: it knows the learners and the servers.
    problems = check_config(relative(path)).problems
    if not problems:
        assert load_config(relative(path)).config
        return
    with pytest.raises(ConfigError) as raised:
        load_config(relative(path))
    message = str(raised.value)
    assert all(str(problem.where) in message and redacted(problem.why) in message for problem in problems)
    assert all(problem.fix in message for problem in problems)


@pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
def test_a_good_file_is_valid(path):
    assert check_file(relative(path)) == []


@pytest.mark.parametrize("path", SHIPPED, ids=str)
@pytest.mark.parametrize("learners", [1, 2])
def test_every_shipped_config_is_valid(path, learners):
    assert check_file(relative(path), learners) == []


@pytest.mark.parametrize("learners", [4, 8])
def test_the_template_for_own_data_is_valid_on_a_whole_machine(learners):
    assert check_file(Path("configs/own_data.yaml"), learners) == []


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_every_shipped_config_names_its_schema_and_says_what_it_is_for(path):
    schema, purpose = path.read_text(encoding="utf-8").splitlines()[:2]
    target = schema.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / target).resolve() == ROOT / "schemas" / "config.schema.json"
    assert purpose.startswith("# ")


def test_there_are_examples():
    assert len(INVALID) >= 80
    assert len(VALID) >= 6
    assert len(SHIPPED) >= 3
