"""The report's words: for people, and in the documents."""

import io
import re

from rich.console import Console

from ds_stage2ab.formats.importing import READERS
from ds_stage2ab.formats.options import FORMATS
from ds_stage2ab.formats.report import SHOWN_CLASSES, Report, as_tables
from ds_stage2ab.formats.source import CHANGED, LEFT_OUT, Tally
from tests.architecture.sources import ROOT

FORGED = "a[red]\x1b[2J"


def test_the_tables():
    tally = Tally()
    tally.image("missing_image", f"{FORGED}: image 3", objects=2)
    tally.object("crowd", "x: annotations[1]")
    tally.change("clipped", "x: annotations[2]")
    classes = {FORGED: 70, **{f"class {place}": 1 for place in range(SHOWN_CLASSES + 1)}, "unused": 0}
    counts = {"written": {"a.jsonl": 30}, "empty": 4, "objects": 91, "classes": classes}
    report = Report(kind="coco", annotations="x", images="y", tally=tally, **counts)
    stream = io.StringIO()
    for table in as_tables(report):
        Console(file=stream, width=160).print(table)
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]
    assert "images 31 30 1" in lines
    assert "objects 94 91 3" in lines
    assert any(line.startswith("missing_image 2 an image that is not in the folder") for line in lines)
    # 22 classes have objects: 20 are shown, the other two have one each
    assert r"a[red]\x1b[2J 70" in lines and "2 more 2" in lines and "1 declared without an object 0" in lines


def test_every_reason_stands_in_the_documents():
    text = (ROOT / "docs" / "import.md").read_text(encoding="utf-8")
    left, changed = text.split("| reason | left out is |")[1].split("| reason | changed is |")
    rows = [line.split("|")[1] for part in (left, changed) for line in part.splitlines() if line.startswith("| `")]
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted([*LEFT_OUT, *CHANGED])


def test_every_format_has_a_reader():
    assert tuple(READERS) == FORMATS
