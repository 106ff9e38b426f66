"""One self-contained HTML file of the data: figures, histograms, and pictures with their boxes."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from PIL import Image

from ds_stage2ab.carriers import Record
from ds_stage2ab.codec.bins import MAX_BIN
from ds_stage2ab.config.batch import counted
from ds_stage2ab.data.images import load_image
from ds_stage2ab.data_report.charts import class_bars, histogram
from ds_stage2ab.data_report.figures import SetFigures, spread, summary
from ds_stage2ab.errors import DataError, printable

NUM_PICTURES, NUM_CROWDED = 18, 6
"""Spread evenly over the set, and those with the most objects."""
SIDE = 420  # pixels of the longer side of a picture
QUALITY = 80
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#2b3238;margin:2rem auto;max-width:76rem;padding:0 1rem}
h1,h2{font-weight:600} table{border-collapse:collapse;margin:1rem 0} th,td{padding:.2rem .8rem;text-align:right}
th:first-child,td:first-child{text-align:left} tr{border-bottom:1px solid #e3e6e9}
.charts,.pictures{display:flex;flex-wrap:wrap;gap:1rem} .charts svg{max-width:100%;height:auto}
figure{margin:0;max-width:420px} figcaption{font-size:.8rem;overflow-wrap:anywhere}
.picture{position:relative;display:inline-block;line-height:0} .picture img{max-width:100%}
.box{position:absolute;border:2px solid #f5821f;box-sizing:border-box;box-shadow:0 0 0 1px #10141888}
.box span{position:absolute;left:-2px;top:-2px;background:#f5821fcc;color:#101418;font-size:10px;line-height:13px;
padding:0 3px;max-width:160px;overflow:hidden;white-space:nowrap;text-overflow:ellipsis}
.box:hover{z-index:1;border-color:#1b9e8f} .box:hover span{max-width:none;background:#1b9e8f}
.finding{border-left:4px solid #b4436c;padding-left:.8rem;margin:.4rem 0}
"""


def data_page(
    title: str, sets: Sequence[SetFigures], findings: Sequence[str], caps: Mapping[str, Sequence[float]]
) -> str:
    """The page.

    Args:
        caps: measure -> values that are drawn into its histogram.
    """
    parts = [f"<p class=finding>{_text(finding)}</p>" for finding in findings]
    parts += [part for one in sets for part in _section(one, caps)]
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{_text(title)}</title>"
    body = f"<h1>{_text(title)}</h1>{''.join(parts)}"
    return f"<!doctype html><html lang=en><head>{head}<style>{STYLE}</style></head><body>{body}</body></html>\n"


def _text(text: str) -> str:
    return escape(printable(text))


def _section(figures: SetFigures, caps: Mapping[str, Sequence[float]]) -> Iterator[str]:
    yield f"<h2>{_text(str(figures.file))}</h2>"
    yield f"<p>{summary(figures)}</p>"
    rows = "".join(_row(name, values) for name, values in figures.measures.items() if len(values))
    yield f"<table><tr><th><th>least<th>5 %<th>median<th>95 %<th>most</tr>{rows}</table>"
    charts = [histogram(name, values, caps.get(name) or ()) for name, values in figures.measures.items() if len(values)]
    charts += [class_bars(figures.classes)] if figures.classes else []
    yield f"<div class=charts>{''.join(charts)}</div>"
    yield f"<h3>pictures</h3><div class=pictures>{''.join(map(_picture, _chosen(figures.records)))}</div>"


def _row(name: str, values: object) -> str:
    found = spread(values)
    cells = (found.least, found.low, found.median, found.high, found.most)
    return f"<tr><td>{_text(name)}{''.join(f'<td>{value:,.4g}' for value in cells)}</tr>"


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
        return f"<figure><figcaption>{_text(f'{caption}; {error.why}')}</figcaption></figure>"
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=QUALITY)
    source = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
    img = f"<img alt='' width={image.width} height={image.height} src='{source}'>"
    boxes = "".join(_box(one.desc, one.box) for one in record.objects)
    return f"<figure><div class=picture>{img}{boxes}</div><figcaption>{_text(caption)}</figcaption></figure>"


def _box(name: str, box: tuple[int, int, int, int]) -> str:
    x1, y1, x2, y2 = (100 * k / MAX_BIN for k in box)
    place = f"left:{x1:.2f}%;top:{y1:.2f}%;width:{x2 - x1:.2f}%;height:{y2 - y1:.2f}%"
    return f"<div class=box style='{place}' title='{_text(name)}'><span>{_text(name)}</span></div>"
