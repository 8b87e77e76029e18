"""The built HTML as a reader meets it; skipped until `make book` has built it."""

import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from lib.book import explorer, pages
from lib.stability.dynamics import growth_factor
from tests.support.commuting import curvature_of

HTML = pages.ROOT / "_build" / "html" / "book"
pytestmark = pytest.mark.long
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome") or ""
PAGES = pages.executable_pages()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
needs_book = pytest.mark.skipif(not HTML.exists(), reason="the book is not built; run make book")


class Reader(HTMLParser):
    """Collects the text a reader sees, the links, and what the page loads."""

    SILENT = ("script", "style", "code", "pre", "mjx-assistive-mml")

    def __init__(self):
        super().__init__()
        self.silent, self.text, self.links, self.loaded, self.images, self.classes = (
            0,
            [],
            [],
            [],
            [],
            set(),
        )

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.silent += tag in self.SILENT
        self.classes |= set((values.get("class") or "").split())
        if tag == "a":
            self.links.append(values.get("href") or "")
        if tag == "script" and "src" in values:
            self.loaded.append(values["src"])
        if tag == "link" and values.get("rel") == "stylesheet":
            self.loaded.append(values["href"])
        if tag == "img":
            self.images.append(values)

    def handle_endtag(self, tag):
        self.silent -= tag in self.SILENT

    def handle_data(self, data):
        if not self.silent:
            self.text.append(data)


def read(html):
    reader = Reader()
    reader.feed(html)
    return reader


@needs_book
@each_page
def test_page_is_whole_offline_and_opens_in_colab_when_published(page):
    reader = read((HTML / f"{page.stem}.html").read_text())
    path = pages.repository_url().removeprefix("https://github.com/")
    site = "https://colab.research.google.com"
    colab = f"{site}/github/{path}/blob/notebooks/book/{page.stem}.ipynb"
    opened = [link for link in reader.links if link.startswith(site)]
    assert opened == ([] if pages.PLACEHOLDER in path else [colab])
    assert not [src for src in reader.loaded if re.match(r"(https?:)?//", src)]
    assert not {"stderr", "output_stderr", "traceback", "problematic"} & reader.classes
    figures = [image for image in reader.images if "_images" in image.get("src", "")]
    assert figures
    for image in figures:
        assert len(image.get("alt", "")) > 40, image


@needs_book
def test_the_reference_links_to_the_theorems_and_shows_no_markup():
    reader = read((HTML / "api.html").read_text())
    assert not re.search(r"\b(thm|lem|prop)-|\*\w+\*|~lib\.|Alias for", " ".join(reader.text))
    assert sum("#thm-" in link for link in reader.links) > 20


@needs_book
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path")
@each_page
def test_page_shows_no_raw_tex_in_a_browser(page, tmp_path):
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path}",
        "--virtual-time-budget=20000",
        "--dump-dom",
        f"file://{HTML}/{page.stem}.html",
    ]
    dom = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    source = (HTML / f"{page.stem}.html").read_text()
    assert dom.count("<mjx-container") >= source.count('class="math ')
    seen = " ".join(read(dom).text)
    assert not re.search(r"\\[(\[]|\$|\\[a-zA-Z]{2,}|\{glue:|\{prf:|Traceback|Warning:", seen)


ALL = sorted(HTML.glob("*.html")) if HTML.exists() else []
each_built = pytest.mark.parametrize("built", ALL, ids=lambda built: built.stem)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Anchors(HTMLParser):
    """Collects a page's names, the links in its article, its title and its description."""

    def __init__(self):
        super().__init__()
        self.names, self.links, self.description = set(), [], ""
        self.ids = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.names |= {values.get("id"), values.get("name")}
        self.ids += [values["id"]] if values.get("id") else []
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        if tag == "meta" and values.get("name") == "description":
            self.description = values["content"]


def anchors(path, kept={}):  # noqa: B006  every page is read once
    if path not in kept:
        kept[path] = Anchors()
        kept[path].feed(path.read_text())
    return kept[path]


