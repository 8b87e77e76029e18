"""The book's chapters as its pages have them: titles, reading times, and which builds on which."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from lib.book.figures import RETAIN
from lib.book.register import prose_of

WORDS_A_MINUTE = 200
LINK = re.compile(r"\]\((\w+)(?:\.md)?(?:#[\w-]*)?\)")
LABEL = re.compile(r"^(?::label: |\()([\w-]+)(?:\)=)?$", re.M)  # of a theorem, or a section
REFERENCE = re.compile(r"\{(?:prf:)?(?:num)?ref\}`(?:[^`<]*<)?([\w-]+)>?`")


@dataclass(frozen=True)
class Chapter:
    """A page of the book's first part: file name, title, minutes to read, earlier ones it names."""

    name: str
    title: str
    minutes: int
    earlier: tuple[str, ...]

    @property
    def short(self) -> str:
        """The title up to its colon."""
        return self.title.split(":")[0]


def chapters(book: Path) -> list[Chapter]:
    """The chapters in reading order; none where a page stands alone, as in Colab.

    Minutes are at 200 words each, of prose, captions and claims; formulas count as one word.
    """
    toc = book.resolve().parent / "_toc.yml"
    if not toc.exists():
        return []
    part = toc.read_text().split("- caption:")[1]
    found: list[Chapter] = []
    home: dict[str, str] = {}  # the chapter of a label
    for name in re.findall(r"file: book/(\w+)", part):
        text = (book / f"{name}.md").read_text()
        (title, *_) = re.findall(r"^# (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
        known = [one.name for one in found]
        names = {*LINK.findall(text), *(home.get(label) for label in REFERENCE.findall(text))}
        home |= dict.fromkeys(LABEL.findall(text), name)
        minutes = max(1, round(_words(text) / WORDS_A_MINUTE))
        found.append(Chapter(name, title, minutes, tuple(k for k in known if k in names)))
    return found


def _words(text: str) -> int:
    said = re.findall(r'^\s*"(.*)"$', text, re.M)  # captions and claims, line by line
    return len(prose_of(text).split()) + sum(len(line.split()) for line in said)


def doors(book: Path) -> str:
    """Three ways on, as a Markdown table; the pages that are there decide where they lead."""
    model = "your_model" if (book / "your_model.md").exists() else "tangent_model"
    return (
        "| Understand | Try on your model | Check a claim |\n|:--|:--|:--|\n"
        "| [Why an optimum holds or lets go](linearized_dynamics.md), from the update rule to "
        "exact thresholds. All sliders are in the [explorer](explorer.md). "
        f"| [A learning rate, a mixing and a stopping rule]({model}.md), before the model is "
        "touched. "
        "| [Every claim of the book](claims.md) with its numbers, its place and the command that "
        "computes it again. |"
    )


def table(several: Iterable[Chapter]) -> str:
    """The chapters with their reading times, as a Markdown table."""
    rows = [f"| [{one.title}]({one.name}.md) | {one.minutes} min |" for one in several]
    return "\n".join(["| chapter | to read |", "|:--|--:|", *rows])


def chapter_map(several: list[Chapter]) -> Figure:
    """Chapters from top to bottom; an arc leads from each to the earlier ones that it names."""
    figure, axes = plt.subplots(figsize=(7, 0.42 * len(several) + 0.4))
    row = {one.name: k for k, one in enumerate(several)}
    angles = np.linspace(-np.pi / 2, np.pi / 2, 40)
    for one in several:
        for other in one.earlier:
            middle, half = (row[one.name] + row[other]) / 2, (row[one.name] - row[other]) / 2
            arc = 0.35 * half * np.cos(angles), middle + half * np.sin(angles)
            axes.plot(*arc, color=RETAIN, alpha=0.6, linewidth=1.5)
        axes.text(-0.15, row[one.name], one.short, ha="right", va="center", fontsize=12)
    axes.plot(np.zeros(len(several)), range(len(several)), "o", color=RETAIN, markersize=9)
    axes.set(xlim=(-3.2, 2.3), ylim=(len(several) - 0.4, -0.6))
    axes.axis("off")
    return figure
