import os

import pytest

from ds_stage2ab.config.document import MAX_BYTES, read_document
from ds_stage2ab.config.problems import UnreadableFile


def write(folder, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def test_bases_merge_left_to_right_and_the_file_wins(tmp_path):
    write(
        tmp_path,
        left="a: {x: 1, y: 1, z: 1}\nlist: [1, 2]\n",
        right="a: {y: 2, z: 2}\n",
        child="extends: [left.yaml, right.yaml]\na: {z: 3}\nlist: [9]\n",
    )
    document = read_document(tmp_path / "child.yaml")
    assert document.values == {"a": {"x": 1, "y": 2, "z": 3}, "list": [9]}
    assert document.complete
    assert document.problems == ()


def test_each_value_keeps_the_place_where_it_was_written(tmp_path):
    write(tmp_path, base="a:\n  x: 1\n  y: 1\n", child="extends: base.yaml\na:\n  y: 2\n")
    document = read_document(tmp_path / "child.yaml")
    assert str(document.place_of_value(("a", "x"))) == f"{tmp_path}/base.yaml:2:6"
    assert str(document.place_of_value(("a", "y"))) == f"{tmp_path}/child.yaml:3:6"
    assert str(document.place_of_key(("a",))) == f"{tmp_path}/child.yaml:2:1"


def test_a_key_that_was_not_written_has_the_place_of_the_section_above(tmp_path):
    write(tmp_path, child="a:\n  x: 1\n")
    document = read_document(tmp_path / "child.yaml")
    assert document.place_of_key(("a", "y")).line == 1
    assert document.place_of_key(("b", "c")).line == 1


def test_extends_is_relative_to_the_file_that_names_it(tmp_path):
    (tmp_path / "deep").mkdir()
    write(tmp_path, root="a: 1\n")
    write(tmp_path / "deep", middle="extends: ../root.yaml\nb: 2\n")
    write(tmp_path, child="extends: deep/middle.yaml\nc: 3\n")
    assert read_document(tmp_path / "child.yaml").values == {"a": 1, "b": 2, "c": 3}


def test_extends_may_be_absolute(tmp_path):
    write(tmp_path, base="a: 1\n", child=f"extends: {tmp_path}/base.yaml\n")
    assert read_document(tmp_path / "child.yaml").values == {"a": 1}


def test_a_diamond_is_no_cycle_and_its_problems_come_once(tmp_path):
    write(
        tmp_path,
        root="k: 1\nk: 2\n",
        left="extends: root.yaml\n",
        right="extends: root.yaml\n",
        child="extends: [left.yaml, right.yaml]\n",
    )
    document = read_document(tmp_path / "child.yaml")
    assert document.complete
    assert [problem.key for problem in document.problems] == ["k"]


def test_a_cycle_through_a_link_is_seen(tmp_path):
    write(tmp_path, one="extends: alias.yaml\n")
    os.symlink(tmp_path / "one.yaml", tmp_path / "alias.yaml")
    document = read_document(tmp_path / "one.yaml")
    assert not document.complete
    assert "leads back to a file that is being read" in document.problems[0].why


def test_a_scalar_replaces_a_mapping_and_the_other_way_round(tmp_path):
    write(tmp_path, base="a: {x: 1}\nb: 1\n", child="extends: base.yaml\na: 2\nb: {y: 3}\n")
    assert read_document(tmp_path / "child.yaml").values == {"a": 2, "b": {"y": 3}}


def test_a_problem_in_a_base_has_the_place_in_the_base(tmp_path):
    write(tmp_path, base="a: [\n", child="extends: base.yaml\n")
    document = read_document(tmp_path / "child.yaml")
    assert not document.complete
    assert document.problems[0].where.file == f"{tmp_path}/base.yaml"


def test_every_base_that_cannot_be_read_is_named(tmp_path):
    write(tmp_path, child="extends: [one.yaml, two.yaml]\n")
    document = read_document(tmp_path / "child.yaml")
    assert ["one.yaml" in p.why or "two.yaml" in p.why for p in document.problems] == [True, True]
    assert [p.where.column for p in document.problems] == [11, 21]


def unreadable(path) -> str:
    with pytest.raises(UnreadableFile) as raised:
        read_document(path)
    assert raised.value.fix
    assert raised.value.where == str(path)
    return raised.value.why


def test_a_missing_file_a_folder_and_a_pipe_cannot_be_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert unreadable(tmp_path / "nowhere.yaml") == "does not exist"
    assert unreadable(tmp_path) == "is a folder"
    assert unreadable(tmp_path / "pipe.yaml") == "is no file"


def test_a_large_file_is_refused_without_being_parsed(tmp_path):
    (tmp_path / "large.yaml").write_bytes(b"a: 1\n" * MAX_BYTES)
    document = read_document(tmp_path / "large.yaml")
    assert not document.complete
    assert [problem.why for problem in document.problems] == [f"is larger than {MAX_BYTES} bytes"]


def test_a_large_base_is_a_problem_of_the_file_that_names_it(tmp_path):
    write(tmp_path, child="extends: large.yaml\n")
    (tmp_path / "large.yaml").write_bytes(b"a: 1\n" * MAX_BYTES)
    (problem,) = read_document(tmp_path / "child.yaml").problems
    assert (problem.key, problem.where.line) == ("extends", 1)
    assert "large.yaml is larger than" in problem.why


def test_a_file_that_is_not_utf_8_names_the_byte(tmp_path):
    (tmp_path / "latin.yaml").write_bytes(b"a: caf\xe9\n")
    assert unreadable(tmp_path / "latin.yaml") == "is not UTF-8: byte 0xe9 at offset 6"


def test_an_empty_file_is_a_problem(tmp_path):
    write(tmp_path, child="")
    document = read_document(tmp_path / "child.yaml")
    assert not document.complete
    assert [problem.why for problem in document.problems] == ["is empty"]
