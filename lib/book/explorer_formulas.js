// The explorer's closed forms: two sets of N samples that curve along one of two axes.
//
// On the shared axis σ_r retain samples have mean sharpness χ and σ_f forget samples have 1; on the
// retain set's own axis σ_r samples have √(1−χ²). So χ is the coherence between the sets, σ_r and
// σ_f are those within them. The book proves what is computed here: linearized_dynamics (mean and
// mean square), hessian_tests (typical), and theorem "momentum". lib.book.explorer has the family
// as lib knows it, and tests/book/test_explorer.py compares the two in a browser.
//
// A setting s: {eta, alpha, Br, Bf, sr, sf, chi, damping, beta, sampling}.
var formulas = (() => { // var: a notebook's cell runs more than once
  const N = 40;
  const logFactorial = [0];
  for (let k = 1; k <= 2 * N; k++) logFactorial.push(logFactorial[k - 1] + Math.log(k));
  const logChoose = (n, k) => logFactorial[n] - logFactorial[k] - logFactorial[n - k];

  const binomial = (n, p) => Array.from({ length: n + 1 }, (_, k) =>
    p >= 1 ? +(k === n) : Math.exp(logChoose(n, k) + k * Math.log(p) + (n - k) * Math.log1p(-p)));

  const hypergeometric = (group, batch) => Array.from({ length: group + 1 }, (_, k) =>
    k > batch || batch - k > N - group ? 0
      : Math.exp(logChoose(group, k) + logChoose(N - group, batch - k) - logChoose(N, batch)));

  // P(M = m): how many of a group of samples a batch holds.
  const law = (group, batch, sampling) => group === 0 ? [1]
    : sampling === "bernoulli" ? binomial(group, batch / N)
      : sampling === "without_replacement" ? hypergeometric(group, batch)
        : binomial(batch, group / N);

  const variance = (group, batch, sampling) => {
    const share = group / N, rate = batch / N;
    if (sampling === "bernoulli") return group * rate * (1 - rate);
    const apart = batch * share * (1 - share);
    return sampling === "with_replacement" ? apart : apart * (N - batch) / (N - 1);
  };

  // Per axis: what one sample adds to Â, how many samples there are, mean and variance of Â.
  const axes = (s) => [[s.chi, s.sf], [Math.sqrt(1 - s.chi * s.chi), 0]].map(([sharpness, group]) => {
    const retain = (1 - s.alpha) / s.Br * (N * sharpness / s.sr);
    const forget = group ? s.alpha / s.Bf * (N / group) : 0;
    return {
      retain, forget, group,
      mean: (1 - s.alpha) * sharpness - (group ? s.alpha : 0) + s.damping,
      variance: retain * retain * variance(s.sr, s.Br, s.sampling)
        + forget * forget * variance(group, s.Bf, s.sampling),
    };
  });

  // Squared modulus of the larger root of z² − sz + β, s = 1 + β − ηλ: the mean's growth.
  const meanGrowth = (axis, s) => {
    const size = Math.abs(1 + s.beta - s.eta * axis.mean), inside = size * size - 4 * s.beta;
    return inside > 0 ? ((size + Math.sqrt(inside)) / 2) ** 2 : s.beta;
  };

  // Factor by which E δ² grows a step. With momentum it solves η²V = (ρ−β)((ρ+β)²/ρ − s²)/(ρ+β).
  const growth = (axis, s) => {
    const noise = s.eta * s.eta * axis.variance, low = meanGrowth(axis, s);
    if (s.beta === 0) return low + noise;
    if (noise <= 0) return low;
    const slope = Math.abs(1 + s.beta - s.eta * axis.mean);
    const excess = (rho) => (rho - s.beta) / (rho + s.beta) / rho
      * (rho + s.beta - slope * Math.sqrt(rho)) * (rho + s.beta + slope * Math.sqrt(rho)) - noise;
    let below = low, above = Math.max(1, 2 * low);
    while (excess(above) < 0) above *= 2;
    for (let k = 0; k < 200; k++) {
      const middle = (below + above) / 2;
      if (middle <= below || middle >= above) break;
      if (excess(middle) < 0) below = middle; else above = middle;
    }
    return (below + above) / 2;
  };

  const meanExponent = (s) => Math.max(...axes(s).map((axis) => Math.log(meanGrowth(axis, s)) / 2));
  const meanSquareExponent = (s) => Math.max(...axes(s).map((axis) => Math.log(growth(axis, s)) / 2));

  // Learning rates at which the mean and the mean square stop shrinking; 0 where some axis rises.
  const meanRate = (s) => lowest(s, (axis) => 2 * (1 + s.beta) / axis.mean);
  const meanSquareRate = (s) => lowest(s, (axis) => 2 * axis.mean * (1 - s.beta * s.beta)
    / ((1 - s.beta) * axis.mean ** 2 + (1 + s.beta) * axis.variance));
  const lowest = (s, rate) => Math.min(...axes(s).map((axis) => axis.mean > 0 ? rate(axis) : 0));
  const criticalMixing = (s) => (s.chi + s.damping) / (s.chi + 1) < 1
    ? (s.chi + s.damping) / (s.chi + 1) : 1;

  // Pairs (probability, Â without damping) of an axis; what cannot be told from 0 is left out.
  const outcomes = (axis, s) => {
    const few = law(s.sr, s.Br, s.sampling), others = law(axis.group, s.Bf, s.sampling);
    const found = [];
    few.forEach((p, m) => others.forEach((q, l) => {
      if (p * q > 1e-18) found.push([p * q, axis.retain * m, axis.forget * l]);
    }));
    return found;
  };

  // E log|1 − ηÂ|, largest over axes; a product below its terms' rounding is 0, as in lib.
  const typicalOf = (several, eta, damping) => Math.max(...several.map((pairs) => {
    let sum = 0;
    for (const [p, retain, forget] of pairs) {
      const descent = eta * (retain + damping), ascent = eta * forget;
      const factor = Math.abs(1 + ascent - descent);
      if (factor <= 8 * Number.EPSILON * (1 + ascent + descent)) return -Infinity;
      sum += p * Math.log(factor);
    }
    return sum;
  }));
  const typicalExponent = (s) => s.beta > 0 ? NaN
    : typicalOf(axes(s).map((axis) => outcomes(axis, s)), s.eta, s.damping);

  // Learning rates, among these increasing ones and refined between them, where γ changes sign.
  const typicalRates = (s, rates) => {
    const several = axes(s).map((axis) => outcomes(axis, s));
    const at = (eta) => typicalOf(several, eta, s.damping);
    const signs = rates.map((eta) => at(eta) > 0), found = [];
    for (let k = 1; k < rates.length; k++) {
      if (signs[k] === signs[k - 1]) continue;
      let [low, high] = [rates[k - 1], rates[k]];
      for (let i = 0; i < 30; i++) {
        const middle = (low + high) / 2;
        if ((at(middle) > 0) === signs[k - 1]) low = middle; else high = middle;
      }
      found.push([high, signs[k]]);
    }
    return found;
  };

  // ‖E δ_k‖² and E‖δ_k‖², k = 0 … steps, from a start of length one equally far along both axes.
  const paths = (s, steps) => {
    const mean = new Array(steps + 1).fill(0), square = new Array(steps + 1).fill(0);
    for (const axis of axes(s)) {
      const slope = 1 + s.beta - s.eta * axis.mean;
      const second = slope * slope + s.eta * s.eta * axis.variance;
      let now = 1, before = 1, u = 1, v = 1, w = 1; // δ, δ_{k−1}; E δ², E δδ_{k−1}, E δ_{k−1}²
      for (let k = 0; k <= steps; k++) {
        mean[k] += now * now / 2;
        square[k] += u / 2;
        [now, before] = [slope * now - s.beta * before, now];
        [u, v, w] = [second * u - 2 * s.beta * slope * v + s.beta * s.beta * w,
          slope * u - s.beta * v, u];
      }
    }
    return { mean, square };
  };

  // Uniform numbers in [0, 1), the same for the same seed (mulberry32).
  const uniform = (seed) => () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };

  // How many samples of the groups [0, first) and [first, second) of N a batch holds.
  const draw = (first, second, batch, sampling, random) => {
    const counts = [0, 0];
    const add = (k) => { if (k < first) counts[0]++; else if (k < second) counts[1]++; };
    if (sampling === "bernoulli") {
      for (let k = 0; k < second; k++) if (random() * N < batch) add(k);
    } else if (sampling === "with_replacement") {
      for (let k = 0; k < batch; k++) add(Math.floor(random() * N));
    } else {
      let wanted = batch;
      for (let k = 0; k < second; k++) if (random() * (N - k) < wanted) { add(k); wanted--; }
    }
    return counts;
  };

  // ‖δ_k‖² of sampled runs, one array a run.
  const simulate = (s, steps, runs, seed) => {
    const random = uniform(seed), both = axes(s);
    return Array.from({ length: runs }, () => {
      const now = [Math.SQRT1_2, Math.SQRT1_2], before = [...now], path = [1];
      for (let k = 0; k < steps; k++) {
        const retain = draw(s.sr, 2 * s.sr, s.Br, s.sampling, random);
        const [forget] = draw(s.sf, s.sf, s.Bf, s.sampling, random);
        both.forEach((axis, a) => {
          const step = axis.retain * retain[a] - axis.forget * forget + s.damping;
          const next = (1 + s.beta - s.eta * step) * now[a] - s.beta * before[a];
          before[a] = now[a];
          now[a] = next;
        });
        path.push(now[0] ** 2 + now[1] ** 2);
      }
      return path;
    });
  };

  return {
    N, law, meanExponent, meanSquareExponent, typicalExponent, meanRate, meanSquareRate,
    typicalRates, criticalMixing, paths, simulate,
  };
})();
