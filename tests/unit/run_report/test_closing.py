"""The lines below the closing table."""

import json

from ds_stage2ab.engine.run_folder import RunFolder
from ds_stage2ab.metrics.journal import EvaluationRecord, History, StepRecord
from ds_stage2ab.run_report.closing import closing_lines, wall_seconds
from tests.unit.run_report.folders import run_folder


def step(number, wall_time, attempt):
    values = {"channel": "A", "applied": True, "metrics": {}, "skipped": ()}
    return StepRecord(step=number, wall_time=wall_time, attempt=attempt, **values)


def test_pauses_between_starts_are_no_wall_time():
    """10 s to 25 s, and 1,000 s to 1,007 s; a start that recorded nothing took none that is known."""
    evaluation = EvaluationRecord(step=2, metrics={}, wall_time=1_007.0, attempt=3)
    history = History(steps=(step(1, 20.0, 1), step(2, 25.0, 1)), evaluations=(evaluation,))
    starts = [{"attempt": number, "wall_time": begin} for number, begin in ((1, 10.0), (2, 500.0), (3, 1_000.0))]
    assert wall_seconds(history, starts) == 15 + 7
    assert wall_seconds(history, []) == 1_007 - 20
    assert wall_seconds(History(steps=(), evaluations=()), starts) == 0


def test_what_it_took_where_the_result_is_and_what_is_next(tmp_path):
    run = run_folder(tmp_path, "run")
    assert closing_lines(run) == ["wall time 0:01:40", f"next: ds-stage2ab report {run} --html"]
    RunFolder(run, locked=False).add_to_environment(peak_memory_gib=3.25)
    checkpoints = run / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "latest").write_text("step-000040\n")
    (checkpoints / "best").write_text("step-000020\n")
    assert closing_lines(run) == [
        "wall time 0:01:40, peak memory 3.25 GiB on the rank that took most",
        f"checkpoint: {checkpoints}/step-000040/hf (the best: step-000020)",
        f"next: ds-stage2ab report {run} --html",
    ]
    assert json.loads((run / "environment.json").read_text())["torch"] == "2.13.0"