@needs_book
@each_built
def test_links_lead_somewhere_and_a_page_says_what_it_is(built):
    page = anchors(built)
    assert len(page.description) > 40
    (title,) = re.findall(r"<title>(.*?)</title>", built.read_text(), re.S)
    assert len(title.split("—")[0].strip()) > 3
    for link in page.links:
        path, _, name = link.partition("#")
        if re.match(r"\w+:|//", link):
            continue
        target = (built.parent / path).resolve() if path else built
        assert target.exists(), link
        if name and target.suffix == ".html" and not target.name.startswith("genindex"):
            assert name in anchors(target).names, link


@needs_book
@each_built
def test_a_name_stands_once_in_an_article(built):
    """A script that looks for its element by name finds a heading's section otherwise."""
    ids = [name for name in anchors(built).ids if not name.startswith("proof")]  # sphinx_proof's
    assert sorted(ids) == sorted(set(ids))


@needs_book
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path")
@pytest.mark.parametrize("name", ["intro", "explorer"])
@pytest.mark.parametrize("width", [390, 1400])
def test_the_explorer_moves_on_the_pages_that_have_it(name, width, browser):
    context = browser.new_context(offline=True, viewport={"width": width, "height": 800})
    page = context.new_page()
    page.goto((HTML / f"{name}.html").as_uri(), timeout=120_000)
    page.wait_for_selector("#explorer-growth canvas")
    box = page.locator("#explorer-map canvas").first.bounding_box()
    assert box["width"] > 250
    control = page.locator("input[name=alpha]")
    control.press("End")
    setting = dict(explorer.START) | {"alpha": float(control.input_value())}
    page.wait_for_function(
        "document.querySelector('#the-explorer').dataset.drawn === location.hash"
    )
    found = float(page.locator("[data-out=square]").get_attribute("data-value"))
    rho = growth_factor(curvature_of(explorer.family(setting)), explorer.algorithm(setting), 1.0)
    assert setting["eta"] == 1.0
    assert abs(found - math.log(rho) / 2) < 1e-9
    context.close()


@needs_book
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path")
def test_search_finds_without_a_network(browser):
    page = browser.new_context(offline=True).new_page()
    page.goto((HTML.parent / "search.html").as_uri() + "?q=forgettability")
    page.wait_for_selector("#search-results ul.search li a[href='book/coherence.html']")
    page.close()


SINGLE = pages.ROOT / "_build" / "singlehtml" / "book.html"


@pytest.mark.skipif(not SINGLE.exists(), reason="the PDF is not built; run make pdf")
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path")
def test_the_page_that_is_printed_has_all_pictures_and_formulas(browser):
    page, failed = browser.new_page(), []
    page.on("requestfailed", lambda request: failed.append(request.url))
    page.goto(SINGLE.as_uri(), timeout=120_000)
    count = "document.querySelectorAll('{}').length"
    shown = f"{count.format('mjx-container')} >= {count.format('.math')}"
    page.wait_for_function(shown, timeout=120_000)
    page.close()
    assert not failed


@needs_book
def test_the_whole_html_is_small_enough_to_carry():
    size = sum(path.stat().st_size for path in HTML.parent.rglob("*") if path.is_file())
    assert size <= 60e6


@pytest.mark.slow
@needs_book
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path")
@pytest.mark.parametrize("theme", ["light", "dark"])
@each_built
def test_a_page_has_no_serious_fault_of_accessibility(built, theme, browser):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page(color_scheme=theme)
    page.goto(built.as_uri(), timeout=120_000)
    page.wait_for_timeout(500)
    found = axe.run(page).response["violations"]
    page.close()
    serious = [
        (one["id"], [node["html"][:120] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious


@needs_book
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path")
@each_built
def test_a_page_paints_within_two_seconds_and_fits_a_phone(built, browser):
    page = browser.new_page(viewport={"width": 390, "height": 800})
    page.goto(built.as_uri(), timeout=120_000)
    page.wait_for_timeout(500)
    paints = "performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)"
    (paint,) = page.evaluate(paints)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    page.close()
    assert paint <= 2000
    assert wide <= 0
