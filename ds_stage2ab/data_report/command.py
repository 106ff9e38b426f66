"""`ds-stage2ab data`: what is in a JSONL, or in those of a config; as tables, and as one HTML file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from ds_stage2ab.config.load import load_config
from ds_stage2ab.config.overrides import read_overrides
from ds_stage2ab.config.sections import Config
from ds_stage2ab.data.images import unusable_images
from ds_stage2ab.data.records import read_records
from ds_stage2ab.data_report.figures import SetFigures, set_figures, spread, summary
from ds_stage2ab.data_report.findings import of_images, of_one_set
from ds_stage2ab.errors import ConfigError, printable
from ds_stage2ab.runtime.files import write_whole
from ds_stage2ab.runtime.progress import with_bar

RECORDS = ".jsonl"
SHOWN_CLASSES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How records are written, and the config that says so, if one does."""

    box_format: str
    image_root: Path | None
    config: Config | None


def run_data(options: argparse.Namespace) -> list[Table | str]:
    """Look at the data, and write the page if one is asked for.

    Raises:
        ConfigError: the config has problems, or an option does not fit it.
        DataError: a line or a box is not what the data contract says.
        EnvironmentFault: the checkpoint's tokenizer cannot be loaded, or the page cannot be written.
    """
    if options.html is not None and options.html.exists():
        raise ConfigError("exists already", where=str(options.html), fix="give another --html, or move it away")
    files, form = _files(options)
    sets = [_read(file, form) for file in files]
    findings = [f"{one.file}: {finding}" for one in sets for finding in of_one_set(one, form.box_format)]
    findings += of_images(sets[0], sets[1] if len(sets) > 1 else None)
    caps: dict[str, Sequence[float]] = {}
    notes = []
    if form.config is not None:
        sets, told, caps, notes = _with_lengths(sets, form.config)
        findings += told
    written = [] if options.html is None else [_write_page(options.html, sets, findings, caps)]
    tables = [table for one in sets for table in _tables(one)]
    return [*tables, *notes, *(printable(f"warning: {finding}") for finding in findings), *written]


def _files(options: argparse.Namespace) -> tuple[list[Path], _Form]:
    if options.source.suffix == RECORDS:
        return [options.source], _Form(box_format=options.box_format, image_root=options.image_root, config=None)
    config = load_config(options.source, read_overrides(options.overrides)).config
    data = config.data
    files = [data.train, data.validation] if data.validation else [data.train]
    return files, _Form(box_format=data.box_format, image_root=data.image_root, config=config)


def _read(file: Path, form: _Form) -> SetFigures:
    records = read_records(file, image_root=form.image_root, box_format=form.box_format, keep_unusable=True)
    unusable = unusable_images(with_bar(records, len(records), "images"))
    return set_figures(file, records, list(unusable))


def _with_lengths(
    sets: list[SetFigures], config: Config
) -> tuple[list[SetFigures], list[str], dict[str, Sequence[float]], list[str]]:
    """The sets with their tokens, findings about these, the caps, and why nothing is counted, if so."""
    if not os.path.isdir(config.model.path):
        return sets, [], {}, [f"{config.model.path} is not on this machine: tokens are not counted"]
    from ds_stage2ab.data_report.lengths import ANSWER, BOTH, over_the_caps, token_counter

    counter = token_counter(config)
    counted, findings = [], []
    for one in sets:
        measures = counter.measures(with_bar(one.records, len(one.records), "tokens"))
        counted.append(replace(one, measures={**one.measures, **measures}))
        findings += [f"{one.file}: {finding}" for finding in over_the_caps(measures, config)]
    caps = {ANSWER: [config.rollout_matching.max_new_tokens], BOTH: [config.training.global_max_length]}
    return counted, findings, caps, []


def _write_page(
    file: Path, sets: Sequence[SetFigures], findings: Sequence[str], caps: dict[str, Sequence[float]]
) -> str:
    from ds_stage2ab.data_report.page import data_page

    page = data_page(", ".join(one.file.name for one in sets), sets, findings, caps)
    write_whole(file, page)
    return f"{printable(str(file))}: the same with histograms and pictures, in one file"


def _tables(figures: SetFigures) -> list[Table | str]:
    measures = Table("", "least", "5 %", "median", "95 %", "most", box=SIMPLE)
    for name, values in figures.measures.items():
        if len(values):
            measures.add_row(name, *spread(values))
    measures.columns[0].no_wrap = True
    for column in measures.columns[1:]:
        column.justify = "right"
    classes = Table("description", "objects", "images", box=SIMPLE)
    for one in figures.classes[:SHOWN_CLASSES]:
        classes.add_row(Text(printable(one.name)), f"{one.objects:,}", f"{one.images:,}")
    if rest := figures.classes[SHOWN_CLASSES:]:
        classes.add_row(f"{len(rest):,} more", f"{sum(one.objects for one in rest):,}", "")
    return [printable(f"{figures.file}: {summary(figures)}"), measures, classes]
