"""Figures of plotly in a page: their data as JSON, and one copy of plotly's script that draws all of them.

A trace's colour is a name of the palette, written "var(--blue)": the script puts in the colour of a light or a dark
page, and of a light one on paper.
"""

import json
import re
from typing import TYPE_CHECKING, Any

from markupsafe import escape

from orchestrator.report.colours import PALETTE

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

HEIGHT = 380  # pixels


def figure_json(figure: "Figure", name: str, caption: str) -> str:
    """Return the place of a figure in a page, with its data.

    Args:
        figure: layout.meta["min_width"] is the width in pixels below which it scrolls.
        name: of the element; two figures of a page must not share it.
    """
    content = figure.to_plotly_json()
    layout = content.get("layout", {})
    for unwanted in ("template", "paper_bgcolor", "plot_bgcolor"):
        layout.pop(unwanted, None)
    width = (layout.get("meta") or {}).get("min_width", 0)
    data = _encoded({"data": content["data"], "layout": layout})
    return (
        f'<div class="plot" id="{name}" role="img" aria-label="{escape(caption)}" style="min-width: {width}px"></div>'
        f'<script type="application/json" data-plot="{name}">{data}</script>'
        "<noscript>This picture needs JavaScript.</noscript>"
    )


def _encoded(content: Any) -> str:
    from plotly.utils import PlotlyJSONEncoder

    text = json.dumps(content, cls=PlotlyJSONEncoder, separators=(",", ":"))
    return re.sub(r"[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)  # nothing that ends the element


def script() -> str:
    """Return plotly's script and what draws the page's figures with it; 4 to 5 MB."""
    from plotly.offline import get_plotlyjs

    palette = {name: list(pair) for name, pair in PALETTE.items()}
    return f"<script>{get_plotlyjs()}</script>\n<script>{_DRAW.replace('PALETTE', json.dumps(palette))}</script>"


_DRAW = """\
(() => {
  const palette = PALETTE;
  const dark = matchMedia("screen and (prefers-color-scheme: dark)"), paper = matchMedia("print");
  const scheme = () => (dark.matches && !paper.matches ? 1 : 0);
  const coloured = value => {
    if (typeof value === "string") return value.replace(/var\\(--(\\w+)\\)/g, (all, name) => palette[name][scheme()]);
    if (Array.isArray(value)) return value.map(coloured);
    if (value && typeof value === "object")
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, coloured(inner)]));
    return value;
  };
  const colour = name => palette[name][scheme()];
  const axis = (given, narrow) => ({
    gridcolor: colour("grid"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true,
    ...given, title: {standoff: 8, ...(typeof given?.title === "string" ? {text: given.title} : given?.title)},
    ...(narrow && !given?.tickvals ? {nticks: 6} : {}),
  });
  const draw = source => {
    const place = document.getElementById(source.dataset.plot);
    const {data, layout} = coloured(JSON.parse(source.textContent));
    const narrow = place.clientWidth < 560, axes = {};
    for (const key of ["xaxis", "yaxis", ...Object.keys(layout)])
      if (/^[xy]axis\\d*$/.test(key)) axes[key] = axis(layout[key] ?? {}, narrow);
    const ink = colour("ink");
    Plotly.react(place, data, {
      margin: {l: 8, r: 12, t: narrow ? 12 : 30, b: 8, pad: 2}, height: HEIGHT, hovermode: "closest",
      colorway: ["blue", "purple", "amber", "teal", "pink", "green", "red"].map(colour),
      ...layout, ...axes, autosize: true,
      paper_bgcolor: colour("page"), plot_bgcolor: colour("page"),
      font: {family: "system-ui, sans-serif", size: 12, ...layout.font, color: ink},
      legend: {...layout.legend, font: {color: ink}, ...(narrow ? {orientation: "h", y: -0.25, x: 0} : {})},
      hoverlabel: {bgcolor: colour("page"), bordercolor: colour("line"), font: {color: ink}},
    }, {responsive: true, displaylogo: false, displayModeBar: narrow ? false : "hover"});
  };
  const all = () => document.querySelectorAll("script[data-plot]").forEach(draw);
  all();
  for (const media of [dark, paper]) media.addEventListener("change", all);
})();
""".replace("HEIGHT", str(HEIGHT))
