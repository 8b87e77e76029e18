"""The claims of all pages in one place, read from the notebooks that the pages left when executed.

A page's claims are in its outputs (`lib.store.claims`); nothing is kept by hand but what a reader
adds to them: which claims a proof stands behind, which tell where a statement ends, which answer a
sentence of the paper's abstract or an objection to it. Each is named by words of its sentence, and
words that no claim has, or two have, are an error: so a claim that goes fails the build.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import numpy as np

from lib.store.claims import MIME, ClaimRecord

FIGURE = re.compile(r"Figure (fig-[a-z0-9-]+): ")
HEADING = re.compile(r"^#{1,3} (.+)$", re.M)
TABLES = {"sweeps": "python -m tests.support.faults"}  # what computes a page's, if not `stored`
# Words of claims that a theorem of the book proves; the numbers check it.
PROVED = (
    ("linearized_dynamics", "it agrees with the exact second moment"),
    ("linearized_dynamics", "some rate is stable"),
    ("linearized_dynamics", "In the example $\\kappa =$"),
    ("linearized_dynamics", "negative eigenvalues at each alignment"),
    ("linearized_dynamics", "Dependence within an epoch mostly helps"),
    ("coherence", "The smallest eigenvalue of the counterexample's"),
    ("coherence", "Samples that share no direction"),
    ("coherence", "The two coherence matrices agree"),
    ("thresholds", "The bounds around the exact threshold"),
    ("thresholds", "The threshold is attained at every pair"),
    ("thresholds", "The equation then has the roots"),
    ("thresholds", "from the worst start of length one"),
    ("tangent_model", "Two orthogonal unit samples"),
)
# Claims that say where a statement of the paper, or a plain reading of it, ends.
LIMITS = (
    ("intro", "Nor does this second factor grow steadily"),
    ("linearized_dynamics", "the typical run's square is multiplied by"),
    ("coherence", "A bound, not the frontier"),
    ("hessian_tests", "There is no jump at the typical frontier"),
    ("hessian_tests", "Batch noise alone holds the model"),
    ("hessian_tests", "**Grouped.**"),
    ("hessian_tests", "**CNN.**"),
    ("heat_maps", "Only a signal that is learned does this"),
    ("heat_maps", "In units of the retain edge the frontier barely moves"),
    ("benign_overfitting", "The law holds in the middle"),
    ("real_images", "Escape is not deletion"),
    ("real_images", "both losses rise"),
    ("signal_noise_cnn", "Coherence, steps and distance all rise"),
    ("signal_noise_cnn", "A wrong label is not"),
    ("signal_noise_cnn", "under a retraining yardstick"),
    ("tangent_model", "Curvature grows as samples leave"),
    ("tangent_model", "of the steps are right for most of a class"),
)
ABSTRACT = {
    "unlearning “through the lens of asymptotic linear stability”": (
        ("linearized_dynamics", "some rate is stable"),
        ("linearized_dynamics", "it agrees with the exact second moment"),
        ("real_images", "The network grows as its curvature predicts"),
    ),
    "coherence “within the retain set, within the forget set, and between them”": (
        ("coherence", "The coherence matrix of three data sets"),
        ("coherence", "Samples that share no direction"),
    ),
    "“tight stability thresholds that separate convergence from divergence”": (
        ("thresholds", "The threshold is attained at every pair"),
        ("thresholds", "The bounds around the exact threshold"),
        ("linearized_dynamics", "negative eigenvalues at each alignment"),
    ),
    "“stronger memorization makes forgetting easier”": (
        ("signal_noise_cnn", "Arrow 1"),
        ("signal_noise_cnn", "Arrow 2"),
        ("signal_noise_cnn", "Arrow 3"),
        ("signal_noise_cnn", "A wrong label is not"),
        ("signal_noise_cnn", "under a retraining yardstick"),
    ),
    "“high SNR, highly aligned models resist unlearning”": (
        ("intro", "Most of that is the step size"),
        ("heat_maps", "So the sentence holds"),
        ("heat_maps", "Only a signal that is learned does this"),
        ("random_matrices", "So a shared signal leaves the undamped"),
    ),
    "“Hessian tests and CNN heatmaps align closely with the predicted boundary”": (
        ("hessian_tests", "The released test at its own setting"),
        ("hessian_tests", "Per cent of near cells"),
        ("heat_maps", "Typical beats mean-square"),
        ("hessian_tests", "Batch noise alone holds the model"),
    ),
    "a frontier “as a function of batching, mixing, and data/model alignment”": (
        ("hessian_tests", "Escape against mixing $\\alpha$ and the alignment"),
        ("heat_maps", "the measured frontier rises"),
        ("heat_maps", "The forget batch matters least"),
    ),
    "“grounded in random matrix theory tools”": (
        ("random_matrices", "Where pure noise gives way"),
        ("random_matrices", "The excess is the Tracy–Widom shift"),
        ("random_matrices", "A signal of the forget set's own"),
    ),
}
OBJECTIONS = {
    "Divergence is not deletion.": (
        ("real_images", "Escape is not deletion"),
        ("signal_noise_cnn", "Coherence, steps and distance all rise"),
        ("signal_noise_cnn", "under a retraining yardstick"),
        ("deletion", "A run that goes on to the retrained networks' forget loss"),
    ),
    "Where is membership inference?": (("deletion", "The method whose membership score"),),
    "Where are the baselines?": (
        ("hessian_tests", "What it measures."),
        ("heat_maps", "A prediction that is off does worse"),
        ("deletion", "By tug of war the best of"),
        ("your_model", "The plan's runs are at the target"),
    ),
    "Real images, deep networks, the loss that people train with?": (
        ("real_images", "Observed and predicted growth agree"),
        ("tangent_model", "Steps at which the forget loss passes"),
        ("tangent_model", "runs of the GroupNorm network and the transformer"),
        ("tangent_model", "Curvature grows as samples leave"),
    ),
    "A mean square is not what one run does.": (
        ("hessian_tests", "The released test at its own setting"),
        ("linearized_dynamics", "the typical run's square is multiplied by"),
    ),
    "Aligned models resist because their learning rate is smaller.": (
        ("intro", "Most of that is the step size"),
        ("signal_noise_cnn", "Both factors are large"),
    ),
}
# Numbers in prose that state a setting or a name, not a result: words around each.
SETTINGS = {
    "benign_overfitting": ("100 × 100 cells", "with probability 0.1", "at rate 0.1", "at most 0.2"),
    "changelog": ("2×2",),
    "claims": ("20 % more or less",),
    "deletion": (
        "5, 4, 1 and 4 times",
        "70 % of a class",
        "half a 95 % interval",
        "the 95 % intervals of",
    ),
    "heat_maps": ("0.95 of the retain edge", "21 × 21 cells"),
    "hessian_tests": ("prediction 20 % off", "at 0.8 and at 1.2 times", "grown 1000-fold"),
    "intro": ("CC BY 4.0",),
    "linearized_dynamics": ("curvature 1.96",),
    "random_matrices": ("square 1.75",),
    "real_images": ("8 × 8 handwritten",),
    "signal_noise_cnn": ("from 0.1 to 1.5", "one ratio of 0.5"),
    "tangent_model": ("70 % of a class", "kept 95 % of", "2 steps or 10 %", "and times 1.5"),
    "thresholds": ("2×2",),
    "your_model": (
        "from 1 to 100 %",
        "its end at most 2.5 times",
        "by more than 10 %",
        "70 % of a class",
        "the floor 99 %",
        "at least −0.5 points",
        "its 95 % interval",
        "(0.1, the code of",
        "all at mixing 0.1",
        "70 % of the dresses",
    ),
}
NUMBER = re.compile(
    r"(?<![\w.])\d+\.\d+(?![\w.]*\w)|\d+(?:[.,]\d+)?\s?(?:%|per cent\b)"
    r"|\d+(?:-fold\b| times\b)|×\s?\d"
)
# Code, mathematics, roles with what they take, and where links lead; in this order.
NO_PROSE = [
    re.compile(pattern, re.S)
    for pattern in (
        r"\A---\n.*?\n---\n",
        r"```.*?```",
        r"\$\$.*?\$\$|\\begin\{.*?\\end\{\w+\*?\}",
        r"(?<!\\)\$.+?(?<!\\)\$",
        r"(?:\{[\w:]+\})?`[^`]*`|(?<=\])\([^)]*\)|arXiv [\d.]+\d",
    )
]


@dataclass(frozen=True)
class Entry:
    """A claim and where it stands: page, its title, and a link's target there."""

    page: str
    title: str
    target: str
    record: ClaimRecord

    @property
    def is_claim(self) -> bool:
        """Or else numbers that are shown and claim nothing."""
        return self.record.verdict == "holds"

    @property
    def is_sensitive(self) -> bool:
        """Whether some number of it, 20 % off or reversed, breaks it."""
        return any(any(found) for found in self.record.breaks.values())

    @property
    def verdict(self) -> str:
        """In a word: "proved", "measured" or "limit"."""
        for verdict, words in (("limit", LIMITS), ("proved", PROVED)):
            if any(page == self.page and text in self.record.sentence for page, text in words):
                return verdict
        return "measured"


