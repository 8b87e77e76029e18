"""Notebooks for Colab: what roles and directives become, and that no page keeps any."""

import re

import jupytext
import pytest

from lib.book import pages
from lib.book.plain import Names, names, plain

KNOWN = Names({"thm-a": "Theorem (A)"}, {"eq-a": ("here", 2)}, {"x": ("A and B", "2024")})
ROLE = re.compile(r"(?<!`)\{[\w:.+-]+\}`|^[`:]{3,}\{", re.M)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("See {prf:ref}`thm-a`.", "See Theorem (A)."),
        ("The {prf:ref}`sandwich <thm-a>`.", "The sandwich."),
        ("By {eq}`eq-a`,", "By (2),"),
        (
            "As {cite:t}`x` say {cite}`x, x`.",
            "As A and B (2024) say (A and B, 2024; A and B, 2024).",
        ),
        ("$$\nx\n$$ (eq-a)\n", "$$\nx\n\\tag{2}$$\n"),
        (
            "```{prf:theorem} A\n:label: thm-a\n\nOf {eq}`eq-a`.\n```\n",
            "**Theorem (A).** Of (2).\n",
        ),
        ("````{prf:proof}\nA.\n```\nx\n```\nB.\n````", "**Proof.** A.\n```\nx\n```\nB. ∎"),
        ("Plain $x_{ab}$ and `{x}` stay.", "Plain $x_{ab}$ and `{x}` stay."),
    ],
)
def test_roles_and_directives_become_words(text, shown):
    assert plain(text, KNOWN, "here") == shown
    assert plain(shown, KNOWN, "here") == shown


def test_an_equation_of_another_page_says_where_it_is():
    assert plain("{eq}`eq-a`", KNOWN, "there") == "(2) of [that page](here.md)"


@pytest.mark.parametrize("text", ["{prf:ref}`thm-b`", "{eq}`eq-b`", "{cite}`y`"])
def test_what_nobody_defines_is_refused(text):
    with pytest.raises(ValueError, match=r"there must refer to what there is, got '[\w-]+'"):
        plain(text, KNOWN, "there")


@pytest.mark.parametrize("page", pages.executable_pages(), ids=lambda page: page.stem)
def test_no_page_keeps_a_role(page):
    known = names(sorted(pages.BOOK.glob("*.md")), pages.BOOK / "references.bib")
    for cell in jupytext.read(page).cells:
        if cell.cell_type == "markdown":
            assert not ROLE.search(plain(cell.source, known, page.stem)), cell.source
