"""The explorer: a figure with sliders that needs no server and no network.

`explorer_formulas.js` holds the closed forms, `explorer.js` the page's wiring; BokehJS, from the
wheel, draws. Python writes the figures' description and the stored runs into one HTML text.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure

from lib.book import figures, stored, tangent_model
from lib.experiments import tangent_runs
from lib.stability.algorithm import AscentDescent
from lib.stability.exponents import axis_laws, growth_exponents
from lib.stability.families import AxisFamily

N = 40  # samples of either set, as in explorer_formulas.js
HERE = Path(__file__).parent
Setting = Mapping[str, Any]


@dataclass(frozen=True)
class Slider:
    """A control: its name in settings and addresses, its words (HTML), its range and start."""

    name: str
    label: str
    low: float
    high: float
    step: float
    start: float

    def to_html(self) -> str:
        """A native range input, which keyboards, screen readers and fingers know."""
        return (
            f'<div class="slider" data-slider="{self.name}">'
            f'<label for="explorer-{self.name}">{self.label}</label>'
            f'<output for="explorer-{self.name}">{self.start:g}</output>'
            f'<input type="range" id="explorer-{self.name}" name="{self.name}" min="{self.low:g}" '
            f'max="{self.high:g}" step="{self.step:g}" value="{self.start:g}"></div>'
        )


SLIDERS = (
    Slider("alpha", "mixing α", 0, 1, 0.01, 0.3),
    Slider("chi", "alignment χ of the sets", 0, 0.99, 0.01, 0.5),
    Slider("eta", "learning rate η", 0.05, 10, 0.05, 1.0),
    Slider("Br", "retain batch B<sub>r</sub> of 40", 1, N, 1, 8),
    Slider("Bf", "forget batch B<sub>f</sub> of 40", 1, N, 1, 4),
    Slider("sr", "retain coherence σ<sub>r</sub>", 1, N // 2, 1, 10),
    Slider("sf", "forget coherence σ<sub>f</sub>", 1, N, 1, 10),
    Slider("damping", "damping λ", 0, 1, 0.01, 0.0),
    Slider("beta", "momentum β", 0, 0.95, 0.01, 0.0),
)
FIRST = 3  # of the sliders are all that the landing page shows
SAMPLING = {
    "bernoulli": "each sample by chance",
    "without_replacement": "without replacement",
    "with_replacement": "with replacement",
}
START: Setting = {s.name: s.start for s in SLIDERS} | {"sampling": "bernoulli"}
NETWORKS = {"mlp": "MLP", "conv": "conv net", "lora": "LoRA", "head": "linear head"}


TABS = """<fieldset class="tabs"><legend class="small">What to explore</legend>
<label><input type="radio" name="tab" value="theory" checked> the theory's model</label>
<label><input type="radio" name="tab" value="real"> real networks</label></fieldset>"""


def family(setting: Setting) -> AxisFamily:
    """Two sets of 40 samples: an axis that both curve, and one that the retain set curves alone.

    Retain sharpness χ and √(1−χ²), forget sharpness 1 and 0; σ_r retain samples on either axis, σ_f
    forget samples on the first; the other samples are flat. The coherence between the sets is χ,
    those within them are σ_r and σ_f (`lib.stability.coherence`).

    Args:
        setting: with chi ∈ [0, 1), sr ≤ 20 and sf ≤ 40.
    """
    chi, group = float(setting["chi"]), int(setting["sr"])
    return AxisFamily(
        N,
        N,
        np.array([group, group]),
        np.array([int(setting["sf"]), 0]),
        np.array([chi, math.sqrt(1 - chi**2)]),
        np.array([1.0, 0.0]),
    )


def algorithm(setting: Setting, momentum: float = 0.0) -> AscentDescent:
    """The update of a setting; closed forms of lib with momentum are in `second_moment`."""
    return AscentDescent(
        float(setting["alpha"]),
        int(setting["Br"]),
        int(setting["Bf"]),
        damping=float(setting["damping"]),
        sampling=setting["sampling"],
        momentum=momentum,
    )


def start_figure() -> Figure:
    """What the explorer shows before it is touched, computed by lib: the figure without JavaScript.

    Left: the sign of each exponent over mixing and learning rate. Right: the exact mean square.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8))
    mixings, rates = np.linspace(0, 0.995, 41), np.geomspace(0.05, 10, 41)
    found = [
        [
            growth_exponents(family(START), algorithm(dict(START) | {"alpha": float(a)}), float(r))
            for a in mixings
        ]
        for r in rates
    ]
    for name, text, style in figures.FRONTIERS:
        values = np.clip([[getattr(e, name) for e in row] for row in found], -0.05, 0.05)
        colour, line = style["color"], style["linestyle"]
        left.contour(mixings, rates, values, [0], colors=colour, linestyles=line, linewidths=2)
        left.plot([], [], color=colour, linestyle=line, label=text)
    left.plot(START["alpha"], START["eta"], "o", color=figures.SAMPLE, markersize=9, label="here")
    left.set(yscale="log", xlabel="mixing α", ylabel="learning rate η")
    left.legend(loc="upper right", fontsize=9)
    steps = np.arange(61)
    for rate, dashes in ((1.0, "-"), (3.0, "--")):
        laws = axis_laws(family(START), algorithm(START), rate)
        squares = sum(float(w @ X**2) ** steps for w, X in laws) / len(laws)
        right.semilogy(steps, squares, dashes, color=figures.THEORY, label=f"η = {rate:g}")
    right.set(xlabel="step k", ylabel="mean square $E‖δ_k‖^2$")
    right.legend(fontsize=9)
    return figure