def reading_order(book: Path) -> list[str]:
    """The names of the pages as the table of contents has them; none where a page stands alone."""
    contents = book.resolve().parent / "_toc.yml"
    return re.findall(r": book/(\w+)", contents.read_text()) if contents.exists() else []


def entries(book: Path) -> list[Entry]:
    """The claims of all notebooks in a folder but those on claims themselves, in reading order.

    None where a page stands alone, as in Colab.

    Raises:
        ValueError: words above that no claim says, or more than one; an insensitive claim.
    """
    order = reading_order(book)
    paths = sorted(book.glob("*.ipynb"), key=lambda path: (*order, path.stem).index(path.stem))
    found = [entry for path in paths if path.stem != "claims" for entry in _entries_of(path)]
    if not found:
        return []
    for entry in found:
        if entry.is_claim and not entry.is_sensitive:
            raise ValueError(f"{entry.page}: no number breaks the claim {entry.record.sentence!r}")
    for key in (*PROVED, *LIMITS, *_answers(ABSTRACT), *_answers(OBJECTIONS)):
        select(found, key)
    return found


def _answers(several: dict[str, tuple[tuple[str, str], ...]]) -> Iterable[tuple[str, str]]:
    return (key for keys in several.values() for key in keys)


def select(found: list[Entry], key: tuple[str, str]) -> list[Entry]:
    """The claim of a page that has these words, all for no words; none where the page has not run.

    Raises:
        ValueError: there is no such claim, or more than one.
    """
    page, words = key
    on_page = [one for one in found if one.page == page]
    there = [one for one in on_page if words in one.record.sentence]
    if on_page and words and len(there) != 1:
        raise ValueError(f"{page} must have one claim with the words {words!r}, got {len(there)}")
    return [one for one in there if one.is_claim]


