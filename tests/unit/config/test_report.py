"""Problems as text: the line, the caret under the place, nothing that is secret."""

import pickle

import pytest

from ds_stage2ab.config.problems import ArgumentPlace, Place, Problem
from ds_stage2ab.config.report import MAX_EXCERPT, as_block, as_error, excerpt, redacted

SOURCE = {"a.yaml": "# first\nx:\n  y: 2\n"}


def problem(line: int = 3, column: int = 6, path=("x", "y"), why: str = "must be 1, got 2") -> Problem:
    return Problem(path, why, "write 1", Place("a.yaml", line, column))


def caret_column(lines: list[str]) -> int:
    """The column of the caret within its line, from 0."""
    return lines[1].index("^")


def test_a_block_has_place_key_reason_line_and_remedy():
    assert as_block(problem(), SOURCE).splitlines() == [
        "a.yaml:3:6: x.y",
        "  must be 1, got 2",
        "    3 |   y: 2",
        "      |      ^",
        "  fix: write 1",
    ]


def test_a_problem_of_the_whole_file_names_no_key():
    assert as_block(problem(path=()), SOURCE).splitlines()[0] == "a.yaml:3:6"


@pytest.mark.parametrize("place", [Place("a.yaml", 5, 1), Place("a.yaml", 4, 1), Place("b.yaml", 1, 1)])
def test_where_there_is_no_line_none_is_shown(place):
    assert excerpt(place, SOURCE) == []


def test_the_caret_stands_under_its_character_behind_tabs_and_wide_ones():
    for line, column in (("\ty: 2", 5), ("\u6f22\u5b57: 2", 5), ("e\u0301: 2", 5), ("\x07: 2", 4)):
        lines = excerpt(Place("f", 1, column), {"f": line})
        assert lines[0][-1] == "2"
        wide = sum(c in "\u6f22\u5b57" for c in line) - line.count("\u0301")
        # Each wide character takes one column more than it has characters, a combining one one less.
        assert caret_column(lines) == len(lines[0]) - 1 + wide


@pytest.mark.parametrize("column", [1, 41, 500, 1000])
def test_a_long_line_is_cut_around_the_place(column):
    line = "".join(chr(ord("a") + i % 26) for i in range(1000))
    lines = excerpt(Place("f", 1, column), {"f": line})
    assert lines[0][caret_column(lines)] == line[column - 1]
    assert len(lines[0]) <= MAX_EXCERPT + len("    1 | ......")
    assert lines[0].endswith("...") == (column < 900)
    assert ("| ..." in lines[0]) == (column > 41)


def test_an_argument_is_its_own_line():
    lines = excerpt(ArgumentPlace("model.freeze=[vision, langage]", 1, 23), {})
    assert lines == ["--set | model.freeze=[vision, langage]", "      |                       ^"]


def test_a_carriage_return_is_no_part_of_the_line():
    assert excerpt(Place("f", 1, 1), {"f": "a: 1\r\n"})[0] == "    1 | a: 1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("base_url: http://me:hunter2@host:8000", "base_url: http://**********@host:8000"),
        ("hf_token: abc", "hf_token: ***"),
        ('"api_key": "abc"', '"api_key": "***"'),
        ("api_key_env: sk-4", "api_key_env: ****"),  # the key itself, where its variable belongs
        ("--set x.password=abc: x.password", "--set x.password=***: x.password"),
        ("wandb_secret = abc # mine", "wandb_secret = *** # mine"),
        ("max_new_tokens: 3072", "max_new_tokens: 3072"),
        ("key: x.y", "key: x.y"),
        ("http://127.0.0.1:8000/a@b", "http://127.0.0.1:8000/a@b"),
    ],
)
def test_secrets_are_replaced_by_as_many_asterisks(text, shown):
    assert redacted(text) == shown
    assert len(redacted(text)) == len(text)


def test_a_secret_is_in_no_part_of_a_message():
    source = {"a.yaml": "hf_token: hunter2\n"}
    found = Problem(("hf_token",), "must be text, got http://me:hunter2@host", "write text", Place("a.yaml", 1, 11))
    for text in (as_block(found, source), str(as_error([found], "a.yaml", source))):
        assert "hunter2" not in text
        assert "hf_token: *******" in text


def test_one_problem_makes_a_short_error_and_several_a_list():
    assert str(as_error([problem()], "a.yaml", SOURCE)).splitlines() == [
        "a.yaml:3:6: x.y: must be 1, got 2",
        "    3 |   y: 2",
        "      |      ^",
        "  fix: write 1",
    ]
    assert str(as_error([problem(), problem()], "a.yaml", SOURCE)).startswith("a.yaml: the config has 2 problems\n")


def test_the_error_survives_the_way_between_ranks():
    error = as_error([problem(1), problem(2)], "a.yaml", SOURCE)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
