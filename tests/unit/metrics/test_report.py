"""The opening words, the closing table and the report of a run folder."""

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console

from ds_stage2ab import cli
from ds_stage2ab.errors import ConfigError, EnvironmentFault
from ds_stage2ab.metrics.journal import EvaluationRecord, History, StepRecord, to_line
from ds_stage2ab.metrics.report import summary_rows, summary_table, write_report


def step(number, loss, channel="A", applied=True, skipped=()):
    metrics = {"loss/total": loss, "train/tokens_per_second": 100.0}
    return StepRecord(step=number, channel=channel, applied=applied, metrics=metrics, skipped=skipped, wall_time=0.0)


def evaluation(number, f1):
    return EvaluationRecord(step=number, metrics={"eval/f1": f1, "eval/seconds": 30.0}, wall_time=0.0)


def by_name(history):
    return {row.metric: row for row in summary_rows(history)}


def shown(rows):
    stream = io.StringIO()
    Console(file=stream, width=100).print(summary_table(rows, "run"))
    return stream.getvalue()


def test_the_first_and_the_last_evaluation_are_compared():
    rows = by_name(History(steps=(), evaluations=(evaluation(0, 0.5), evaluation(10, 0.9), evaluation(20, 0.75))))
    assert (rows["eval/f1"].before, rows["eval/f1"].after, rows["eval/f1"].difference) == (0.5, 0.75, 0.25)
    assert rows["eval/f1"].section == "evaluation, step 0 and 20"


def test_average_precision_stands_first():
    one = EvaluationRecord(step=0, metrics={"eval/f1": 0.5, "eval/ap_by_probability": 0.25}, wall_time=0.0)
    assert list(by_name(History(steps=(), evaluations=(one,)))) == ["eval/ap_by_probability", "eval/f1"]


def test_reasons_for_which_nothing_was_dropped_are_left_out():
    reasons = [{"eval/drop_missing_desc": share, "eval/drop_wrong_arity": 0.0} for share in (0.25, 0.0)]
    both = [replace(evaluation(n, 0.5), metrics={"eval/f1": 0.5} | reasons[n]) for n in (0, 1)]
    rows = by_name(History(steps=(step(1, 2.0),), evaluations=tuple(both)))
    assert rows["eval/drop_missing_desc"].difference == -0.25
    assert "eval/drop_wrong_arity" not in rows
    assert rows["last step reported"].after == 1


def test_a_single_evaluation_is_no_comparison():
    row = by_name(History(steps=(), evaluations=(evaluation(7, 0.5),)))["eval/f1"]
    assert (row.before, row.after, row.difference) == (None, 0.5, None)


def test_the_ends_of_the_training_are_means():
    # 12 steps: a quarter is 3. First three losses 12, 11, 10 (mean 11), last three 3, 2, 1 (mean 2).
    rows = by_name(History(steps=tuple(step(n, 13.0 - n) for n in range(1, 13)), evaluations=()))
    assert (rows["loss/total"].before, rows["loss/total"].after) == (11.0, 2.0)
    # 100 steps: ten at each end. Losses 100..91 (mean 95.5) and 10..1 (mean 5.5).
    rows = by_name(History(steps=tuple(step(n, 101.0 - n) for n in range(1, 101)), evaluations=()))
    assert (rows["loss/total"].before, rows["loss/total"].after) == (95.5, 5.5)


def test_channels_are_kept_apart_and_trouble_is_counted():
    steps = (
        step(1, 4.0),
        step(2, 8.0, "B"),
        step(3, math.nan, applied=False),
        step(4, 2.0, skipped=("a", "b")),
        step(5, 6.0, "B", skipped=("c",)),
    )
    rows = by_name(History(steps=steps, evaluations=()))
    assert (rows["loss/total (A)"].before, rows["loss/total (A)"].after) == (4.0, 2.0)
    assert (rows["loss/total (B)"].before, rows["loss/total (B)"].after) == (8.0, 6.0)
    assert rows["last step reported"].after == 5
    assert rows["steps not applied"].after == 1
    assert rows["samples skipped"].after == 3


