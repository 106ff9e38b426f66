"""What a report does in the browser: it unpacks plotly.js, which is in the file once and compressed, and draws."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

from plotly.offline import get_plotlyjs

from ds_stage2ab.run_report.charts import STEP, Chart

LAYOUT = {
    "margin": {"l": 52, "r": 12, "t": 8, "b": 44},
    "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#2b3238"},
    "legend": {"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "font": {"size": 11}},
    "hovermode": "closest",
    "paper_bgcolor": "#fff",
    "plot_bgcolor": "#fff",
}
AXIS = {"gridcolor": "#e3e6e9", "zeroline": False, "automargin": True, "exponentformat": "power"}
MARK = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "#9aa3aa", "dash": "dot", "width": 1}}
CODE = """
const opened = document.querySelector('dialog');
document.addEventListener('click', event => {
  const picture = event.target.closest('.picture');
  if (picture && !opened.open) {
    const ratio = picture.style.aspectRatio.split('/').map(Number);
    opened.replaceChildren(picture.cloneNode(true));
    opened.firstChild.style.width = `min(92vw, ${88 * ratio[0] / ratio[1]}vh)`;
    opened.showModal();
  } else if (opened.open) opened.close();
});
const unpack = async () => {
  const packed = document.getElementById('plotly').textContent;
  const bytes = Uint8Array.from(atob(packed), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'));
  const script = document.createElement('script');
  script.textContent = await new Response(stream).text();
  document.head.append(script);
};
const draw = () => {
  const touched = matchMedia('(pointer: coarse)').matches;
  const options = {responsive: true, displaylogo: false};
  const buttons = [['zoomIn2d', 'zoomOut2d', 'resetScale2d']];
  if (touched) Object.assign(options, {displayModeBar: true, modeBarButtons: buttons});
  const charts = JSON.parse(document.getElementById('charts').textContent);
  for (const place of document.querySelectorAll('[data-chart]')) {
    const chart = charts[place.dataset.chart];
    if (touched) chart.layout.margin.t = 34;
    Plotly.newPlot(place, chart.data, {...chart.layout, dragmode: touched ? false : 'zoom'}, options);
  }
  document.body.dataset.drawn = charts.length;
};
unpack().then(draw).catch(error => {
  for (const place of document.querySelectorAll('[data-chart]'))
    place.textContent = `the chart needs a newer browser: ${error}`;
});
"""


def elements(charts: Sequence[Chart]) -> str:
    """The end of the page: the dialog of large pictures, plotly.js, the figures, and what draws them."""
    packed = base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
    figures = json.dumps([_figure(chart) for chart in charts], separators=(",", ":")).replace("<", "\\u003c")
    return (
        "<dialog></dialog>"
        f"<script id=plotly type='application/gzip'>{packed}</script>"
        f"<script id=charts type='application/json'>{figures}</script><script>{CODE}</script>"
    )


def place_of(number: int, chart: Chart) -> str:
    """Where the chart of this number will be drawn."""
    tall = " tall" if chart.traces[0].get("type") == "heatmap" else ""
    return f"<section class=chart><h3>{chart.title}</h3><div class='plot{tall}' data-chart={number}></div></section>"


def _figure(chart: Chart) -> dict[str, Any]:
    is_matrix = chart.traces[0].get("type") == "heatmap"
    kind = {"type": "category"} if is_matrix else {}
    across = "" if chart.across == STEP else chart.across
    scale = {"type": "log"} if chart.logarithmic else kind
    layout = {
        **LAYOUT,
        "xaxis": {**AXIS, **scale, "title": {"text": across}},
        "yaxis": {**AXIS, **kind, "title": {"text": chart.up}, **({"autorange": "reversed"} if is_matrix else {})},
        "shapes": [{**MARK, "x0": step, "x1": step} for step in chart.marks],
        "showlegend": chart.has_legend or len({trace["name"] for trace in chart.traces if "name" in trace}) > 1,
    }
    return {"data": chart.traces, "layout": layout}
