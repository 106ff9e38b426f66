import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_stage2ab.config.nodes import MAX_DEPTH, MAX_NODES, Unreadable, parse_yaml, plain_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-1.5e+3", -1500.0),
        (".5", 0.5),
        ("2.", 2.0),
        ("010", 10),
        ("+7", 7),
        ("0x1f", 31),
        ("0o17", 15),
        ("true", True),
        ("FALSE", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("yes", "yes"),
        ("on", "on"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("1e", "1e"),
        (".", "."),
        ("-.inf", -math.inf),
    ],
)
def test_plain_scalars_follow_the_core_schema_of_yaml_1_2(text, value):
    found = plain_value(text)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_read_as_such():
    assert math.isnan(plain_value(".nan"))


def test_a_number_of_any_length_is_read_without_an_exception():
    assert plain_value("9" * 300) == int("9" * 300)
    assert plain_value("9" * 5000) == math.inf  # Python refuses to convert so many digits; the schema refuses infinity


@given(st.integers(-(10**12), 10**12))
def test_integers_come_back(number):
    assert plain_value(str(number)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back(number):
    assert plain_value(repr(number)) == number


def test_places_count_from_one_and_quotes_are_kept_in_the_text():
    root, problems = parse_yaml('a:\n  b: "x"\n  c: [1, two]\n', "f.yaml")
    assert problems == []
    inner = root.entries["a"].value.entries
    assert str(inner["b"].key_place) == "f.yaml:2:3"
    assert str(inner["b"].value.place) == "f.yaml:2:6"
    assert inner["b"].value.text == '"x"'
    assert str(inner["c"].value.items[1].place) == "f.yaml:3:10"
    assert inner["c"].value.items[1].scalar == "two"


def test_an_empty_value_has_the_place_of_its_key():
    root, _ = parse_yaml("a:\nb: 1\n", "f.yaml")
    assert str(root.entries["a"].value.place) == "f.yaml:1:1"
    assert root.entries["a"].value.scalar is None


def test_quoted_scalars_are_text():
    root, _ = parse_yaml("a: '1'\nb: \"true\"\nc: ''\n", "f.yaml")
    assert [entry.value.scalar for entry in root.entries.values()] == ["1", "true", ""]


def test_an_alias_brings_the_anchored_node():
    root, _ = parse_yaml("a: &x {k: 1}\nb: *x\n", "f.yaml")
    assert root.entries["b"].value is root.entries["a"].value


def test_a_duplicate_key_is_a_problem_and_the_first_value_stands():
    root, problems = parse_yaml("a:\n  k: 1\n  k: 2\n", "f.yaml")
    assert root.entries["a"].value.entries["k"].value.scalar == 1
    assert [(p.key, str(p.where)) for p in problems] == [("a.k", "f.yaml:3:3")]


def test_sizes_count_what_aliases_stand_for():
    # list of 3 scalars: 4 nodes; the mapping holds it twice: 1 + 4 + 4 = 9
    root, _ = parse_yaml("a: &x [1, 2, 3]\nb: *x\n", "f.yaml")
    assert root.size == 9


def refusal(text: str) -> str:
    with pytest.raises(Unreadable) as raised:
        parse_yaml(text, "f.yaml")
    problem = raised.value.problem
    assert problem.fix
    return f"{problem.where.line}:{problem.where.column} {problem.why}"


def test_an_alias_bomb_is_refused_before_it_is_written_out():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 30)]
    assert f"holds more than {MAX_NODES} values" in refusal("\n".join(lines))


def test_an_alias_chain_may_not_nest_deeper_than_the_limit():
    deep = "[" * 40 + "]" * 40
    assert "nested more than" in refusal(f"a: &a {deep}\nb: {'[' * 40}*a{']' * 40}\n")


def test_deep_nesting_is_refused():
    # The root mapping is one level, so the 64th bracket is the 65th level: column 3 + 64
    assert refusal("a: " + "[" * 10_000) == f"1:67 values are nested more than {MAX_DEPTH} deep"


def test_nesting_at_the_limit_is_read():
    parse_yaml("a: " + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "f.yaml")


def test_a_list_as_a_key_is_refused():
    assert refusal("? [a, b]\n: 1\n") == "1:3 a key must be a single word, not a list or mapping"


def test_an_alias_as_a_key_is_refused():
    assert refusal("a: &x k\n*x : 1\n") == "2:1 a key must be a single word, not an alias"


def test_an_anchor_inside_itself_is_refused():
    assert "no anchor &x ends before this alias" in refusal("a: &x [*x]\n")


def test_a_control_character_is_named():
    assert refusal("a: 1\nb: \x07\n") == "2:4 holds the control character U+0007, which YAML does not allow"


@pytest.mark.parametrize(("escape", "name"), [(r"\0", "U+0000"), (r"\ud800", "U+D800"), (r"\ud83d\ude00", "U+D83D")])
@pytest.mark.parametrize(("line", "column"), [('a: {root: "a%s"}\n', 11), ('extends: "a%s"\n', 10), ('"a%s": 1\n', 1)])
def test_an_escape_of_no_character_is_named(line, column, escape, name):
    """In a path it was a traceback: no file's name may hold it."""
    assert refusal(line % escape) == f"1:{column} holds {name}, which is no character of a text"


def test_a_byte_order_mark_is_refused():
    assert refusal("\ufeffa: 1\n") == "1:1 begins with a byte order mark (U+FEFF)"
    assert refusal("a: 1\nb: \ufeff2\n") == "2:4 holds a byte order mark (U+FEFF)"


def test_an_explicit_tag_is_refused():
    assert refusal("a: !!int 3\n") == "1:4 the tag !!int is not allowed"


def test_an_empty_text_has_an_empty_root():
    root, problems = parse_yaml("# nothing\n", "f.yaml")
    assert (root.text, root.entries, problems) == ("nothing", None, [])


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text):
    # No other exception: that would be a traceback for a user.
    with contextlib.suppress(Unreadable):
        parse_yaml(text, "f.yaml")
