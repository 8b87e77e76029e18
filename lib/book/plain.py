"""Pages' Markdown without the book's roles and directives, as Colab and plain Jupyter can show it.

The published notebooks are written so (`python -m lib.book.pages stamp`): a theorem is a bold line
and its text, a reference to it its title, a citation authors and year, a numbered equation a tag.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DIRECTIVE = re.compile(r"^(`{3,})\{prf:(\w+)\} ?(.*)\n(?:^:label: .+\n)?\n?((?:.*\n)*?)^\1$", re.M)
LABELLED = re.compile(r"^`{3,}\{prf:(\w+)\} ?(.*)\n:label: (.+)$", re.M)
EQUATION = re.compile(r"\$\$ \((eq-[\w-]+)\)")
ROLE = re.compile(r"\{(cite:t|cite|eq|prf:ref)\}`([^`]+)`")
ENTRY = re.compile(r"^@\w+\{(\S+),\n((?:.*\n)*?)\}", re.M)
FIELD = re.compile(r"^\s*(author|year)\s*=\s*\{(.*)\},?$", re.M)


@dataclass(frozen=True)
class Names:
    """What a label or a key stands for.

    Attributes:
        theorems: by label, "Theorem (Exact criterion)".
        equations: by label, page and number there.
        papers: by key, authors and year.
    """

    theorems: dict[str, str]
    equations: dict[str, tuple[str, int]]
    papers: dict[str, tuple[str, str]]


def names(pages: Iterable[Path], references: Path) -> Names:
    """Read what all pages label, and the bibliography."""
    theorems: dict[str, str] = {}
    equations: dict[str, tuple[str, int]] = {}
    for page in pages:
        text = page.read_text()
        for kind, title, label in LABELLED.findall(text):
            theorems[label] = f"{kind.capitalize()} ({title})"
        for number, label in enumerate(EQUATION.findall(text), 1):
            equations[label] = page.stem, number
    return Names(theorems, equations, dict(map(_paper, ENTRY.findall(references.read_text()))))


def _paper(entry: tuple[str, str]) -> tuple[str, tuple[str, str]]:
    fields = dict(FIELD.findall(entry[1]))
    last = [author.split(",")[0].strip("{} ") for author in fields["author"].split(" and ")]
    shown = last[0] + (f" and {last[1]}" if len(last) == 2 else " et al." if last[2:] else "")
    return entry[0], (shown, fields["year"])


def plain(text: str, known: Names, page: str) -> str:
    """A Markdown cell of a page without roles and directives; one that has none as it is.

    Raises:
        ValueError: a label or key that nobody defines.
    """
    text = DIRECTIVE.sub(_box, text)
    text = EQUATION.sub(lambda m: rf"\tag{{{known.equations[m[1]][1]}}}$$", text)

    def role(match: re.Match[str]) -> str:
        try:
            return _role(match[1], match[2], known, page)
        except KeyError as error:
            raise ValueError(f"{page} must refer to what there is, got {error}") from None

    return ROLE.sub(role, text)


def _box(match: re.Match[str]) -> str:
    _, kind, title, body = match.groups()
    head = f"**{kind.capitalize()}{f' ({title})' if title else ''}.**"
    return f"{head} {body.strip()}" + (" ∎" if kind == "proof" else "")


def _role(role: str, target: str, known: Names, page: str) -> str:
    if role == "prf:ref":
        words, _, label = target.rpartition(" <")
        return words or known.theorems[label.rstrip(">")]
    if role == "eq":
        where, number = known.equations[target]
        return f"({number})" if where == page else f"({number}) of [that page]({where}.md)"
    papers = [known.papers[key.strip()] for key in target.split(",")]
    if role == "cite:t":
        return ", ".join(f"{authors} ({year})" for authors, year in papers)
    return f"({'; '.join(f'{authors}, {year}' for authors, year in papers)})"
