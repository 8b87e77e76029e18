"""The register of claims: where it finds them, what it refuses, what it lets through in prose."""

import nbformat
import numpy as np
import pytest

from lib.book import contents, pages, register
from lib.store.claims import MIME, ClaimRecord


@pytest.fixture(scope="module")
def entries():
    return register.entries(pages.BOOK)


def test_every_claim_of_every_page_is_listed_once_and_is_sensitive(entries):
    found = {path.stem: path.read_text().count(f'"{MIME}"') for path in pages.BOOK.glob("*.ipynb")}
    found.pop("claims", None)
    for page, count in found.items():
        assert sum(entry.page == page for entry in entries) == count, page
    claims = [entry for entry in entries if entry.is_claim]
    assert len(claims) >= 60
    assert all(entry.is_sensitive for entry in claims)
    assert {entry.verdict for entry in claims} == {*register.VERDICTS}
    assert any(not entry.is_claim for entry in entries)


def test_words_that_no_claim_has_or_two_have_are_refused(entries, monkeypatch):
    for words, count in (("never said anywhere", 0), ("the", "")):
        with pytest.raises(ValueError, match=rf"intro must have one claim .* got {count}"):
            register.select(entries, ("intro", words))
    monkeypatch.setattr(register, "PROVED", (("intro", "never said"),))
    with pytest.raises(ValueError, match="never said"):
        register.entries(pages.BOOK)


def test_an_insensitive_claim_is_refused(tmp_path):
    record = ClaimRecord("x", "It is 1.", "holds", {"a": 1.0}, {"a": [False, False]})
    notebook = nbformat.v4.new_notebook()
    output = nbformat.v4.new_output(
        "display_data", {"text/markdown": "It is 1."}, metadata={MIME: record.to_json()}
    )
    notebook.cells = [nbformat.v4.new_code_cell("", outputs=[output])]
    nbformat.write(notebook, tmp_path / "page.ipynb")
    with pytest.raises(ValueError, match="page: no number breaks the claim"):
        register.entries(tmp_path)


def test_a_page_alone_has_no_list_and_says_so(tmp_path):
    assert register.entries(tmp_path) == []
    assert register.pages_in(tmp_path) == []
    assert contents.chapters(tmp_path) == []


@pytest.mark.parametrize("page", sorted(pages.BOOK.glob("*.md")), ids=lambda page: page.stem)
def test_no_number_stands_in_prose_that_is_no_claim(page):
    assert not register.loose_numbers(page)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It grows 3.5 a step.", 1),
        ("It grows by 20 % a step, 146-fold in all, 3 times more, or 5 per cent.", 4),
        ("In $x = 3.5$, `1.5`, {cite}`a2.5`, [here](a3.5.md), arXiv 2602.02986.", 0),
        ("```python\nx = 3.5\n```\n", 0),
        ("Of 200 images, in 2026, Python 3.11.7.", 0),
    ],
)
def test_what_counts_as_a_number_in_prose(tmp_path, text, found):
    page = tmp_path / "page.md"
    page.write_text(f"---\na: 1.5\n---\n{text}")
    assert len(register.loose_numbers(page)) == found


def test_a_setting_that_no_page_has_any_more_is_refused(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("Nothing.")
    monkeypatch.setitem(register.SETTINGS, "page", ("at 0.5",))
    with pytest.raises(ValueError, match=r"page.md must have the words 'at 0.5'"):
        register.loose_numbers(page)


def test_items_name_verdict_place_and_numbers(entries):
    (entry,) = register.select(entries, ("thresholds", "The threshold is attained"))
    text = register.to_markdown([entry])
    assert text.startswith("- **The threshold is attained at every pair of coherences.**")
    assert "*proved, and checked*, [there](#fig-tightness)" in text
    assert "`formula` (64 numbers, " in text
    assert register._short(np.array([2.0])) == "2"
    assert register._beginning("A $x. y$ b. " * 60).count("$") % 2 == 0


def test_an_objection_whose_chapter_is_missing_is_open(entries):
    text = register.answers(entries, "Why?", (("no_such_page", ""), ("no_other", "words")))
    assert text == "**Why?**\n\nNo claim of the book answers this yet."


def test_chapters_come_from_the_table_of_contents_and_the_pages_links(tmp_path):
    book = tmp_path / "book"
    book.mkdir()
    (tmp_path / "_toc.yml").write_text(
        "root: book/a\nparts:\n  - caption: x\n    chapters:\n      - file: book/b\n"
        "      - file: book/c\n  - caption: y\n    chapters:\n      - file: book/d\n"
    )
    (book / "b.md").write_text("# First: of two\n" + "word " * 390 + "[on](c.md)")
    (book / "c.md").write_text("# Second\n[back](b.md#there) and [out](d.md)")
    first, second = contents.chapters(book)
    assert (first.short, first.minutes, first.earlier) == ("First", 2, ())
    assert (second.minutes, second.earlier) == (1, ("b",))
    assert "| [First: of two](b.md) | 2 min |" in contents.table([first, second])
    assert "[A learning rate, a mixing and a stopping rule](tangent_model.md)" in contents.doors(
        book
    )
    (book / "your_model.md").touch()
    assert "](your_model.md)" in contents.doors(book)
