"""The explorer: its JavaScript against lib in a real browser, its page in a reader's hands."""

import math
import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lib.book import explorer
from lib.stability.data_coherence import coherence
from lib.stability.dynamics import critical_learning_rate, critical_mixing, growth_factor
from lib.stability.exponents import axis_laws, growth_exponents
from tests.support.commuting import curvature_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome") or ""
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on the path"),
]
FORMULAS = (explorer.HERE / "explorer_formulas.js").read_text()
POINTS = 10_000


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def settings():
    """Random points of the sliders' ranges; without momentum every second one."""
    random = np.random.default_rng(0)
    found = []
    for k in range(POINTS):
        one: dict[str, Any] = {
            s.name: int(random.integers(int(s.low), int(s.high) + 1)) if s.step == 1
            else float(random.uniform(s.low, s.high))
            for s in explorer.SLIDERS
        }  # fmt: skip
        one["sampling"] = list(explorer.SAMPLING)[k % 3]
        found.append(one | {"beta": 0.0} if k % 2 else one)
    return found


@pytest.fixture(scope="module")
def computed(browser, settings):
    """Every closed form at every point, by the browser."""
    page = browser.new_page()
    page.evaluate(FORMULAS.replace("var formulas =", "globalThis.formulas ="))
    names = ["meanExponent", "meanSquareExponent", "typicalExponent", "meanRate"]
    names += ["meanSquareRate", "criticalMixing"]
    call = f"several => several.map(s => {names}.map(name => String(formulas[name](s))))"
    rows = page.evaluate(call, settings)
    table = {
        name: np.array([float(row[k].replace("Infinity", "inf")) for row in rows])
        for k, name in enumerate(names)
    }
    ends = page.evaluate("several => several.map(s => formulas.paths(s, 20).square[20])", settings)
    table["end"] = np.array(ends, dtype=float)
    return table


def moments_of(setting):
    """Mean and variance of Â on each axis, by summing over its law: X = 1 − ηÂ at η = 1."""
    laws = axis_laws(explorer.family(setting), explorer.algorithm(setting), 1.0)
    means = [float(w @ (1 - X)) for w, X in laws]
    return [(a, float(w @ (1 - X - a) ** 2)) for a, (w, X) in zip(means, laws, strict=True)]


@pytest.fixture(scope="module")
def moments(settings):
    """Mean and variance of Â: (points, axes, 2)."""
    return np.array([moments_of(one) for one in settings])


def column(settings, name):
    return np.array([one[name] for one in settings])[:, None]


def dense(mean, variance, eta, beta):
    """Matrices of (δ_k², δ_kδ_{k−1}, δ_{k−1}²) and of (δ_k, δ_{k−1}), for arrays of axes."""
    s = 1 + beta - eta * mean
    beta, none, one = beta + 0 * s, 0 * s, 1 + 0 * s
    square = s**2 + eta**2 * variance
    rows = [[square, -2 * beta * s, beta**2], [s, -beta, none], [one, none, none]]
    first = [[s, -beta], [one, none]]
    return (np.moveaxis(np.array(m), (0, 1), (-2, -1)) for m in (rows, first))


def radius(matrices):
    return np.abs(np.linalg.eigvals(matrices)).max(axis=(-2, -1))  # over axes and eigenvalues


def matrices(settings, moments):
    eta, beta = column(settings, "eta"), column(settings, "beta")
    return dense(moments[..., 0], moments[..., 1], eta, beta)


def test_exponents_without_momentum_are_lib_s_at_random_points(settings, computed):
    rows = [k for k, one in enumerate(settings) if one["beta"] == 0]
    assert len(rows) == POINTS // 2
    for k in rows:
        one = settings[k]
        found = growth_exponents(explorer.family(one), explorer.algorithm(one), one["eta"])
        assert abs(computed["meanExponent"][k] - found.mean) < 1e-9, one
        assert abs(computed["meanSquareExponent"][k] - found.mean_square) < 1e-9, one
        assert abs(computed["typicalExponent"][k] - found.typical) < 1e-9, one


def test_exponents_with_momentum_are_those_of_the_dense_recursion(settings, computed, moments):
    second, first = matrices(settings, moments)
    square, mean = np.log(radius(second)) / 2, np.log(radius(first))
    np.testing.assert_allclose(computed["meanSquareExponent"], square, rtol=0, atol=1e-9)
    # At a double root the mean's modulus is known to the root of the rounding.
    np.testing.assert_allclose(computed["meanExponent"], mean, rtol=0, atol=1e-7)
    assert (np.isnan(computed["typicalExponent"]) == (column(settings, "beta")[:, 0] > 0)).all()