def _entries_of(path: Path) -> list[Entry]:
    title = target = figure = ""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            for heading in HEADING.findall(re.sub(r"```.*?```", "", cell.source, flags=re.S)):
                title, target = title or heading, _slug(heading)
        for output in cell.get("outputs", []):
            content = output.get("metadata", {}).get(MIME)
            if content:
                record = ClaimRecord.from_json(content)
                found.append(Entry(path.stem, title, figure or target, record))
            shown = FIGURE.match(output.get("data", {}).get("text/plain", ""))
            figure = shown[1] if shown else ""
    return found


def _slug(heading: str) -> str:
    """The anchor that MyST gives a heading (myst_heading_anchors)."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def prose_of(text: str) -> str:
    """A page's words without its code, formulas, roles and addresses, on one line."""
    for pattern in NO_PROSE:
        text = pattern.sub(" ", text)
    return " ".join(text.split())


def loose_numbers(page: Path) -> list[str]:
    """Decimals, percentages and factors in a page's prose that are neither claim nor setting."""
    prose = prose_of(page.read_text())
    for words in SETTINGS.get(page.stem, ()):
        if words not in prose:
            raise ValueError(f"{page.name} must have the words {words!r}, which are let through")
        prose = prose.replace(words, " ")
    return [prose[max(0, m.start() - 30) : m.end() + 10] for m in NUMBER.finditer(prose)]


