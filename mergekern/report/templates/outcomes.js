"use strict";
// Measured scores of merges beside predicted ones. Present only if scores or a predictor were given.

const SERIES = 6;
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x"];
const seriesColour = (index) => colour(`series-${(index % SERIES) + 1}`);
const seriesMark = (index) => ({ color: seriesColour(index), symbol: SYMBOLS[index % SERIES], size: 6 });

function drawAccuracy() {
  let low = Infinity, high = -Infinity;
  const data = page.outcomes.accuracy.map(({ method, pairs, without, predicted, measured }, index) => {
    const x = Array.from(array(predicted)), y = Array.from(array(measured));
    low = Math.min(low, ...extremes(x), ...extremes(y));
    high = Math.max(high, ...extremes(x), ...extremes(y));
    const text = Array.from(array(pairs), (pair, at) => {
      const names = `${page.models[firstOf[pair]]}, ${page.models[secondOf[pair]]}`;
      return `${plain(names)}<br>fitted without ${plain(page.models[array(without)[at]])}`;
    });
    return {
      x, y, text, name: plain(method), mode: "markers", marker: { ...seriesMark(index), opacity: 0.75 },
      hovertemplate: "%{text}<br>predicted %{x:.4f}, measured %{y:.4f}<extra>%{fullData.name}</extra>",
    };
  });
  const line = { type: "line", x0: low, y0: low, x1: high, y1: high, line: { color: colour("quiet"), dash: "dot" } };
  return { data, layout: {
    xaxis: { ...axisColours(), title: { text: "predicted without one of the two models" } },
    yaxis: { ...axisColours(), title: { text: "measured" } },
    shapes: [line], showlegend: true, height: 520,
  } };
}

// One row per name, with one mark per series.
function rowsOfMarks(series, names) {
  const offset = (index) => (index - (series.length - 1) / 2) * Math.min(0.14, 0.7 / series.length);
  const data = series.map(({ method, values, spread }, index) => ({
    x: Array.from(array(values)), y: names.map((_, row) => row + offset(index)), text: names.map(plain),
    name: plain(method), mode: "markers", marker: seriesMark(index),
    error_x: spread && { type: "data", array: Array.from(array(spread)), thickness: 1, width: 0, color: seriesColour(index) },
    hovertemplate: `%{text}: %{x:.3g}${spread ? " ± %{error_x.array:.2g}" : ""}<extra>%{fullData.name}</extra>`,
  }));
  const length = narrow.matches ? 18 : 44;
  const ticktext = names.map((name) => plain(shortened(name, length)));
  return { data, layout: {
    xaxis: { ...axisColours(), zeroline: true, zerolinecolor: colour("quiet") },
    yaxis: { ...axisColours(), tickvals: names.map((_, row) => row), ticktext, range: [names.length - 0.5, -0.5] },
    showlegend: true, height: 120 + names.length * (narrow.matches ? 20 : 22),
  } };
}

const drawCoefficients = () => rowsOfMarks(page.outcomes.coefficients, page.metrics.map((metric) => metric.title));

const drawEffects = () => rowsOfMarks(page.outcomes.effects, page.models);

// A curve for each method over the numbers of measured merges; `beside` is a figure to draw as a dotted line.
function curves(figure, title, beside) {
  const data = page.outcomes.budgets.map((budget, index) => ({
    x: budget.merges, y: Array.from(array(budget[figure])), text: Array.from(array(budget.rmse), format),
    name: plain(budget.method), mode: "lines+markers", marker: seriesMark(index), line: { color: seriesColour(index) },
    hovertemplate: "%{x} merges measured<br>%{y:.4f}, error %{text}<extra>%{fullData.name}</extra>",
  }));
  if (beside) {
    data.push(...page.outcomes.budgets.map((budget, index) => ({
      x: budget.merges, y: Array.from(array(budget[beside])), name: "a random pair", mode: "lines", showlegend: !index,
      line: { color: seriesColour(index), dash: "dot", width: 1.5 }, hoverinfo: "skip",
    })));
  }
  return { data, layout: {
    xaxis: { ...axisColours(), title: { text: "measured merges" } },
    yaxis: { ...axisColours(), title: { text: title }, rangemode: "tozero" },
    showlegend: true, height: 380,
  } };
}

if (page.outcomes) {
  if (page.outcomes.accuracy.length) plot("accuracy-plot", drawAccuracy);
  if (page.outcomes.coefficients.length) plot("coefficients-plot", drawCoefficients);
  if (page.outcomes.effects.length) plot("effects-plot", drawEffects);
  if (page.outcomes.budgets.length) {
    plot("budgets-plot", () => curves("r", "r of the other pairs"));
    plot("regret-plot", () => curves("regret", `regret, in ${page.outcomes.target}`, "random"));
  }
}
