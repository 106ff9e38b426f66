"""What an import kept, changed and left out: as `import_report.json`, and as tables for people."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from ds_stage2ab.errors import ConfigError, printable
from ds_stage2ab.formats.source import CHANGED, LEFT_OUT, Tally

REPORT = "import_report.json"
SHOWN_CLASSES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One import."""

    kind: str
    annotations: str
    images: str
    # the folder
    written: Mapping[str, int]
    # images by JSONL
    empty: int
    # images without objects
    objects: int
    classes: Mapping[str, int]
    # objects by name; 0: declared and without any
    tally: Tally


def as_data(report: Report) -> dict[str, Any]:
    """The report as JSON values; `read` is what was written and what was left out."""
    tally, images = report.tally, sum(report.written.values())
    return {
        "format": report.kind,
        "annotations": report.annotations,
        "image_folder": report.images,
        "images": {
            "read": images + tally.images.total(),
            "written": dict(report.written),
            "without_objects": report.empty,
            "left_out": dict(sorted(tally.images.items())),
        },
        "objects": {
            "read": report.objects + tally.objects.total(),
            "written": report.objects,
            "left_out": dict(sorted(tally.objects.items())),
        },
        "changed": dict(sorted(tally.changed.items())),
        "first_places": dict(sorted(tally.places.items())),
        "classes": dict(report.classes),
    }


def read_reports(folder: Path) -> dict[str, Any]:
    """The reports of earlier imports into a folder, by their JSONL.

    Raises:
        ConfigError: the file is no such report.
    """
    file = folder / REPORT
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(file), fix="move it away") from None
    if not isinstance(found, dict):
        raise ConfigError("is no report of an import", where=str(file), fix="move it away")
    return found


def add_to_reports(folder: Path, earlier: Mapping[str, Any], name: str, report: Report) -> None:
    """Write `import_report.json` with one more entry."""
    text = json.dumps({**earlier, name: as_data(report)}, indent=2, ensure_ascii=False)
    (folder / REPORT).write_text(f"{text}{os.linesep}", encoding="utf-8")


def as_tables(report: Report) -> list[Table]:
    """Counts, reasons with their first place, classes."""
    return [_counts(report), *_reasons(report), _classes(report)]


def _counts(report: Report) -> Table:
    tally, images = report.tally, sum(report.written.values())
    table = Table("", "read", "written", "left out", box=SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for what, kept, left in (
        ("images", images, tally.images.total()),
        ("objects", report.objects, tally.objects.total()),
    ):
        table.add_row(what, f"{kept + left:,}", f"{kept:,}", f"{left:,}")
    for name, count in report.written.items():
        table.add_row(Text(printable(f"  {name}")), "", f"{count:,}", "")
    table.add_row("images without objects", "", f"{report.empty:,}", "")
    return table


def _reasons(report: Report) -> list[Table]:
    tally, tables = report.tally, []
    for title, counts, words in (
        ("images left out", tally.images, LEFT_OUT),
        ("objects left out", tally.objects, LEFT_OUT),
        ("changed", tally.changed, CHANGED),
    ):
        if not counts:
            continue
        table = Table("reason", "count", "what", "the first", title=title, box=SIMPLE, title_justify="left")
        for reason, count in counts.most_common():
            table.add_row(reason, f"{count:,}", words[reason], Text(printable(tally.places[reason][0])))
        tables.append(table)
    return tables


def _classes(report: Report) -> Table:
    counts = sorted(report.classes.items(), key=lambda pair: -pair[1])
    present = [pair for pair in counts if pair[1]]
    table = Table("class", "objects", box=SIMPLE)
    for name, count in present[:SHOWN_CLASSES]:
        table.add_row(Text(printable(name)), f"{count:,}")
    rest = present[SHOWN_CLASSES:]
    if rest:
        table.add_row(f"{len(rest):,} more", f"{sum(count for _, count in rest):,}")
    if len(present) < len(counts):
        table.add_row(f"{len(counts) - len(present):,} declared without an object", "0")
    return table