def networks() -> dict[str, Any]:
    """The stored runs of the chapter on the tangent model, as JSON; empty where none are stored.

    By network and seed: time to the target (None: not within 60 steps) and retain accuracy there,
    real and predicted, over mixing (slow) and learning rate; and one stored path.
    """
    if not stored.folder_of(tangent_model).is_dir():
        return {}
    several = stored.results(tangent_model, "stored", tangent_model.published(), {})
    mixings, shares = tangent_runs.grid("mlp")
    tables = {}
    for name, result in several.items():
        if name != "curvature":
            by_seed = result.table.groupby("seed")
            tables[name] = [_compact(rows) for _, rows in by_seed]
    path = several["curvature"].table
    curves = {key: path[key].tolist() for key in ("step", "network", "tangent", "frozen")}
    return {
        "mixings": list(mixings),
        "shares": [float(f"{share:.4g}") for share in shares],
        "tables": tables,
        "path": curves | {"target": float(path["target"][0])},
    }


def _compact(rows: Any) -> dict[str, Any]:
    columns = ("real_time", "real_retain", "predicted_time", "predicted_retain")
    return {
        name: [float(f"{v:.4g}") if math.isfinite(v) else None for v in rows[name]]
        for name in columns
    } | {"floor": float(rows["floor"].iloc[0])}


def explorer(*, small: bool = False) -> HTML:
    """The explorer as an output of a cell; the start figure alone where bokeh is not installed.

    Args:
        small: the landing page's, with the first three sliders and without the networks' tab.
    """
    figures.use_book_style()
    picture = io.BytesIO()
    drawn = start_figure()
    drawn.savefig(picture, format="png", dpi=90)
    plt.close(drawn)
    data = base64.b64encode(picture.getvalue()).decode()
    static = (
        f'<img src="data:image/png;base64,{data}" alt="The explorer before it is touched: the '
        'frontiers over mixing and learning rate, and the growth of the mean square at two rates.">'
    )
    try:
        from lib.book import explorer_figures
    except ImportError:
        return HTML(f"{static}<p>To move it: pip install bokeh, and run this cell again.</p>")
    given = {} if small else networks()
    shown = SLIDERS[:FIRST] if small else SLIDERS
    described = explorer_figures.described(given)
    return HTML(_page(given, shown, described, explorer_figures.script(), static))


def _page(
    given: dict[str, Any],
    sliders: Sequence[Slider],
    described: dict[str, Any],
    bokeh: str,
    static: str,
) -> str:
    hidden = "".join(slider.to_html() for slider in SLIDERS if slider not in sliders)
    parts = {
        "STYLE": (HERE / "explorer.css").read_text(),
        "SLIDERS": "".join(slider.to_html() for slider in sliders),
        "HIDDEN": f"<div hidden>{hidden}</div>" if hidden else "",
        "SAMPLING": "".join(f'<option value="{k}">{v}</option>' for k, v in SAMPLING.items()),
        "TABS": TABS if given else "",
        "REAL": _real(given) if given else "",
        "STATIC": static,
        "DATA": json.dumps({"figures": described, "networks": given}).replace("</", "<\\/"),
        "BOKEH": bokeh,
        "FORMULAS": (HERE / "explorer_formulas.js").read_text(),
        "SCRIPT": (HERE / "explorer.js").read_text(),
    }
    page = (HERE / "explorer.html").read_text()
    for name, part in parts.items():
        page = page.replace(f"@{name}@", part, 1)
    return page


def _real(given: dict[str, Any]) -> str:
    """The tab of the real networks: five mixings, 24 rates and the step, and three seeds."""
    last = len(given["mixings"]) - 1, len(given["shares"]) - 1
    sliders = (
        Slider("row", "mixing α", 0, last[0], 1, 2),
        Slider("rate", "learning rate (1 = retain edge)", 0, last[1], 1, 9),
        Slider("step", "step", 0, tangent_runs.STEPS, 1, 30),
        Slider("seed", "model (seed)", 0, 2, 1, 0),
    )
    words = {"class": "most of one class", "random": "samples at random"}
    choices = "".join(
        f'<option value="{family}_{chosen}">{NETWORKS[family]}, {words[chosen]}</option>'
        for family in tangent_model.SMALL
        for chosen in words
    )
    page = (HERE / "explorer_real.html").read_text().replace("@CHOICES@", choices)
    return page.replace("@SLIDERS@", "".join(slider.to_html() for slider in sliders))