def test_paths_are_those_of_the_dense_recursion(settings, computed, moments):
    second, _ = matrices(settings, moments)
    ends = np.linalg.matrix_power(second, 20).sum(axis=-1)[..., 0].mean(axis=1)
    np.testing.assert_allclose(computed["end"], ends, rtol=1e-9, atol=1e-12)


def test_frontiers_are_where_the_exponents_vanish(settings, computed, moments):
    beta, (a, v) = column(settings, "beta"), np.moveaxis(moments, -1, 0)
    stable = (a > 1e-12).all(axis=1)
    mean = np.where(stable, (2 * (1 + beta) / a).min(axis=1), 0)
    rates = 2 * a * (1 - beta**2) / ((1 - beta) * a**2 + (1 + beta) * v)
    square = np.where(stable, rates.min(axis=1), 0)
    np.testing.assert_allclose(computed["meanRate"], mean, rtol=1e-9)
    np.testing.assert_allclose(computed["meanSquareRate"], square, rtol=1e-9)


def test_lib_s_matrices_say_the_same(settings, computed):
    """Growth, critical rate and critical mixing from Gram matrices, as users' models have them."""
    for k in range(0, POINTS, 100):
        one = settings[k]
        curvature = curvature_of(explorer.family(one))
        update = replace(explorer.algorithm(one), momentum=one["beta"])
        rate = critical_learning_rate(curvature, update)
        assert computed["meanSquareRate"][k] == pytest.approx(rate, rel=1e-9), one
        rho = growth_factor(curvature, update, one["eta"])
        assert abs(computed["meanSquareExponent"][k] - math.log(rho) / 2) < 1e-9, one
        mixing = critical_mixing(curvature, one["damping"])
        assert computed["criticalMixing"][k] == pytest.approx(mixing, rel=1e-9), one


def test_the_sliders_of_alignment_and_coherence_are_lib_s(settings):
    for one in settings[:50]:
        found = coherence(curvature_of(explorer.family(one)))
        wanted = one["sr"], one["sf"], one["chi"]
        assert (found.retain, found.forget, found.cross) == pytest.approx(wanted, rel=1e-9)


def test_the_typical_frontier_is_where_lib_s_exponent_changes_sign(browser, settings):
    page = browser.new_page()
    page.evaluate(FORMULAS.replace("var formulas =", "globalThis.formulas ="))
    rates = list(np.geomspace(0.05, 20, 61))
    for one in [s for s in settings if s["beta"] == 0][:100]:
        for rate, up in page.evaluate("([s, r]) => formulas.typicalRates(s, r)", [one, rates]):
            law = explorer.family(one), explorer.algorithm(one)
            below, above = (growth_exponents(*law, rate * f).typical for f in (1 - 1e-7, 1 + 1e-7))
            assert (below > 0, above > 0) == (not up, up), (one, rate)


def test_sampled_runs_have_the_exact_mean_square(browser):
    page = browser.new_page()
    page.evaluate(FORMULAS.replace("var formulas =", "globalThis.formulas ="))
    for sampling in explorer.SAMPLING:
        for beta in (0.0, 0.5):
            one = dict(explorer.START) | {"sampling": sampling, "beta": beta, "eta": 0.4}
            runs = page.evaluate("s => formulas.simulate(s, 6, 20000, 7).map(p => p[6])", one)
            exact = page.evaluate("s => formulas.paths(s, 6).square[6]", one)
            error = np.std(runs) / math.sqrt(len(runs))
            assert abs(np.mean(runs) - exact) < 4 * error < 0.2 * exact


# --- the page, from a file, with the network off -------------------------------------------------


@pytest.fixture(scope="module")
def offline(browser, tmp_path_factory):
    file = tmp_path_factory.mktemp("explorer") / "page.html"
    file.write_text(f"<!doctype html><meta charset=utf-8><body>{explorer.explorer().data}")
    context = browser.new_context(offline=True)
    asked, failed = [], []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("#explorer-growth canvas")
    yield page
    assert not failed
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)


