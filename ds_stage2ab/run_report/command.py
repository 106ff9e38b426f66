"""`ds-stage2ab report`: the closing table and the curves of runs again, and one HTML file of all of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table

from ds_stage2ab.errors import ConfigError, printable
from ds_stage2ab.metrics.report import summary_table, write_report
from ds_stage2ab.run_report.closing import closing_lines
from ds_stage2ab.runtime.files import write_whole

IN_THE_RUN = Path()
"""`--html` without a file: `report.html` in the folder of the first run."""
FILE_NAME = "report.html"
MAX_RUNS = 6
"""More cannot be told apart in one chart, nor kept below 6 MB."""


def run_report(options: argparse.Namespace) -> list[Table | str]:
    """Tables, and where the pictures and the page are.

    Raises:
        ConfigError: a folder is no run, there are too many, or the named file exists.
        DataError: a file of a run is damaged.
        EnvironmentFault: the curves or the page cannot be written.
    """
    folders = options.run_folders
    if options.html is not None:
        _check_page(options.html, folders)
    said: list[Table | str] = []
    for folder in folders:
        report = write_report(folder)
        said += [summary_table(report.rows, title=report.run), *closing_lines(folder)]
        said.append(f"{printable(str(report.curves))}: drawn")
    return said if options.html is None else [*said, _write_page(options.html, folders)]


def _check_page(file: Path, folders: list[Path]) -> None:
    if len(folders) > MAX_RUNS:
        fix = f"give at most {MAX_RUNS}"
        raise ConfigError(f"{len(folders)} runs are too many for one page", where="--html", fix=fix)
    if file != IN_THE_RUN and file.exists():
        raise ConfigError("exists already", where=str(file), fix="give another --html, or move it away")


def _write_page(file: Path, folders: list[Path]) -> str:
    from ds_stage2ab.run_report.page import report_page
    from ds_stage2ab.run_report.runs import read_runs

    page = report_page(read_runs(folders))
    path = folders[0] / FILE_NAME if file == IN_THE_RUN else file
    write_whole(path, page)
    return f"{printable(str(path))}: open it in a browser"
