"""The report: one file, nothing from the network, alt texts, the same bytes each time."""

import re
import shutil
from html.parser import HTMLParser
from typing import Any

import pytest

from lib.unlearning import plan
from lib.unlearning.report import html
from tests.unlearning.test_planning import DATASET, FORGET, HOLDOUT, QUICK, trained

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome") or ""


@pytest.fixture(scope="module")
def page():
    return html(plan(trained(), DATASET, FORGET, holdout=HOLDOUT, **QUICK))


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.found = [], []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "path", "use", "br", "img", "rect", "circle", "image"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()


def test_nothing_comes_from_the_network(page):
    text = re.sub(r'"data:image/png;base64,[^"]*"', "", page)  # a colour bar
    assert not re.search(r"https?:|//[a-z]|@import|src=|data:", text)


def test_figures_have_alt_texts_and_ids_of_their_own(page):
    tags = Tags()
    tags.feed(page)
    figures = [attrs for tag, attrs in tags.found if tag == "svg"]
    assert len(figures) == 3
    assert all(f["role"] == "img" and len(f["aria-label"]) > 40 for f in figures)
    ids = [attrs["id"] for _, attrs in tags.found if "id" in attrs]
    assert len(ids) == len(set(ids))
    for used in re.findall(r'(?:href="#|url\(#)([\w-]+)', page):
        assert used in ids
    assert not tags.open


def test_it_fits_a_phone_and_the_dark(page):
    assert 'name="viewport"' in page
    assert "prefers-color-scheme:dark" in page
    assert page.count('class="scroll" tabindex="0" role="region"') == 2


def test_a_plan_without_recommendation_has_a_page(tmp_path):
    found = plan(trained(), DATASET, FORGET, holdout=HOLDOUT, target=1e-6)
    assert "nothing to do" in found.to_html(tmp_path / "plan.html").read_text()


def test_the_same_plan_gives_the_same_bytes(page):
    assert html(plan(trained(), DATASET, FORGET, holdout=HOLDOUT, **QUICK)) == page


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.mark.long
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 800, 1400])
@pytest.mark.parametrize("recommends", [True, False])
def test_a_reader_without_network_sees_it_all(page, browser, theme, width, recommends, tmp_path):
    """No serious fault of accessibility, nothing asked for or logged, as wide as the window."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    file = tmp_path / "plan.html"
    nothing: dict[str, Any] = {"learning_rates": 1e-4, "steps": 2, "seeds": 1, "verify": 0}
    if not recommends:
        page = html(plan(trained(), DATASET, FORGET, holdout=HOLDOUT, **{**QUICK, **nothing}))
    file.write_text(page, encoding="utf-8")
    context = browser.new_context(color_scheme=theme, viewport={"width": width, "height": 800})
    context.set_offline(True)
    opened, asked, logged = context.new_page(), [], []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("console", lambda message: logged.append(message.text))
    opened.goto(file.as_uri())
    wide = opened.evaluate("document.documentElement.scrollWidth - innerWidth")
    seen = opened.evaluate("[...document.querySelectorAll('svg, table')].map(e => e.clientHeight)")
    found = axe.run(opened).response["violations"]
    context.close()
    assert asked == [file.as_uri()]
    assert not logged
    assert wide <= 0
    assert min(seen) > 50
    serious = [one["id"] for one in found if one["impact"] in ("serious", "critical")]
    assert not serious