READ = """() => {
  const model = (name) => Bokeh.documents.map(d => d.get_model_by_name(name)).find(m => m);
  const last = (name) => [...model(name).data.y].at(-1);
  const value = (name) => document.querySelector(`[data-out=${name}]`).dataset.value;
  const here = model("here").data;
  return {
    alpha: here.x[0], eta: here.y[0], square: last("square_path"), exponent: value("square"),
    rate: value("square_rate"), typical: value("typical"), runs: model("runs").data.ys[0][60],
  };
}"""


def settled(page):
    page.wait_for_function(
        "document.querySelector('#the-explorer').dataset.drawn === location.hash"
    )
    page.wait_for_timeout(100)
    return page.evaluate(READ)


@pytest.mark.parametrize("slider", explorer.SLIDERS, ids=lambda slider: slider.name)
@pytest.mark.parametrize("key", ["ArrowRight", "Home", "End"])
def test_each_slider_moves_the_figure_to_lib_s_values(offline, slider, key):
    offline.click("button[name=reset]")
    before = settled(offline)
    control = offline.locator(f"input[name={slider.name}]")
    control.focus()
    control.press(key)
    found, value = settled(offline), float(control.input_value())
    assert slider.low <= value <= slider.high
    if key == "ArrowRight":
        assert value == pytest.approx(slider.start + slider.step)
    setting = dict(explorer.START) | {slider.name: value}
    if value != slider.start:
        assert found != before
        assert f"{slider.name}=" in offline.url
    assert (found["alpha"], found["eta"]) == pytest.approx((setting["alpha"], setting["eta"]))
    curvature = curvature_of(explorer.family(setting))
    update = replace(explorer.algorithm(setting), momentum=setting["beta"])
    exponent = math.log(growth_factor(curvature, update, setting["eta"])) / 2
    assert abs(float(found["exponent"]) - exponent) < 1e-9
    rate = critical_learning_rate(curvature, update)
    assert float(found["rate"]) == pytest.approx(rate, rel=1e-9)
    second, _ = matrices([setting], np.array([moments_of(setting)]))
    square = np.linalg.matrix_power(second, 60).sum(axis=-1)[..., 0].mean()
    square = min(max(square, 1e-12), 1e12)
    assert found["square"] == pytest.approx(square, rel=1e-9)


def test_an_address_keeps_the_state_and_a_tap_sets_it(offline):
    offline.goto(offline.url.split("#")[0] + "#alpha=0.44&sr=3&sampling=with_replacement&eta=junk")
    offline.reload()
    offline.wait_for_selector("#explorer-growth canvas")
    found = settled(offline)
    assert (found["alpha"], found["eta"]) == (0.44, explorer.START["eta"])
    assert offline.locator("select[name=sampling]").input_value() == "with_replacement"
    box = offline.locator("#explorer-map").bounding_box()
    offline.mouse.click(box["x"] + 0.6 * box["width"], box["y"] + 0.5 * box["height"])
    offline.wait_for_function("document.querySelector('input[name=alpha]').value !== '0.44'")
    assert 0.4 < settled(offline)["alpha"] < 0.7
    offline.click("button[name=reset]")
    assert "#" not in offline.url


@pytest.mark.skipif(not explorer.networks(), reason="no stored runs")
def test_the_second_tab_shows_the_stored_runs(offline):
    offline.check("input[value=real]")
    offline.wait_for_selector("#explorer-times canvas")
    given = explorer.networks()
    offline.locator("select[name=net]").select_option("conv_random")
    for name, press in (("row", "End"), ("rate", "ArrowRight"), ("step", "End"), ("seed", "End")):
        offline.locator(f"input[name={name}]").focus()
        offline.locator(f"input[name={name}]").press(press)
    settled(offline)
    where = (len(given["mixings"]) - 1) * len(given["shares"]) + 10
    table = given["tables"]["conv_random"][2]
    for place, column in (("real", "real_time"), ("tangent", "predicted_time")):
        shown = offline.locator(f"[data-out={place}]").get_attribute("data-value")
        assert float(shown) == (table[column][where] or math.inf)
    cells = offline.evaluate(
        "() => Bokeh.documents.map(d => d.get_model_by_name('cells')).find(m => m).data.label"
    )
    assert cells.count("not yet") == table["real_time"].count(None)
    offline.check("input[value=theory]")


def test_without_javascript_there_is_a_picture(browser, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(explorer.explorer(small=True).data)
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto(file.as_uri())
    assert page.locator("noscript img").bounding_box()["width"] > 300


def test_the_same_call_gives_the_same_text():
    assert explorer.explorer(small=True).data == explorer.explorer(small=True).data
