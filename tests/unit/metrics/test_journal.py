"""metrics.jsonl: what is written is read back exactly."""

import json
import math
import random
import struct

import pytest

from ds_stage2ab.errors import DataError
from ds_stage2ab.metrics.journal import EvaluationRecord, StepRecord, from_line, read_history, to_line


def step(number, loss=1.0, **changes):
    fields = {"channel": "A", "applied": True, "metrics": {"loss/total": loss}, "skipped": (), "wall_time": 5.5}
    return StepRecord(step=number, **(fields | changes))


def evaluation(number, f1=0.5):
    return EvaluationRecord(step=number, metrics={"eval/f1": f1}, wall_time=6.5)


def test_the_line_of_a_step():
    line = to_line(step(1, 3.25, applied=False, skipped=("a.jsonl:7",)))
    assert line == (
        '{"step": 1, "channel": "A", "applied": 0, "metrics": {"loss/total": 3.25}, '
        '"skipped": ["a.jsonl:7"], "wall_time": 5.5, "attempt": 1}\n'
    )


def test_the_line_of_an_evaluation():
    assert to_line(evaluation(0)) == (
        '{"step": 0, "channel": "eval", "metrics": {"eval/f1": 0.5}, "wall_time": 6.5, "attempt": 1}\n'
    )


def test_any_finite_float_round_trips_bit_for_bit():
    random.seed(0)
    for _ in range(2000):
        value = struct.unpack("<d", random.randbytes(8))[0]
        if math.isfinite(value):
            read = from_line(to_line(step(1, value))).metrics["loss/total"]
            assert struct.pack("<d", read) == struct.pack("<d", value)


@pytest.mark.parametrize(("value", "text"), [(math.inf, "Infinity"), (-math.inf, "-Infinity"), (math.nan, "NaN")])
def test_non_finite_values_are_strings_of_valid_json(value, text):
    line = to_line(step(1, value))
    assert json.loads(line)["metrics"]["loss/total"] == text
    read = from_line(line).metrics["loss/total"]
    assert read == value or (math.isnan(read) and math.isnan(value))


def test_integers_stay_integers():
    assert '"train/samples": 32,' in to_line(step(1, metrics={"train/samples": 32, "loss/total": 1.0}))


def test_history_keeps_steps_and_evaluations_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    entries = [evaluation(0), step(1), step(2), evaluation(2), step(3)]
    path.write_text("".join(map(to_line, entries)))
    history = read_history(path)
    assert history.steps == (step(1), step(2), step(3))
    assert history.evaluations == (evaluation(0), evaluation(2))


def test_a_resumed_run_replaces_what_it_does_again(tmp_path):
    # Reached step 3, resumed from the checkpoint of step 1, evaluated again, ended at step 2.
    path = tmp_path / "metrics.jsonl"
    first = [step(1), evaluation(1, 0.1), step(2, 2.0), evaluation(2, 0.2), step(3, 3.0)]
    again = [evaluation(1, 0.3), step(2, 4.0), evaluation(2, 0.4)]
    path.write_text("".join(map(to_line, first + again)))
    history = read_history(path)
    assert history.steps == (step(1), step(2, 4.0))
    assert history.evaluations == (evaluation(1, 0.3), evaluation(2, 0.4))


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(to_line(step(1)) + to_line(step(2))[:-10])
    assert read_history(path).steps == (step(1),)


FOREIGN = [
    *("no json", "[]", '{"step": 1}', '{"step": "x", "wall_time": 1}', "7", "[" * 100_000),
    *('{"step": Infinity, "wall_time": 1}', '{"step": 1, "wall_time": 1' + "0" * 400 + "}"),
    "\udcff",  # a byte that is no UTF-8
]


@pytest.mark.parametrize("line", FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(to_line(step(1)) + line + "\n", errors="surrogateescape")
    with pytest.raises(DataError) as caught:
        read_history(path)
    assert caught.value.where == f"{path}:2"


def test_a_journal_that_cannot_be_read_is_told(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to("/proc/self/mem")  # a file whose first byte is an error of the system
    with pytest.raises(DataError, match="cannot be read: Input/output error"):
        read_history(tmp_path / "metrics.jsonl")
