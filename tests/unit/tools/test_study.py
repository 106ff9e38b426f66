"""The study: which runs there are and in what order, what is never run twice, and what its page says.

No training here: the figures are written by hand where a run would have left them.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from ds_stage2ab.errors import ConfigError
from ds_stage2ab.metrics.journal import History, StepRecord
from ds_stage2ab.tools import study
from ds_stage2ab.tools.study_bench import Bench, Results, seconds_per_step
from ds_stage2ab.tools.study_rows import (
    F1,
    REPORT,
    SEALED,
    SELECTION,
    START,
    Result,
    Row,
    Run,
    all_runs,
    chosen_results,
    read_study,
    runs_of,
    steps_of,
)
from ds_stage2ab.tools.study_table import differences, rows_table, spread, write_page
from tests.architecture.sources import ROOT

ROWS = ROOT / "configs" / "study" / "rows.toml"
SHIPPED = read_study(ROWS)
A, MIXED, LONG = (next(row for row in SHIPPED.rows if row.name == name) for name in ("a", "mix-50", "a-seconds"))


def result(
    row: Row, *, rate: float = 1.0, seed: int = 42, selection: float = 0.5, report: float = 0.5, b: float = 3.0
) -> Result:
    """200 steps, of which A steps took 1 second and B steps `b`."""
    figures = {SELECTION: {F1: selection}, REPORT: {F1: report, "eval/ap_by_probability": 0.25}}
    b_ratio = 0.5 if row == MIXED else 0.0
    run = Run(row=row, rate=rate, seed=seed)
    return Result(run=run, steps=200, figures=figures, seconds={"A": 1.0, "B": b}, b_ratio=b_ratio)


def test_every_word_of_the_shipped_rows_is_a_valid_setting(monkeypatch):
    monkeypatch.chdir(ROOT)
    from ds_stage2ab.config.load import load_config
    from ds_stage2ab.config.overrides import read_overrides

    for domain in SHIPPED.domains:
        for part in (*SHIPPED.rows, *SHIPPED.starts, SHIPPED.plateau):
            assert load_config(domain.config, overrides=read_overrides(list(part.set)))
    assert all(any(word.startswith("stage2_ab.schedule.b_ratio=") for word in row.set) for row in SHIPPED.rows)


def test_every_run_has_a_folder_of_its_own():
    names = [run.name for run in all_runs(SHIPPED)]
    assert len(set(names)) == len(names) == 15 * 2 * 5
    assert names[0] == "a.rate-1.seed-42"


def test_the_first_seed_runs_every_rate_and_the_others_the_best_on_the_selection_half():
    assert [run.rate for run in runs_of(SHIPPED, A, 42, [])] == [1.0, 0.3]
    tried = [result(A, rate=1.0, selection=0.5, report=0.9), result(A, rate=0.3, selection=0.6, report=0.1)]
    assert [run.name for run in runs_of(SHIPPED, A, 43, tried)] == ["a.rate-0.3.seed-43"]
    assert chosen_results(SHIPPED, A, tried) == [tried[1]]


def test_as_many_seconds_are_counted_by_the_other_runs_own_steps():
    # 100 A steps of 1 s and 100 B steps of 3 s take 400 s, the time of 400 A steps
    assert steps_of(SHIPPED, LONG, 200, 42, [result(MIXED)]) == 400
    assert steps_of(SHIPPED, LONG, 200, 43, [result(MIXED)]) is None
    assert steps_of(SHIPPED, MIXED, 200, 43, []) == 200


def test_seconds_per_step_are_medians_by_channel():
    taken = [("A", 1.0), ("B", 9.0), ("A", 2.0), ("A", 30.0)]
    steps = tuple(
        StepRecord(step=place, channel=channel, applied=True, metrics={"time/step_s": s}, skipped=(), wall_time=0.0)
        for place, (channel, s) in enumerate(taken, start=1)
    )
    assert seconds_per_step(History(steps=steps, evaluations=())) == {"A": 2.0, "B": 9.0}


@pytest.fixture
def bench(tmp_path) -> Bench:
    """A place where nothing could be trained: there is no config."""
    domain = replace(SHIPPED.domains[0], config=tmp_path / "none.yaml", make=("ds_stage2ab.errors",))
    results = Results(tmp_path / "docs" / "digits.jsonl")
    return Bench(domain=domain, data=tmp_path / "data", root=tmp_path / "runs", results=results, learning_rate=8e-4)


def leave_result(bench: Bench, name: str, words: list[str], f1: float = 0.5) -> None:
    figures = {SELECTION: {F1: f1}, REPORT: {F1: f1}}
    bench.results.put(name, {"figures": figures, "seconds": {"A": 1.0}, "set": words})


def test_what_is_in_the_file_is_not_run_again(bench):
    leave_result(bench, "at-scored", ["x=y"], f1=0.25)
    assert bench.trained("at-scored", ["x=y"], parts=[])["figures"][SELECTION][F1] == 0.25
    with pytest.raises(ConfigError, match="other words: x=y, not x=z"):
        bench.trained("at-scored", ["x=z"], parts=[])
    leave_result(bench, "start", ["x=y"], f1=0.5)
    leave_result(bench, "at-scored", ["x=y"], f1=0.75)
    found = Results(bench.results.path)
    assert [found[name]["figures"][REPORT][F1] for name in found.known] == [0.75, 0.5]
    assert "plateau-1" not in found


def test_results_are_found_whichever_command_made_them(bench):
    run = Run(row=MIXED, rate=0.3, seed=44)
    words = study.words_of(bench, run, Path("start"), 200)
    assert "training.learning_rate=0.00024" in words  # 8e-4 x 0.3
    leave_result(bench, study.name_of(run, 200), words)
    (found,) = study.finished(SHIPPED, bench.results, 200)
    assert (found.run, found.steps, found.b_ratio) == (run, 200, 0.5)
    assert study.finished(SHIPPED, bench.results, 100) == []


def test_rows_start_in_front_of_the_round_that_gains_too_little(bench, capsys):
    leave_result(bench, "start", ["x=y"])
    reached = bench.root / "plateau-1" / "checkpoints" / "step-001000" / "hf"
    for number, path, f1 in ((1, bench.domain.start, 0.6), (2, reached, 0.604)):
        words = [f"model.path={path}", "training.max_steps=1000", f"training.seed={41 + number}"]
        leave_result(bench, f"plateau-{number}", [*words, "stage2_ab.schedule.b_ratio=0"], f1)
    leave_checkpoint(bench.root / "plateau-1", "step-001000")
    assert study.plateau(SHIPPED, bench) == reached
    assert "round 2 of Channel A: F1 0.6040, +0.0040" in capsys.readouterr().out
    leave_result(bench, "start", ["x=y"], 0.596)
    assert study.plateau(SHIPPED, bench) == bench.domain.start


def test_a_run_that_was_cut_off_goes_on_before_anything_starts_from_it(bench, monkeypatch):
    trained = []
    monkeypatch.setattr(Bench, "train", lambda self, name, words: trained.append((name, words)))
    leave_result(bench, "plateau-1", ["training.max_steps=1000"])
    leave_checkpoint(bench.root / "plateau-1", "step-000500")
    assert bench.checkpoint("plateau-1").parent.name == "step-001000"
    assert trained == [("plateau-1", ["training.max_steps=1000"])]


def leave_checkpoint(folder: Path, name: str) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "latest").write_text(f"{name}\n")


def test_held_out_scenes_are_halved(bench):
    bench.data.mkdir()
    (bench.data / "validation.jsonl").write_text("a\nb\nc\nd\ne\n")
    study.make_scenes(bench)
    halves = [bench.file(part).read_text() for part in (SELECTION, REPORT)]
    assert halves == ["a\nb\n", "c\nd\ne\n"]


def test_a_row_is_compared_with_a_alone_seed_by_seed():
    others = [result(A, seed=42, report=0.60), result(A, seed=43, report=0.50)]
    mixed = [result(MIXED, seed=42, report=0.63), result(MIXED, seed=44, report=0.70)]
    assert differences(mixed, others, REPORT) == [pytest.approx(0.03)]
    assert differences(others, others, REPORT) == []
    assert spread([0.5, 0.6, 0.55]) == "0.5500 (0.5000 to 0.6000)"
    assert spread([0.03], sign=True) == "+0.0300"


def test_the_table_takes_each_row_at_its_rate():
    results = [result(A, rate=1.0, selection=0.5, report=0.9), result(A, rate=0.3, selection=0.6, report=0.1)]
    lines = list(rows_table(SHIPPED, {"A's plateau": {"figures": {REPORT: {F1: 0.4}}}}, results, REPORT))
    assert len(lines) == 4
    assert lines[2].startswith("| A's plateau |  |  | 0.4000 |")
    assert lines[3].startswith("| `a` A alone | x 0.3 | 1 | 0.1000 |")


def test_the_page_and_its_picture_are_written(tmp_path, monkeypatch):
    drawn, plot = [], Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axes, *data, **line: [drawn.append(data), *plot(axes, *data, **line)][1:])
    rounds = [{"figures": {SELECTION: {F1: f1}}} for f1 in (0.6, 0.603)]
    results = [result(A), result(MIXED), result(MIXED, seed=43)]
    results.append(
        replace(result(MIXED, seed=44), figures={SELECTION: {F1: 0.5}, REPORT: {F1: 0.5}, SEALED: {F1: 0.125}})
    )
    write_page(
        tmp_path / "digits",
        SHIPPED,
        SHIPPED.domains[0],
        {START: {"figures": {SELECTION: {F1: 0.5}, REPORT: {F1: 0.5}}}},
        rounds,
        results,
        200,
    )
    (file,) = tmp_path.glob("*.md")
    page = file.read_text()
    assert "| the start | 0.5000 |  | - |\n| 1 | 0.6000 | +0.1000 | - |\n| 2 | 0.6030 | +0.0030 | - |" in page
    assert "`rewrite` | x 1 | 1 | 0.1250 |" in page.split("kept for the end")[1]
    assert "--domain digits --steps 200" in page and "`mix-50.rate-1.seed-43`" in page
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    assert drawn[0] == ([0, 1000, 2000], [0.5, 0.6, 0.603]), "the way to the plateau is that of the table"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps = 200\nseeds", "seeds", "steps"),
        ('seconds_of = "mix-50"', 'seconds_of = "mix-5"', "nothing here is called mix-5"),
        ('start = "scored"', 'start = "scores"', "nothing here is called scores"),
        ('label = "A alone"', 'label = "A alone"\nlable = "x"', "lable"),
        ("[plateau]", "more = 1\n[plateau]", "nothing here is called more"),
        ("[plateau]", "[plateau", "is no study"),
    ],
)
def test_a_mistake_in_the_rows_is_told(tmp_path, old, new, said):
    text = ROWS.read_text()
    assert old in text
    (tmp_path / "rows.toml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        read_study(tmp_path / "rows.toml")


def test_a_name_that_is_not_there_is_told(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert study.main(["--rows", "a,mix-51"]) == 2
    assert "there is no mix-51" in capsys.readouterr().err
    assert study.main(["--domain", "dogs"]) == 2
    assert "name one of digits, emoji" in capsys.readouterr().err
