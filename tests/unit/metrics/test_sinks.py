"""Sinks: the journal on disk, TensorBoard events, the lines of a console."""

import io
import re
import resource

import pytest

from ds_stage2ab.errors import EnvironmentFault
from ds_stage2ab.metrics.journal import EvaluationRecord, StepRecord, read_history
from ds_stage2ab.metrics.sinks import (
    ConsoleSink,
    JsonlSink,
    Pace,
    WarningsSink,
    duration,
    evaluation_line,
    number,
    step_line,
    trouble_line,
)

VALUES = {
    "loss/total": 3.45123,
    "train/learning_rate": 1e-4,
    "train/tokens_per_second": 812.4,
    "time/step_s": 2.0,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def step(number_of_step, **changes):
    fields = {"channel": "A", "applied": True, "metrics": VALUES, "skipped": (), "wall_time": 2.0 * number_of_step}
    return StepRecord(step=number_of_step, **(fields | changes))


def evaluation(number_of_step, f1=0.5):
    return EvaluationRecord(
        step=number_of_step, metrics={"eval/f1": f1, "eval/seconds": 31.25, "eval/samples": 300}, wall_time=1.0
    )


def test_the_journal_is_readable_after_every_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    sink = JsonlSink(path)
    sink.evaluation(evaluation(0))
    sink.step(step(1))
    assert read_history(path).steps == (step(1),)
    sink.step(step(2))
    assert len(read_history(path).steps) == 2
    sink.close()


def test_the_journal_is_appended_to_and_a_torn_line_is_cut(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonlSink(path)
    first.step(step(1))
    first.close()
    with path.open("a") as file:
        file.write('{"step": 2, "chan')
    second = JsonlSink(path)
    second.step(step(2))
    second.close()
    assert read_history(path).steps == (step(1), step(2))
    assert path.read_text().count("\n") == 2


def test_a_journal_that_cannot_be_written_is_an_environment_fault(tmp_path):
    # A limit of 10 bytes per file: the kernel takes 10, then refuses, as a full disk does.
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
    try:
        with pytest.raises(EnvironmentFault, match="the metrics of step 1 cannot be written: File too large"):
            sink.step(step(1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sink.close()
    assert read_history(tmp_path / "metrics.jsonl").steps == ()


def test_a_plain_stream_gets_one_line_per_record():
    stream = io.StringIO()
    sink = ConsoleSink(stream, total_steps=300)
    sink.evaluation(evaluation(0))
    sink.step(step(12))
    sink.close()
    assert stream.getvalue() == (
        "step   0/300  eval  f1 0.5  seconds 31.25\n"
        # (300 - 12) steps of 2 s = 576 s
        "step  12/300  A  loss 3.451  lr 0.0001  812.4 tokens/s  eta 0:09:36\n"
    )


def test_trouble_is_told_in_words():
    assert trouble_line(step(4)) == ""
    assert trouble_line(step(4, applied=False)) == "step 4: not applied, no weight changed"
    skipped = step(5, skipped=("a", "b", "c", "d"))
    assert trouble_line(skipped) == "step 5: 4 samples skipped (a, b, c and 1 more)"
    stream = io.StringIO()
    ConsoleSink(stream, total_steps=9).step(skipped)
    assert stream.getvalue().endswith("step 5: 4 samples skipped (a, b, c and 1 more)\n")


def test_a_terminal_gets_a_bar_with_everything_that_is_asked_of_it(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream = Terminal()
    sink = ConsoleSink(stream, total_steps=300)
    sink.step(step(12))
    sink.evaluation(evaluation(12))
    sink.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    for part in ("12/300", "A", "loss 3.451", "812.4 tokens/s", "eta 0:09:36", "eval  f1 0.5"):
        assert part in text


def test_pace_is_measured_over_the_last_records_only():
    # 30 steps of 1 s, then 20 records of 3 s: the window holds only the slow ones, 19 intervals of 3 s.
    pace = Pace()
    clock = 0.0
    for index in range(1, 51):
        clock += 1.0 if index <= 30 else 3.0
        eta = pace.eta_seconds(step(index, wall_time=clock), total_steps=100)
    assert eta == pytest.approx(50 * 3.0)


def test_a_b_step_says_how_well_it_matched():
    plain = step_line(step(12), 300, 60.0)
    assert plain.endswith("eta 0:01:00")
    matched = step_line(step(12, channel="B", metrics=VALUES | {"match/f1": 0.829268}), 300, 60.0)
    assert matched == plain.replace("  A  ", "  B  ") + "  match f1 0.8293"
    assert len(matched) < 90


def test_lines_align_with_the_total():
    assert step_line(step(7), 1000, 0.0).startswith("step    7/1000  A  ")
    assert evaluation_line(evaluation(1000), 1000).startswith("step 1000/1000  eval  f1 0.5  ")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.123456, "0.1235"), (12345.6, "12,346"), (32, "32"), (1234567, "1,234,567"), (float("nan"), "nan"), (2.0, "2")],
)
def test_numbers_for_people(value, text):
    assert number(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00:00"), (59.6, "0:01:00"), (3725, "1:02:05"), (-3, "0:00:00")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_warnings_outlive_the_terminal(tmp_path):
    path = tmp_path / "warnings.log"
    WarningsSink(path)
    assert not path.exists()
    sink = WarningsSink(path, ["of the start"])
    sink.step(step(3))
    sink.step(step(4, skipped=("a",)))
    sink.evaluation(evaluation(4))
    sink.warning("two\nlines\x1b[2J")
    lines = [re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d (.*)", line)[1] for line in path.read_text().splitlines()]
    assert lines == ["of the start", "step 4: 1 samples skipped (a)", r"two\nlines\x1b[2J"]
    with pytest.raises(EnvironmentFault, match="a warning cannot be written: Is a directory"):
        WarningsSink(tmp_path, ["here"])
