"""The explorer's figures as BokehJS reads them; the one room that needs bokeh."""

from __future__ import annotations

import json
import re
from typing import Any

from bokeh.embed import json_item
from bokeh.models import ColumnDataSource, CustomJS, FixedTicker, GlyphRenderer
from bokeh.plotting import figure
from bokeh.resources import Resources

from lib.book.figures import FORGET, MEAN_ONLY, SAMPLE, TYPICAL

HEIGHT = 300
ID = re.compile(r'"p\d+"')


def script() -> str:
    """BokehJS, from the wheel."""
    return Resources(mode="inline", components=["bokeh"]).js_raw[0]


def described(networks: dict[str, Any]) -> dict[str, Any]:
    """Every figure by the name of the element it goes to; those of the networks if there are any.

    Args:
        networks: from `lib.book.explorer.networks`.
    """
    drawn = {"map": _map(), "growth": _growth()}
    if networks:
        drawn |= {
            "cells_map": _cells(networks), "times": _times(), "path": _path(networks["path"])
        }  # fmt: skip
    items = {name: json_item(one, f"explorer-{name}") for name, one in drawn.items()}
    text = json.dumps({name: {**item, "target_id": None} for name, item in items.items()})
    # bokeh counts its models over the whole process; here they count from 1.
    found = {name: f'"p{k}"' for k, name in enumerate(dict.fromkeys(ID.findall(text)), 1)}
    return json.loads(ID.sub(lambda match: found[match[0]], text))


def _figure(name: str, x: str, y: str, **options: Any) -> Any:
    drawn = figure(
        name=name, height=HEIGHT, sizing_mode="stretch_width", toolbar_location=None, tools="",
        background_fill_alpha=0, border_fill_alpha=0, outline_line_color=None,
        x_axis_label=x, y_axis_label=y, **options,
    )  # fmt: skip
    drawn.grid.grid_line_alpha = 0.15
    for axis in (*drawn.xaxis, *drawn.yaxis):
        axis.axis_label_text_font_size = "14px"
        axis.axis_label_text_font_style = "normal"
        axis.major_label_text_font_size = "12px"
    return drawn


def _source(name: str, *columns: str) -> ColumnDataSource:
    return ColumnDataSource({column: [] for column in columns or ("x", "y")}, name=name)


def _ink(renderer: GlyphRenderer) -> None:
    """In the page's own text colour, which explorer.js knows."""
    renderer.tags = ["ink"]


def _lines(drawn: Any, ending: str) -> None:
    """Mean, mean square and typical run, in the book's styles."""
    drawn.line(
        source=_source(f"mean_{ending}"), line_width=3, line_dash="dotted",
        color=MEAN_ONLY["color"],
    )  # fmt: skip
    _ink(drawn.line(source=_source(f"square_{ending}"), line_width=2.5))
    drawn.line(
        source=_source(f"typical_{ending}"), line_width=2.5, line_dash="dashed",
        color=TYPICAL["color"],
    )  # fmt: skip


def _map() -> Any:
    drawn = _figure(
        "map", "mixing α", "learning rate η", x_range=(0, 1), y_range=(0.05, 10), y_axis_type="log"
    )
    drawn.varea(
        "x", "low", "high", source=_source("stable", "x", "low", "high"), color="#888888", alpha=0.2
    )
    _lines(drawn, "frontier")
    drawn.scatter(source=_source("here"), size=14, color=SAMPLE, line_color="white", line_width=2)
    move = CustomJS(code="window.explorerMoveTo(cb_obj.x, cb_obj.y)")
    drawn.js_on_event("tap", move)
    return drawn


def _growth() -> Any:
    drawn = _figure(
        "growth", "step", "‖δ‖²", x_range=(0, 60), y_range=(1e-3, 1e3), y_axis_type="log"
    )
    drawn.multi_line(
        "xs", "ys", source=_source("runs", "xs", "ys"), color=SAMPLE, line_alpha=0.45, line_width=1
    )
    _lines(drawn, "path")
    return drawn


def _cells(networks: dict[str, Any]) -> Any:
    shares, mixings = networks["shares"], networks["mixings"]
    drawn = _figure(
        "cells_map", "learning rate (1 = retain edge)", "mixing α",
        x_range=(-0.6, len(shares) - 0.4), y_range=(-0.6, len(mixings) - 0.4),
    )  # fmt: skip
    drawn.rect(
        "x", "y", 0.92, 0.92, source=_source("cells", "x", "y", "fill", "label"),
        fill_color="fill", line_color=None,
    )  # fmt: skip
    _ink(drawn.scatter(source=_source("wrong"), marker="x", size=9, line_width=2))
    _ink(drawn.rect(source=_source("chosen"), width=1, height=1, fill_alpha=0, line_width=3))
    places = [0, 7, 14, 20, 23]
    drawn.xaxis.ticker = FixedTicker(ticks=places)
    drawn.xaxis.major_label_overrides = {k: f"{shares[k]:.2g}" for k in places}
    drawn.yaxis.ticker = FixedTicker(ticks=list(range(len(mixings))))
    drawn.yaxis.major_label_overrides = {k: f"{m:g}" for k, m in enumerate(mixings)}
    return drawn


def _times() -> Any:
    drawn = _figure(
        "times", "learning rate (1 = retain edge)", "steps to the target",
        x_range=(0.009, 2.2), y_range=(0, 61), x_axis_type="log",
    )  # fmt: skip
    for name in ("step_line", "rate_line"):
        drawn.line(source=_source(name), color="#888888", line_width=1.5)
    _ink(drawn.line(source=_source("tangent_times"), line_width=2.5))
    drawn.scatter(source=_source("real_times"), size=8, color=SAMPLE)
    return drawn


def _path(curves: dict[str, Any]) -> Any:
    drawn = _figure(
        "path", "step", "forget loss", x_range=(0, 60), y_range=(1e-2, 3), y_axis_type="log"
    )
    steps = curves["step"]
    drawn.line(source=_source("path_step"), color="#888888", line_width=1.5)
    drawn.line([0, 60], [curves["target"]] * 2, color="#888888", line_dash="dotted", line_width=2)
    drawn.line(steps, curves["frozen"], color=FORGET, line_dash="dashed", line_width=2.5)
    _ink(drawn.line(steps, curves["tangent"], line_width=2.5))
    drawn.scatter(steps, curves["network"], size=8, color=SAMPLE)
    return drawn
