"""`ds-stage2ab import` and `ds-stage2ab export`, from the words of the command line to what is said at the end."""

from __future__ import annotations

import argparse
from functools import partial

from rich.table import Table

from ds_stage2ab.errors import printable
from ds_stage2ab.formats.export_coco import export_coco
from ds_stage2ab.formats.importing import Target, import_dataset
from ds_stage2ab.formats.options import output_name
from ds_stage2ab.formats.report import REPORT, as_tables
from ds_stage2ab.formats.source import ReadOptions
from ds_stage2ab.runtime.progress import with_bar


def run_import(options: argparse.Namespace) -> list[Table | str]:
    """Import, and give the report and a line for each file."""
    target = Target(
        out=options.out,
        name=output_name(options.format, options.annotations, options.split),
        copy=options.copy,
        min_side=options.min_side,
        hold_out=options.hold_out,
    )
    read = ReadOptions(
        annotations=options.annotations,
        images=options.images,
        split=options.split,
        class_names=options.class_names,
        keep_crowd=options.keep_crowd,
    )
    report = import_dataset(options.format, read, target, partial(with_bar, title="import"))
    written = (
        f"{printable(str(options.out / name))}: {count:,} images; {REPORT} beside it says what was left out"
        for name, count in report.written.items()
    )
    return [*as_tables(report), *written]


def run_export(options: argparse.Namespace) -> list[str]:
    """Export, and give a line for each file."""
    written = export_coco(options.source, options.out, options.annotations)
    return [f"{printable(str(file))}: {what}" for file, what in written]