# --- as Markdown ----------------------------------------------------------------------------------

VERDICTS = {"proved": "proved, and checked", "measured": "measured", "limit": "says where it ends"}


def to_markdown(several: Iterable[Entry], *, title: bool = False) -> str:
    """A list of claims: sentence, verdict, place, and the numbers that it rests on.

    Args:
        several: what to list.
        title: whether to name each one's chapter.
    """
    return "\n".join(_item(entry, title) for entry in several)


def _item(entry: Entry, title: bool) -> str:
    parts = re.split(r"\n\s*\n", entry.record.sentence)
    whole = " ".join(" ".join(part.split()) for part in parts if not part.lstrip().startswith("|"))
    text = _beginning(whole)
    place = entry.title if title else "there" if entry.target else "page"
    named = entry.target.startswith("fig-")  # a name known on every page
    link = f"[{place}]({'' if named else entry.page + '.md'}#{entry.target})"
    verdict = VERDICTS[entry.verdict] if entry.is_claim else "shown"
    return f"- {text}\n  *{verdict}*, {link}{_numbers(entry.record)}"


def _beginning(text: str, letters: int = 400) -> str:
    """A text's first sentences, at least so long; formulas stay whole."""
    for found in re.finditer(r"[.:?] ", text):
        if found.end() > letters and text[: found.end()].count("$") % 2 == 0:
            return f"{text[: found.end()]}…"
    return text


def _numbers(record: ClaimRecord) -> str:
    names = list(record.breaks) or list(record.numbers)
    shown = [f"`{name}` {_short(record.numbers[name])}" for name in names]
    return f"; {'rests on' if record.breaks else 'numbers'} {', '.join(shown)}" if shown else ""


def _short(value: Any) -> str:
    if isinstance(value, np.ndarray):
        if value.size == 1:
            return _short(value.item())
        return f"({value.size} numbers, {value.min():.4g} to {value.max():.4g})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def cost(book: Path, page: str) -> str:
    """What recomputes a page's claims, and processor time of the tables that it reads."""
    command = f"`papermill book/{page}.ipynb out.ipynb`"
    tables = [*(book / "results" / page).glob("*.json")]
    seconds = sum(json.loads(path.read_text())["seconds"] for path in tables)
    if not tables:
        return command
    again = TABLES.get(page, f"python -m lib.book.stored {page}")
    return (
        f"{command}; for the tables it reads, once those in `book/results/{page}` are deleted, "
        f"`{again}`, {seconds / 60:.0f} processor minutes"
    )


def pages_in(book: Path) -> list[Path]:
    """The Markdown files of a folder's pages; none where a page stands alone, as in Colab."""
    return sorted(book.glob("*.md"))


def answers(found: list[Entry], sentence: str, keys: Iterable[tuple[str, str]]) -> str:
    """A sentence in bold, and below it the claims that answer it."""
    several = [entry for key in keys for entry in select(found, key)]
    listed = to_markdown(several, title=True) or "No claim of the book answers this yet."
    return f"**{sentence}**\n\n{listed}"


def chapter(found: list[Entry], page: str, book: Path) -> str:
    """A chapter's claims under its title, and what computes them again."""
    several = [entry for entry in found if entry.page == page]
    head = f"[**{several[0].title}**]({page}.md)\n\nComputed again by {cost(book, page)}."
    return f"{head}\n\n{to_markdown(several)}"
