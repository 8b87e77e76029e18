"""A plan as ten lines of text and as one HTML file that needs no network."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from lib.unlearning.planning import Plan

# Okabe–Ito; every role has a line style of its own too.
FORGET, RETAIN, HOLDOUT = "#D55E00", "#0072B2", "#009E73"
SHOWN = 12  # rows of a table
LABEL = 14  # characters before the text of a line
STYLE = """
:root{color-scheme:light dark;--back:#fff;--text:#1a1a1a;--line:#767676;--soft:#f2f2f2}
@media(prefers-color-scheme:dark){:root{--back:#16181c;--text:#ececec;--line:#8f959e;--soft:#23262c}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:44rem;padding:1rem;background:var(--back);color:var(--text);
font:1rem/1.5 system-ui,sans-serif}
dl,.scroll{overflow-x:auto;background:var(--soft);padding:.75rem;border-radius:.4rem}
dl{display:grid;grid-template-columns:8rem 1fr;gap:.3rem .6rem;font-size:.9rem}
dt{font-weight:600}dd{margin:0;overflow-wrap:anywhere}
figure{margin:1.5rem 0}figure svg{width:100%;height:auto;background:#fff;border-radius:.4rem}
figcaption{font-size:.9rem}
table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
""".strip()


def lines(plan: Plan) -> list[str]:
    """The plan in ten lines."""
    start, chosen = plan.start, plan.recommended
    data = plan.data
    notes = "; ".join(plan.notes) or "planned on all samples"
    head = [
        f"Plan: forget {data.forgotten} of {data.samples} samples, {data.held} held out; {notes}",
        f"target        forget loss {plan.target:.3g}, now {float(start.forget_loss[0, 0]):.3g}",
        f"retain floor  accuracy {plan.floor:.3f}, now {float(start.retain_accuracy[0, 0]):.3f}",
    ]
    if chosen is None:
        return [*head, f"recommended   none: {plan.verdict}", *_without(plan)]
    row = _row(plan)
    low, expected, high = chosen.steps
    return [
        *head,
        f"recommended   rate {chosen.learning_rate:.4g}, mixing {chosen.mixing:g}, batches "
        f"{chosen.retain_batch} retain + {chosen.forget_batch} forget ({chosen.sampling})",
        f"steps         {expected} expected, {low} to {high} over batches and clock",
        f"at the hit    retain {row['retain_accuracy']:.3f}, held-out "
        f"{row['holdout_accuracy']:.3f}, forget loss at most {row['overshoot']:.2f} × target",
        f"stop when     forget loss ≥ {plan.target:.3g}, or retain loss > {plan.guard:.3g} (guard)",
        _edge(plan),
        _verified(plan),
        _validity(plan),
    ]


def _without(plan: Plan) -> list[str]:
    """Six lines of a plan that recommends no run."""
    tried = len(plan.table)
    at_start = float(plan.start.watched_accuracy[0, 0])
    if not tried:
        return [
            "steps         0",
            f"held out      accuracy {at_start:.3f}",
            "stop when     at once",
            "retain edge   not needed",
            "real run      none, model unchanged",
            "validity      nothing was predicted",
        ]
    reached = int(np.isfinite(plan.table["steps_high"]).sum())
    return [
        f"settings      {tried} tried, {reached} reach the target in {plan.steps} steps",
        f"kept          {int((plan.table['retain_least'] >= plan.floor).sum())} keep the floor",
        "stop when     no run is recommended",
        _edge(plan),
        _verified(plan),
        _validity(plan),
    ]


def _edge(plan: Plan) -> str:
    edge = plan.retain_edge
    if edge is None:
        return "retain edge   not needed"
    used = "" if np.isnan(edge.used) else f", {edge.used:.0%} of it used"
    return (
        f"retain edge   {edge.learning_rate:.3g} at mixing {edge.mixing:g}: descent on the retain "
        f"set is unstable beyond{used}"
    )


def _verified(plan: Plan) -> str:
    path = plan.verified
    if path is None:
        return f"real run      none of this setting ({plan.real_runs} of others)"
    return (
        f"real run      {len(path.forget_loss) - 1} steps, forget loss "
        f"{float(path.forget_loss[-1, 0]):.3g}, retain {float(path.retain_accuracy[-1, 0]):.3f}, "
        f"held-out {float(path.watched_accuracy[-1, 0]):.3f} (on a copy; clock × {plan.speed:.2f})"
    )


def _validity(plan: Plan) -> str:
    if plan.validity is None:
        return "validity      nothing was predicted"
    said = "trusted" if plan.validity.trusted else "; ".join(plan.validity.reasons)
    return f"validity      {said}"


def _row(plan: Plan) -> pd.Series:
    """The recommended setting's row of the table."""
    assert plan.recommended is not None
    wanted = (plan.recommended.mixing, plan.recommended.learning_rate)
    here = (plan.table["mixing"] == wanted[0]) & (plan.table["learning_rate"] == wanted[1])
    return plan.table[here].iloc[0]


def html(plan: Plan) -> str:
    """The report: the ten lines, figures as inline SVG with their alt texts, and tables."""
    head, *rest = lines(plan)
    pairs = [(line[:LABEL].strip(), line[LABEL:]) for line in rest]
    rows = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>\n" for label, text in pairs)
    parts = [f"<p>{escape(head)}</p>\n<dl>{rows}</dl>"]
    if len(plan.table):
        parts.append(_map(plan))
    if plan.recommended is not None:
        parts.append(_curves(plan))
    if len(plan.samples):
        parts.append(_samples(plan))
    if len(plan.table):
        reached = plan.table.assign(reached=np.isfinite(plan.table["steps_high"]))
        order = reached.sort_values(["feasible", "reached", "retain_accuracy"], ascending=False)
        shown = order.drop(columns="reached").head(SHOWN)
        parts.append(_table("Settings, feasible ones first", shown))
        top = plan.samples.sort_values("initial_loss", ascending=False)
        parts.append(_table("Samples to forget, largest initial loss first", top.head(SHOWN)))
    title = "Unlearning plan"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><main><h1>{title}</h1>\n" + "\n".join(parts) + "\n</main></body></html>\n"
    )


def _map(plan: Plan) -> str:
    """Every setting: retain accuracy at the hit over rate and mixing."""
    table, figure = plan.table, _figure()
    axes = figure.add_subplot()
    reached = np.isfinite(table["steps_high"])
    dots = axes.scatter(
        table["learning_rate"][reached],
        table["mixing"][reached],
        c=table["retain_accuracy"][reached],
        s=np.where(table["feasible"][reached], 90, 35),
        cmap="cividis",
    )
    axes.scatter(
        table["learning_rate"][~reached], table["mixing"][~reached], c="0.5", marker="x", s=25
    )
    if plan.recommended is not None:
        axes.scatter(
            plan.recommended.learning_rate,
            plan.recommended.mixing,
            s=260,
            facecolors="none",
            edgecolors=FORGET,
            linewidths=2,
        )
    if reached.any():
        figure.colorbar(dots, label="retain accuracy at the target")
    axes.set(xscale="log", xlabel="learning rate", ylabel="mixing α")
    axes.set_yticks(sorted(set(table["mixing"])))
    count = int(table["feasible"].sum())
    text = (
        f"Map of {len(table)} settings by learning rate and mixing: {count} feasible (large dots), "
        f"{int((reached & ~table['feasible']).sum())} that reach the target otherwise (small dots),"
        f" {int((~reached).sum())} that do not reach it with every draw of batches (crosses)"
    )
    if plan.recommended is not None:
        text += "; the ring is the recommendation"
    return _drawn(figure, "map", text)


def _curves(plan: Plan) -> str:
    """Losses and accuracies along the recommended run, with target, guard and floor."""
    assert plan.recommended is not None
    figure = _figure(5.2)
    upper, lower = figure.subplots(2, sharex=True)
    for _, one in plan.curves.groupby("seed"):
        upper.plot(one["step"], one["forget_loss"], color=FORGET, alpha=0.5)
        upper.plot(one["step"], one["retain_loss"], color=RETAIN, alpha=0.5, linestyle="--")
        lower.plot(one["step"], one["retain_accuracy"], color=RETAIN, alpha=0.5, linestyle="--")
        lower.plot(one["step"], one["holdout_accuracy"], color=HOLDOUT, alpha=0.5, linestyle=":")
    said = ""
    if plan.verified is not None:
        real = plan.verified
        steps = np.arange(len(real.forget_loss))
        _dots(upper, steps, real.forget_loss[:, 0].cpu().numpy(), FORGET)
        _dots(lower, steps, real.retain_accuracy[:, 0].cpu().numpy(), RETAIN)
        said = f"; dots are the real run on a copy, {steps[-1]} steps"
    upper.axhline(plan.target, color=FORGET, linewidth=1)
    upper.axhline(plan.guard, color=RETAIN, linewidth=1)
    lower.axhline(plan.floor, color=RETAIN, linewidth=1)
    upper.annotate("target", (0, plan.target), va="top", color=FORGET)
    upper.annotate("retain guard", (0, plan.guard), va="bottom", color=RETAIN)
    lower.annotate("retain floor", (0, plan.floor), va="bottom", color=RETAIN)
    positive = plan.curves[["forget_loss", "retain_loss"]].to_numpy() > 0
    upper.set(ylabel="loss", yscale="log" if positive.all() else "linear")
    lower.set(xlabel="step", ylabel="accuracy")
    low, expected, high = plan.recommended.steps
    return _drawn(
        figure,
        "curves",
        f"Predicted run at the recommendation, one line a draw of batches: the forget loss (solid) "
        f"reaches the target {plan.target:.3g} after about {expected} steps ({low} to {high}), the "
        f"retain loss (dashed) stays below the guard {plan.guard:.3g}; below, retain accuracy "
        f"(dashed) against the floor {plan.floor:.3f}, and held-out accuracy (dotted){said}",
    )


def _dots(axes: Axes, steps: np.ndarray, values: np.ndarray, colour: str) -> None:
    axes.plot(steps, values, color=colour, linestyle="", marker="o", markersize=3)


def _samples(plan: Plan) -> str:
    """Forget samples: loss now and at the hit."""
    figure, table = _figure(), plan.samples
    axes = figure.add_subplot()
    ended = table["predicted_loss"].notna().all()
    y = "predicted_loss" if ended else "self_influence"
    names = {"predicted_loss": "predicted loss at the target", "self_influence": "self-influence"}
    axes.scatter(table["initial_loss"], table[y], color=FORGET, s=12, alpha=0.7)
    scale = "log" if bool((table[["initial_loss", y]] > 0).all(axis=None)) else "linear"
    axes.set(xlabel="initial loss", ylabel=names[y], xscale=scale, yscale=scale)
    rank = table[["initial_loss", y]].rank().corr().iloc[0, 1]
    return _drawn(
        figure,
        "samples",
        f"The {len(table)} samples to forget: {names[y]} over initial loss, rank correlation "
        f"{rank:.2f}",
    )


def _figure(height: float = 3.4) -> Figure:
    figure = Figure(figsize=(4.8, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def _drawn(figure: Figure, name: str, text: str) -> str:
    """A figure as inline SVG with its alt text, which is its caption too; ids of its own."""
    held = io.StringIO()
    # Text stays text, and ids depend on the content alone: the same plan gives the same bytes.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure.savefig(held, format="svg", metadata={"Date": None})
    svg = held.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(?::xlink)?="[^"]*"', "", svg)
    used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)([\w-]+)', rf"\1{name}-\2", svg)
    label = escape(text, quote=True)
    svg = svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)
    return f"<figure>{svg}<figcaption>{escape(text)}.</figcaption></figure>"


def _table(title: str, table: pd.DataFrame) -> str:
    """A heading and a table that scrolls in its own frame; a column without numbers is left out."""
    known = table.dropna(axis="columns", how="all")
    body = known.to_html(index=False, border=0, float_format=lambda v: f"{v:.4g}")
    body = body.replace(' class="dataframe"', "").replace("<th>", '<th scope="col">')
    frame = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(title)}">'
    return f"<h2>{escape(title)}</h2>\n{frame}{body}</div>"
