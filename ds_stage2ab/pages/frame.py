"""What every HTML page of ours is made of: one file that refers to nothing outside itself and fits a phone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from ds_stage2ab.errors import printable

TRUTH_COLOUR, PREDICTION_COLOUR, WRONG_COLOUR = "#1b9e8f", "#f5821f", "#c2185b"
"""As in the PNG pictures."""
STYLE = f"""
body{{font:15px/1.5 system-ui,sans-serif;color:#2b3238;margin:1.5rem auto;max-width:80rem;padding:0 1rem}}
h1,h2,h3{{font-weight:600;line-height:1.25}} h2{{margin-top:2.5rem}}
h1,h2,h3,p,figcaption,summary{{overflow-wrap:anywhere}} .note{{color:#6b757d}}
.scroll{{overflow-x:auto;margin:1rem 0}} table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
th,td{{padding:.2rem .8rem;text-align:right;white-space:nowrap}} tr{{border-bottom:1px solid #e3e6e9}}
th:first-child,td:first-child{{text-align:left;padding-left:0}} th{{font-weight:600;vertical-align:bottom}}
.finding{{border-left:4px solid #b4436c;padding-left:.8rem;margin:.4rem 0;overflow-wrap:anywhere}}
.charts,.pictures{{display:flex;flex-wrap:wrap;gap:1rem}} .charts svg{{max-width:100%;height:auto}}
figure{{margin:0;max-width:420px}} figcaption{{font-size:.8rem}}
.picture{{position:relative;display:inline-block;line-height:0;max-width:100%;overflow:hidden}}
.picture img{{max-width:100%;height:auto}}
.box{{position:absolute;border:2px solid {PREDICTION_COLOUR};box-sizing:border-box;box-shadow:0 0 0 1px #10141888}}
.box span{{position:absolute;left:-2px;top:-2px;background:{PREDICTION_COLOUR};color:#101418;font-size:10px;
line-height:13px;padding:0 3px;max-width:160px;overflow:hidden;white-space:nowrap;text-overflow:ellipsis}}
.box.end span{{left:auto;right:-2px}}
.box:hover{{z-index:1}} .box:hover span{{max-width:none}}
"""


def text(value: object) -> str:
    """A text that is not ours, as it may stand in a page."""
    return escape(printable(str(value)))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself where the page is narrow.

    Args:
        head, rows: cells as HTML.
    """
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<div class=scroll><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"


def document(title: str, body: str, *, style: str = "", script: str = "") -> str:
    """The whole file.

    Args:
        title: not ours.
        body: HTML, below the title.
        style: rules after those of every page.
        script: elements at the end.
    """
    view = "<meta name=viewport content='width=device-width,initial-scale=1'>"
    head = f"<meta charset=utf-8>{view}<title>{text(title)}</title><style>{STYLE}{style}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body><h1>{text(title)}</h1>{body}{script}</body></html>\n"
