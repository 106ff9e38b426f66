"""One self-contained HTML file of the data: figures, histograms, and pictures with their boxes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ds_stage2ab.carriers import Record
from ds_stage2ab.config.batch import counted
from ds_stage2ab.data.images import load_image
from ds_stage2ab.data_report.charts import class_bars, histogram
from ds_stage2ab.data_report.figures import SetFigures, spread, summary
from ds_stage2ab.errors import DataError, printable
from ds_stage2ab.pages.frame import document, table, text
from ds_stage2ab.pages.pictures import box_element, jpeg_address

NUM_PICTURES, NUM_CROWDED = 18, 6
"""Spread evenly over the set, and those with the most objects."""
SIDE = 420  # pixels of the longer side of a picture
MIN_SIDE = 280  # on the page: smaller ones are enlarged by a whole factor


def data_page(
    title: str, sets: Sequence[SetFigures], findings: Sequence[str], caps: Mapping[str, Sequence[float]]
) -> str:
    """The page.

    Args:
        caps: measure -> values that are drawn into its histogram.
    """
    parts = [f"<p class=finding>{text(finding)}</p>" for finding in findings]
    parts += [part for one in sets for part in _section(one, caps)]
    return document(title, "".join(parts))


def _section(figures: SetFigures, caps: Mapping[str, Sequence[float]]) -> Iterator[str]:
    yield f"<h2>{text(str(figures.file))}</h2>"
    yield f"<p>{summary(figures)}</p>"
    rows = [[text(name), *spread(values)] for name, values in figures.measures.items() if len(values)]
    yield table(["", "least", "5 %", "median", "95 %", "most"], rows)
    charts = [histogram(name, values, caps.get(name) or ()) for name, values in figures.measures.items() if len(values)]
    charts += [class_bars(figures.classes)] if figures.classes else []
    yield f"<div class=charts>{''.join(charts)}</div>"
    yield f"<h3>pictures</h3><div class=pictures>{''.join(map(_picture, _chosen(figures.records)))}</div>"


def _chosen(records: Sequence[Record]) -> list[Record]:
    """In their order, each once."""
    step = max(1, len(records) // NUM_PICTURES)
    spread_out = range(0, step * min(NUM_PICTURES, len(records)), step)
    crowded = sorted(range(len(records)), key=lambda place: -len(records[place].objects))[:NUM_CROWDED]
    return [records[place] for place in sorted({*spread_out, *crowded})]


def _picture(record: Record) -> str:
    caption = f"{printable(record.id)}: {record.width} x {record.height}, {counted(len(record.objects), 'object')}"
    try:
        image = load_image(record)[1]
    except DataError as error:
        return f"<figure><figcaption>{text(f'{caption}; {error.why}')}</figcaption></figure>"
    source, (width, height) = jpeg_address(image, SIDE)
    factor = max(1, MIN_SIDE // max(width, height))
    sharp = " style='image-rendering:pixelated'" if factor > 1 else ""
    img = f"<img alt='' width={factor * width} height={factor * height}{sharp} src='{source}'>"
    boxes = "".join(box_element(one.box, one.desc) for one in record.objects)
    return f"<figure><div class=picture>{img}{boxes}</div><figcaption>{text(caption)}</figcaption></figure>"
