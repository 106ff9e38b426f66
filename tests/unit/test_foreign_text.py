"""Text that is not ours (names of objects and samples, paths, what servers say) is shown as text, everywhere."""

import ast
import io
import subprocess
from dataclasses import replace

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image, ImageDraw
from rich.console import Console

from ds_stage2ab.carriers import Truth
from ds_stage2ab.errors import DataError, printable
from ds_stage2ab.evaluation.command import as_tables
from ds_stage2ab.evaluation.evaluator import DescriptionRow, Evaluation
from ds_stage2ab.evaluation.pictures import Picture, save_pictures
from ds_stage2ab.launch.processes import ManagedProcess
from ds_stage2ab.metrics.curves import draw_curves
from ds_stage2ab.metrics.journal import EvaluationRecord, History, StepRecord
from ds_stage2ab.metrics.report import summary_rows, summary_table
from ds_stage2ab.metrics.sinks import ConsoleSink
from ds_stage2ab.preflight.opening import banner
from tests.architecture.sources import package_files, parse, relative

SEEDS = tuple(f"ds_stage2ab/{name}.py" for name in ("rollout/base", "data/stream", "data/asked", "channels/noise"))
"""They make digests of ids, not messages."""
BARE = ("sample.id", "record.id", "one.sample_id", "rollout.sample_id", "found.sample_id")
FORGED = "a\x1b[2J\nerror: b"
SHOWN = r"a\x1b[2J\nerror: b"
ROW = DescriptionRow(
    description="cat", true=1, predicted=1, matched=1, precision=1.0, recall=1.0, f1=1.0, matched_iou=0.5, ap=None
)
STEP = StepRecord(step=1, channel="A", applied=True, metrics={"loss/total": 1.0}, skipped=(), wall_time=0.0)
EVALUATION = EvaluationRecord(step=0, metrics={"eval/f1": 0.5}, wall_time=0.0)
HISTORY = History(steps=(), evaluations=(EVALUATION,))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("black cat", "black cat"),
        ("\u0447\u0451\u0440\u043d\u044b\u0439 [x] \u4e2d\u6587",) * 2,
        (FORGED, SHOWN),
        ("\u202egnp.txt", "\\u202egnp.txt"),  # turned round: would be read as txt.png
        ("a\u2028b\x85c\ud800", "a\\u2028b\\x85c\\ud800"),  # other line ends; half a character
        ("\u0645\u06cc\u200c\u062e\u0648 \U0001f469\u200d\U0001f680",) * 2,  # joiners belong to the words
        (SHOWN, SHOWN),
    ],
)
def test_what_is_unseen_or_controls_a_terminal_is_escaped(text, shown):
    assert printable(text) == shown


def test_a_message_keeps_its_own_lines_only():
    error = DataError(f"sample {printable(FORGED)} is\nbad \x1b[1m", where=FORGED, fix="mend it")
    assert str(error) == f"{SHOWN}: sample {SHOWN} is\nbad \\x1b[1m\n  fix: mend it"


def table_text(table):
    stream = io.StringIO()
    Console(file=stream, width=200).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("name", ["person [occluded]", "sign [/stop]", "[red]car", "a :car: b", "x [link=http://y]z"])
def test_descriptions_in_the_table_are_no_markup(name):
    rows = (replace(ROW, description=name), replace(ROW, description=FORGED))
    _, table = as_tables(Evaluation(figures={}, rows=rows))
    lines = table_text(table).splitlines()
    assert any(line.strip().startswith(name) for line in lines)
    assert any(SHOWN in line for line in lines)


@pytest.mark.parametrize("name", ["run[/b]", "run [bold]", "a :car: b"])
def test_the_name_of_a_run_is_no_markup(name):
    assert name in table_text(summary_table(summary_rows(HISTORY), title=name))


@pytest.mark.parametrize("name", ["price$5$", r"a $\nothing$ b", "x^_$"])
def test_the_name_of_a_run_is_no_formula(name, tmp_path, monkeypatch):
    titles = []
    monkeypatch.setattr(FigureCanvasAgg, "print_png", lambda canvas, path: titles.append(drawn_title(canvas.figure)))
    draw_curves(HISTORY, tmp_path / "curves.png", name)
    assert titles == [(name, False)]


def drawn_title(figure):
    figure.canvas.draw()  # raises where it is read as a formula and is none
    return figure.get_suptitle(), figure._suptitle.get_parse_math()


def test_names_in_pictures_are_one_line_without_controls(tmp_path, monkeypatch):
    texts = []
    draw = ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, xy, text, **more: (texts.append(text), draw(self, xy, text, **more))
    )
    truth = Truth(desc="a\x1b[2J", box=(0, 0, 999, 999))
    image = Image.new("RGB", (64, 64))
    save_pictures(tmp_path, 1, [Picture(name="id\n\x1b[1m", image=image, predicted=(), truth=(truth,))])
    assert r"id \x1b[1m: 1 true, 0 predicted" in texts
    assert r"a\x1b[2J" in texts
    assert all(text.isprintable() for text in texts)


def test_console_lines_name_samples_without_their_controls():
    stream = io.StringIO()
    sink = ConsoleSink(stream, total_steps=9)
    metrics = {"loss/total": 1.0, "train/learning_rate": 0.1, "time/step_s": 1}
    sink.step(replace(STEP, skipped=(FORGED,), metrics=metrics))
    sink.warning("\x1b[31mred")
    assert stream.getvalue().splitlines()[1:] == [
        f"step 1: 1 samples skipped ({SHOWN})",
        r"warning: \x1b[31mred",
    ]


def test_the_opening_lines_of_a_run_stay_lines():
    """A folder's name may hold anything but a slash."""
    assert banner("8 samples", [("run folder", f"runs/{FORGED}"), ("data", "x")]) == (
        f"8 samples\n  run folder  runs/{SHOWN}\n  data        x"
    )


def test_the_last_words_of_a_log_have_no_controls(tmp_path):
    log = tmp_path / "server.log"
    log.write_bytes(b"\x1b[31mERROR\x1b[0m at 10 %\rat 90 %\n")
    with subprocess.Popen(["true"], stdin=subprocess.PIPE) as supervisor:
        shown = ManagedProcess(name="server", supervisor=supervisor, log=log).last_words()
    assert shown.splitlines()[2:] == [r"    \x1b[31mERROR\x1b[0m at 10 %", "    at 90 %"]


def test_no_message_of_the_package_names_a_sample_as_it_is():
    """`{sample.id}` in an f-string that is no file's content: `printable` it."""
    files = [path for path in package_files() if relative(path) not in SEEDS]
    strings = [(path, node) for path in files for node in ast.walk(parse(path)) if isinstance(node, ast.JoinedStr)]
    found = [f"{relative(path)}:{node.lineno}" for path, node in strings if any(map(is_a_bare_name, node.values))]
    assert found == []


def is_a_bare_name(part):
    return isinstance(part, ast.FormattedValue) and part.conversion == -1 and ast.unparse(part.value) in BARE