def test_rows_of_b_appear_where_b_ran():
    b_rows = {
        "match/f1": (0.5, 0.75),
        "match/predicted_per_true": (1.5, 1.0),
        "rollout/truncation_rate": (0.25, 0.0),
        "rollout/tokens_per_second": (900.0, 1000.0),
        "time/rollout_s": (2.0, 1.5),
    }
    steps = [step(1, 4.0)]
    for end in (0, 1):
        b_step = step(2 + end, 8.0, "B")
        steps.append(replace(b_step, metrics=b_step.metrics | {name: ends[end] for name, ends in b_rows.items()}))
    rows = by_name(History(steps=tuple(steps), evaluations=()))
    # No other channel has them, so their names need no brackets.
    assert {name: (rows[name].before, rows[name].after) for name in b_rows} == b_rows
    assert {"loss/total (A)", "loss/total (B)"} <= rows.keys()
    alone = by_name(History(steps=tuple(steps[:1]), evaluations=()))
    assert alone.keys().isdisjoint(b_rows)
    assert "loss/total" in alone


def test_the_table_shows_every_row():
    text = shown(summary_rows(History(steps=(step(1, 3.0), step(2, 2.0)), evaluations=(evaluation(0, 0.5),))))
    for line in (
        "metric                          | before | after | difference",
        "eval/f1                       |        | 0.5000 |",
        "loss/total                    | 3 | 2 | -1",
    ):
        words = [word.strip() for word in line.split("|")]
        assert any(all(word in row for word in words) for row in text.splitlines()), line


def test_a_better_value_is_green_and_a_worse_one_red():
    def difference(before, after, name="eval/f1"):
        evaluations = tuple(
            EvaluationRecord(step=index, metrics={name: value}, wall_time=0.0)
            for index, value in ((0, before), (9, after))
        )
        table = summary_table(summary_rows(History(steps=(), evaluations=evaluations)), "run")
        return list(table.columns[3].cells)[-1]

    assert (str(difference(0.5, 0.75)), difference(0.5, 0.75).style) == ("+0.2500", "green")
    assert (str(difference(0.5, 0.25)), difference(0.5, 0.25).style) == ("-0.2500", "red")
    assert difference(0.5, 0.25, "eval/truncation_rate").style == "green"
    assert difference(0.5, 0.25, "eval/predicted_per_true").style == ""
    assert difference(0.5, 0.5).style == ""


def test_a_report_of_a_run_folder_can_be_made_again(tmp_path):
    run = tmp_path / "ab_mixed"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(map(to_line, [evaluation(0, 0.5), step(1, 3.0), evaluation(1, 0.6)])))
    for _ in range(2):
        report = write_report(run)
        assert report.run == "ab_mixed"
        assert report.curves == run / "curves.png"
        assert report.curves.stat().st_size > 10_000
        assert report.rows[0].metric == "eval/f1"
    assert sorted(path.name for path in run.iterdir()) == ["curves.png", "metrics.jsonl"]


def test_curves_that_cannot_be_written_are_a_message(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(to_line(step(1, 3.0)))
    (tmp_path / "curves.png").mkdir()
    with pytest.raises(EnvironmentFault, match="the curves cannot be written: Is a directory") as caught:
        write_report(tmp_path)
    assert caught.value.fix.endswith(f"ds-stage2ab report {tmp_path}")


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no metrics.jsonl in it"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match="nothing is recorded yet"):
        write_report(tmp_path)
    assert not (tmp_path / "curves.png").exists()


def test_the_command_draws_and_prints_the_table(tmp_path, capsys):
    """As its help says."""
    run = tmp_path / "run [1]"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(map(to_line, (evaluation(0, 0.5), evaluation(4, 0.75)))))
    assert cli.main(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("run [1] ")
    assert any("eval/f1" in line and "+0.2500" in line for line in said.splitlines())
    assert said.endswith(f"{run / 'curves.png'}: drawn\n") and (run / "curves.png").is_file()
