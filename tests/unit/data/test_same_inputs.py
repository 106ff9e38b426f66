"""What differs between ranks: found by all of them, and told once."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from ds_stage2ab.data import same_inputs
from ds_stage2ab.data.same_inputs import assert_same_records
from ds_stage2ab.errors import ConfigError, Stage2Error

LONGEST_S = 30


class Thread:
    """A rank of a world of threads."""

    def __init__(self, rank, box, barrier):
        self.rank, self.size, self.box, self.barrier = rank, len(box), box, barrier

    def gather(self, value):
        self.box[self.rank] = value
        self.barrier.wait(LONGEST_S)
        everybody = list(self.box)
        self.barrier.wait(LONGEST_S)
        return everybody


def on_ranks(function, inputs):
    """What `function(input, world)` raises on each rank: its text, which must be everybody's; None: nothing."""
    box, barrier = [None] * len(inputs), Barrier(len(inputs))

    def of(rank):
        try:
            function(inputs[rank], Thread(rank, box, barrier))
        except Stage2Error as error:
            return type(error), str(error)
        return None

    with ThreadPoolExecutor(len(inputs)) as pool:
        (told,) = set(pool.map(of, range(len(inputs))))
    return told


@pytest.fixture
def told_of_records(tmp_path):
    """What ranks say of files with these bytes; their path is that of rank 0 on all of them, as in a run."""

    def told(*contents):
        paths = [tmp_path / str(rank) for rank in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        seen = on_ranks(lambda path, world: assert_same_records([NamedAlike(path)], world), paths)
        return seen and seen[1]

    return told


class NamedAlike:
    """A path with another copy behind it on each rank."""

    def __init__(self, path):
        self.read_bytes = path.read_bytes

    def __str__(self):
        return "t.jsonl"


LINES = [f"line {number}".encode() for number in range(40)]


@pytest.mark.parametrize("place", [0, 1, 19, 38, 39])
def test_the_first_line_that_differs_is_found(told_of_records, place):
    other = [*LINES[:place], b"another", *LINES[place + 1 : 39], b"the last too"][:40]
    told = told_of_records(b"\n".join(LINES), b"\n".join(LINES), b"\n".join(other))
    assert told.startswith(f"t.jsonl:{place + 1}: the ranks have different records: line {place + 1} is 'line {place}'")
    assert f"'line {place}' on rank 0 and 1 more, " in told and "on rank 2" in told


def test_equal_files_are_no_fault(told_of_records):
    assert told_of_records(b"a\nb", b"a\nb") is None


def test_a_file_that_goes_on(told_of_records):
    assert "line 3 is not there on rank 0, 'c' on rank 1" in told_of_records(b"a\nb", b"a\nb\nc")


def test_what_to_do_is_said(told_of_records):
    assert "fix: keep the file on a path that all machines share" in told_of_records(b"a", b"b")


def test_other_ends_of_lines_show(told_of_records):
    assert r"line 1 is 'a' on rank 0, 'a\r' on rank 1" in told_of_records(b"a\nb\n", b"a\r\nb\r\n")
    assert "line 2 is not there on rank 0, '' on rank 1" in told_of_records(b"a", b"a\n")


def test_a_long_line_is_cut_to_where_it_differs(told_of_records):
    told = told_of_records(b"x" * 500 + b"one" + b"y" * 500, b"x" * 500 + b"two" + b"y" * 500)
    assert "xone" in told and "xtwo" in told and len(told) < 500


def compared(*facts):
    return on_ranks(lambda own, world: same_inputs._compare(own, world, ConfigError, "configs", "copy it"), facts)


def test_keys_are_named_with_the_value_of_each_rank():
    kind, told = compared({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, {"a": "1", "b": "2"}, {"a": "1"})
    assert kind is ConfigError
    assert told.startswith("b: the ranks have different configs: b is 2 on rank 0 and 1 more, 3 on rank 1, not there")
    assert told.endswith("not there on rank 3\n  fix: copy it")


def test_many_keys_are_counted():
    _, told = compared({str(key): "1" for key in range(9)}, {str(key): "2" for key in range(9)})
    assert told.count(" is 1 on rank 0, 2 on rank 1") == 4 and "; and 5 more differ" in told


def test_ranks_of_two_machines_are_told_apart(monkeypatch):
    names = iter(["node-a", "node-a", "node-b"])
    monkeypatch.setattr(same_inputs.socket, "gethostname", lambda: next(names))
    _, told = compared({"a": "1"}, {"a": "1"}, {"a": "1", "b": "2"})
    assert "of node-" in told


def test_a_file_that_cannot_be_read_is_no_traceback(tmp_path):
    (tmp_path / "folder.json").mkdir()
    assert same_inputs._checkpoint(tmp_path) == {"folder.json": "not readable (Is a directory)"}
    for name in ("none", "x" * 300):
        assert same_inputs._checkpoint(tmp_path / name) == {}


def test_recordings_of_other_lengths_differ(tmp_path):
    for run, length in (("a", 3), ("b", 4)):
        (tmp_path / run / "rollouts").mkdir(parents=True)
        (tmp_path / run / "rollouts" / "rank-00000.jsonl").write_text("x" * length)
        (tmp_path / run / "metrics.jsonl").write_text(run)
    a, b = (same_inputs._recording(tmp_path / run) for run in ("a", "b"))
    assert a == {"rollouts/rank-00000.jsonl": "3 bytes"} and b == {"rollouts/rank-00000.jsonl": "4 bytes"}
    assert same_inputs._recording(tmp_path / "b" / "rollouts") == {"rank-00000.jsonl": "4 bytes"}
    assert same_inputs._recording(tmp_path / "nowhere") == {}


def test_every_module_of_the_package_is_compared():
    code = same_inputs._code()
    assert {"ds_stage2ab/engine/window.py", "ds_stage2ab/data/same_inputs.py", "torch", "deepspeed"} <= code.keys()
