// The explorer's page: sliders, figures that follow them, and the state in the address's fragment.
// `formulas` computes, BokehJS draws; what is written by lib.book.explorer stands in `given`.
(() => {
  const root = document.getElementById("the-explorer");
  const given = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const STEPS = 60, RUNS = 24, TINY = 1e-12, HUGE = 1e12;
  const range = (low, high, count) =>
    Array.from({ length: count }, (_, k) => low + (high - low) * k / (count - 1));
  const ALPHAS = range(0, 1, 61);
  const RATES = range(Math.log(0.05), Math.log(20), 61).map(Math.exp);
  const inputs = [...root.querySelectorAll("input[type=range], select, input[type=radio]")];
  const text = (value, digits = 3) => Number.isFinite(value)
    ? String(+value.toPrecision(digits)).replace("-", "−")
    : value === -Infinity ? "−∞" : "none";

  // --- state ---------------------------------------------------------------------------------
  const starts = Object.fromEntries(inputs.filter((i) => i.type !== "radio").map((i) => [i.name, i.value]));
  const fresh = { tab: "theory", draw: "0", ...starts };
  const state = { ...fresh };

  const readFragment = () => {
    for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
      if (name in state) state[name] = value;
    }
    for (const input of inputs) {
      if (input.type === "radio") input.checked = input.value === state.tab;
      else { // what no control can be is not taken over
        const known = input.type !== "range" || Number.isFinite(parseFloat(state[input.name]));
        input.value = known ? state[input.name] : starts[input.name];
        if (!input.value) input.value = starts[input.name];
        state[input.name] = input.value;
      }
    }
  };
  const writeFragment = () => {
    const changed = Object.entries(state).filter(([name, value]) => value !== fresh[name]);
    const fragment = new URLSearchParams(changed).toString();
    history.replaceState(null, "", fragment ? `#${fragment}` : location.pathname + location.search);
  };
  const setting = () => ({
    ...Object.fromEntries(["eta", "alpha", "chi", "damping", "beta"].map((n) => [n, +state[n]])),
    ...Object.fromEntries(["Br", "Bf", "sr", "sf"].map((n) => [n, Math.round(+state[n])])),
    sampling: state.sampling,
  });

  // --- figures -------------------------------------------------------------------------------
  const model = (name) => {
    for (const doc of Bokeh.documents) {
      const found = doc.get_model_by_name(name);
      if (found) return found;
    }
    return null;
  };
  const shown = new Set();
  const embed = async (names) => {
    for (const name of names) {
      if (shown.has(name) || !given.figures[name]) continue;
      shown.add(name);
      await Bokeh.embed.embed_item(given.figures[name], `explorer-${name}`);
    }
    paint();
  };
  const paint = () => { // the page's own colours, light or dark
    const ink = getComputedStyle(root).color;
    for (const name of shown) {
      const figure = model(name);
      if (!figure) continue;
      for (const axis of [...figure.left, ...figure.below]) {
        Object.assign(axis, {
          axis_label_text_color: ink, major_label_text_color: ink, axis_line_color: ink,
          major_tick_line_color: ink, minor_tick_line_color: null,
        });
      }
      for (const line of figure.renderers) {
        if (line.glyph && (line.tags || []).includes("ink")) {
          line.glyph.line_color = { value: ink };
          if (line.glyph.fill_color) line.glyph.fill_color = { value: ink };
        }
      }
    }
  };
  const put = (name, data) => { const source = model(name); if (source) source.data = data; };
  const say = (name, words, value) => {
    const place = root.querySelector(`[data-out=${name}]`);
    if (!place) return;
    place.textContent = words;
    if (value !== undefined) place.dataset.value = String(value);
  };
  const clip = (values) => values.map((v) => Math.min(HUGE, Math.max(TINY, v)));

  let frontierKey = "";
  const drawFrontiers = (s) => {
    const key = JSON.stringify({ ...s, eta: 0, alpha: 0 });
    if (key === frontierKey) return;
    frontierKey = key;
    const critical = formulas.criticalMixing(s);
    const alphas = [...ALPHAS.filter((a) => a < critical - 1e-9), critical - 1e-6];
    const line = (rate) => ({
      x: [...alphas, critical],
      y: [...alphas.map((alpha) => rate({ ...s, alpha })), critical < 1 ? 1e-3 : NaN],
    });
    put("mean_frontier", line(formulas.meanRate));
    const square = line(formulas.meanSquareRate);
    put("square_frontier", square);
    put("stable", { x: square.x, low: square.x.map(() => 1e-3), high: square.y });
    const upper = [], lower = [];
    const near = [0.002, 0.005, 0.01, 0.02].map((gap) => critical + gap); // where it bends
    const x = s.beta > 0 ? [] : [...ALPHAS, ...near].filter((a) => a <= 1).sort((a, b) => a - b);
    for (const alpha of x) {
      const found = formulas.typicalRates({ ...s, alpha }, RATES);
      upper.push((found.find(([, up]) => up) || [NaN])[0]);
      lower.push((found.find(([, up]) => !up) || [NaN])[0]);
    }
    put("typical_frontier", { x: [...x, NaN, ...x], y: [...upper, NaN, ...lower] });
  };

  const drawTheory = () => {
    const s = setting();
    drawFrontiers(s);
    put("here", { x: [s.alpha], y: [s.eta] });
    const steps = range(0, STEPS, STEPS + 1), path = formulas.paths(s, STEPS);
    const exponents = {
      mean: formulas.meanExponent(s),
      square: formulas.meanSquareExponent(s),
      typical: formulas.typicalExponent(s),
    };
    const runs = formulas.simulate(s, STEPS, RUNS, +state.draw);
    put("runs", { xs: runs.map(() => steps), ys: runs.map(clip) });
    put("mean_path", { x: steps, y: clip(path.mean) });
    put("square_path", { x: steps, y: clip(path.square) });
    const typical = s.beta > 0 ? [] : steps.map((k) => k === 0 ? 1 : Math.exp(2 * exponents.typical * k));
    put("typical_path", { x: typical.map((_, k) => k), y: clip(typical) });
    const ends = clip([path.square[STEPS], path.mean[STEPS], ...runs.map((run) => run[STEPS])]);
    const growthFigure = model("growth");
    if (growthFigure) {
      growthFigure.y_range.start = Math.max(1e-9, Math.min(0.1, ...ends) / 3);
      growthFigure.y_range.end = Math.min(1e9, Math.max(10, ...ends) * 3);
    }
    for (const name of Object.keys(exponents)) {
      const factor = Math.exp(2 * exponents[name]);
      say(name, Number.isNaN(exponents[name]) ? "see the runs" : `× ${text(factor)}`, exponents[name]);
    }
    const rates = { mean_rate: formulas.meanRate(s), square_rate: formulas.meanSquareRate(s) };
    for (const name of Object.keys(rates)) say(name, text(rates[name]), rates[name]);
    const critical = formulas.criticalMixing(s);
    say("critical", text(critical), critical);
    say("verdict", verdict(exponents, s));
  };
  const verdict = ({ mean, square, typical }, s) => {
    const quick = (exponent) => `a thousandfold in ${Math.ceil(Math.log(1000) / (2 * exponent))} steps`;
    if (mean > 0) return `The model lets go: even the mean leaves its optimum, the mean square ${quick(square)}.`;
    if (square <= 0) return "The model resists: the distance from its optimum shrinks, in mean square and in a typical run.";
    if (s.beta > 0) return `Batch noise alone drives the mean square out, ${quick(square)}; the runs show what is typical.`;
    return typical > 0
      ? `Batch noise drives it out: the mean square grows ${quick(square)}, and a typical run leaves, too.`
      : `Rare runs leave: the mean square grows ${quick(square)}, yet a typical run stays.`;
  };

  // --- real networks -------------------------------------------------------------------------
  const drawReal = () => {
    const stored = given.networks.tables[state.net];
    if (!stored) return;
    const table = stored[Math.min(+state.seed, stored.length - 1)];
    const { shares, mixings } = given.networks, m = +state.row, r = +state.rate, step = +state.step;
    const time = (which, k) => table[which][k] ?? Infinity;
    const kept = (which, k) => table[which][k] >= table.floor;
    const state_at = (times, retain, k) => time(times, k) > step ? "not yet" : kept(retain, k) ? "forgotten" : "broken";
    const cells = { x: [], y: [], fill: [], label: [] }, wrong = { x: [], y: [] };
    mixings.forEach((_, i) => shares.forEach((share, j) => {
      const k = i * shares.length + j, real = state_at("real_time", "real_retain", k);
      cells.x.push(j);
      cells.y.push(i);
      cells.fill.push({ "not yet": "#9e9e9e33", forgotten: "#009E73", broken: "#D55E00" }[real]);
      cells.label.push(real);
      if (real !== state_at("predicted_time", "predicted_retain", k)) { wrong.x.push(j); wrong.y.push(i); }
    }));
    put("cells", cells);
    put("wrong", wrong);
    put("chosen", { x: [r], y: [m] });
    const line = (name) => shares.map((_, j) => table[name][m * shares.length + j] ?? NaN);
    put("real_times", { x: shares, y: line("real_time") });
    put("tangent_times", { x: shares, y: line("predicted_time") });
    put("step_line", { x: [shares[0], shares.at(-1)], y: [step, step] });
    put("rate_line", { x: [shares[r], shares[r]], y: [0, 60] });
    put("path_step", { x: [step, step], y: [1e-2, 3] });
    const k = m * shares.length + r;
    const words = (which) => Number.isFinite(time(`${which}_time`, k))
      ? `at step ${text(time(`${which}_time`, k))}, with ${text(100 * table[`${which}_retain`][k])} % of the retain set right`
      : "not within 60 steps";
    say("real", words("real"), time("real_time", k));
    say("tangent", words("predicted"), time("predicted_time", k));
    say("floor", text(100 * table.floor));
    say("missed", String(wrong.x.length));
    for (const [name, value] of [["row", mixings[m]], ["rate", text(shares[r], 2)]]) {
      const place = root.querySelector(`output[for=explorer-${name}]`);
      if (place) place.textContent = value;
    }
  };

  // --- wiring --------------------------------------------------------------------------------
  let waiting = false;
  const update = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(async () => {
      waiting = false;
      for (const input of inputs) {
        const place = root.querySelector(`output[for=explorer-${input.name}]`);
        if (place && input.type === "range") place.textContent = input.value;
      }
      for (const panel of root.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== state.tab;
      if (state.tab === "real") {
        await embed(["cells_map", "times", "path"]);
        drawReal();
      } else {
        await embed(["map", "growth"]);
        drawTheory();
      }
      root.dataset.drawn = location.hash;
    });
  };
  const changed = () => { writeFragment(); update(); };
  for (const input of inputs) {
    input.addEventListener("input", () => {
      state[input.type === "radio" ? "tab" : input.name] = input.value;
      changed();
    });
  }
  for (const button of root.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      if (button.name === "draw") state.draw = String((+state.draw + 1) % 1000);
      else {
        Object.assign(state, starts, { draw: "0" });
        writeFragment();
        readFragment();
      }
      changed();
    });
  }
  window.explorerMoveTo = (alpha, eta) => { // a click or tap on the map
    for (const [name, value] of [["alpha", alpha], ["eta", eta]]) {
      const input = root.querySelector(`input[name=${name}]`);
      input.value = value;
      state[name] = input.value;
    }
    changed();
  };
  addEventListener("hashchange", () => { if (/[=&]/.test(location.hash)) { readFragment(); update(); } });
  new MutationObserver(() => setTimeout(paint, 50)).observe(document.documentElement, { attributes: true });
  root.classList.add("live");
  readFragment();
  update();
})();
