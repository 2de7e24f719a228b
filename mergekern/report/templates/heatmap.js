"use strict";
// One metric for all pairs.

const LABELS = 60; // axes name the models only if at most this many are in view
const BRIGHT_IS_HIGH = [
  [0, "rgb(0,32,76)"], [0.13, "rgb(0,45,110)"], [0.25, "rgb(55,68,108)"], [0.38, "rgb(86,91,109)"],
  [0.5, "rgb(117,117,117)"], [0.63, "rgb(148,142,119)"], [0.75, "rgb(183,169,112)"], [0.88, "rgb(220,199,94)"],
  [1, "rgb(253,231,55)"],
]; // cividis, which looks alike with and without colour-vision deficiency

function heatmapOrder() {
  const start = (state.layer + 1) * N;
  return array(state.metric.orders).subarray(start, start + N);
}

// `x` and `y` are the visible ranges; `drawn` identifies the matrix that they belong to.
const heatmap = { order: null, place: null, row: 0, column: 1, x: null, y: null, drawn: null };

function drawHeatmap() {
  const values = pairValues(state.metric, state.layer);
  const order = (heatmap.order = heatmapOrder());
  heatmap.place = new Uint16Array(N);
  order.forEach((model, position) => (heatmap.place[model] = position));
  const z = Array.from({ length: N }, () => new Float64Array(N).fill(NaN));
  for (let pair = 0; pair < PAIRS; pair++) {
    const x = heatmap.place[firstOf[pair]], y = heatmap.place[secondOf[pair]];
    z[x][y] = z[y][x] = values[pair];
  }
  const { signed } = state.metric;
  let [low, high] = extremes(values);
  if (signed) [low, high] = [-1, 1].map((sign) => sign * Math.max(Math.abs(low), Math.abs(high)));
  const flip = !signed && state.metric.better === "lower";
  const trace = {
    type: "heatmap", z, zmin: low, zmax: high, colorscale: signed ? aroundZero() : BRIGHT_IS_HIGH, reversescale: flip,
    hoverinfo: "none",
    colorbar: {
      orientation: "h", thickness: 12, y: 1, yanchor: "bottom", len: 1, ypad: 6, outlinewidth: 0,
      title: { text: `${plain(state.metric.title)}${flip ? " (lower is brighter)" : ""}`, side: "top" },
    },
  };
  const whole = [-0.5, N - 0.5];
  const what = `${state.metric.name} ${state.layer}`;
  if (heatmap.drawn !== what) Object.assign(heatmap, { drawn: what, x: whole, y: whole });
  const layout = {
    xaxis: { ...axisColours(), ...modelTicks(order, heatmap.x), range: whole, showgrid: false, zeroline: false,
      constrain: "domain", tickangle: -90 },
    yaxis: { ...axisColours(), ...modelTicks(order, heatmap.y), range: [...whole].reverse(), showgrid: false,
      zeroline: false, scaleanchor: "x", constrain: "domain" },
    shapes: selectedShapes(),
    uirevision: what, // Plotly keeps the zoom while this is unchanged
  };
  placeCursor();
  return { data: [trace], layout };
}

// The names of the visible models, if they are few enough to be read.
function modelTicks(order, range) {
  const from = Math.max(0, Math.ceil(Math.min(...range)));
  const to = Math.min(N - 1, Math.floor(Math.max(...range)));
  const seen = to - from + 1 <= (narrow.matches ? LABELS / 2 : LABELS) ? to - from + 1 : 0;
  const tickvals = Array.from({ length: seen }, (_, index) => from + index);
  const length = narrow.matches ? 12 : 22;
  return { tickmode: "array", tickvals, ticktext: tickvals.map((at) => plain(shortened(page.models[order[at]], length))) };
}

function selectedShapes() {
  const x = heatmap.place[state.a], y = heatmap.place[state.b];
  const line = { color: colour("mark"), width: 2 };
  return [cell(x, y, line), cell(y, x, line)];
}

function placeCursor() {
  [heatmap.row, heatmap.column] = [heatmap.place[state.a], heatmap.place[state.b]];
  readPair(state.a, state.b);
}

function readPair(a, b) {
  const readout = byId("heatmap-readout");
  if (a === b) {
    readout.textContent = `${page.models[a]} with itself`;
    return;
  }
  const value = element("strong", {}, format(pairValues(state.metric, state.layer)[pairNumber(a, b)]));
  readout.replaceChildren(`${page.models[a]} and ${page.models[b]}: `, value);
}

function followHeatmap(target) {
  target.on("plotly_hover", ({ points: [{ x, y }] }) => readPair(heatmap.order[y], heatmap.order[x]));
  target.on("plotly_unhover", () => readPair(state.a, state.b));
  target.on("plotly_click", ({ points: [{ x, y }] }) => selectCell(y, x));
  target.on("plotly_relayout", (changed) => {
    if (!Object.keys(changed).some((key) => /axis\.(range|autorange)/.test(key))) return;
    Object.assign(heatmap, { x: [...target.layout.xaxis.range], y: [...target.layout.yaxis.range] });
    const [x, y] = [heatmap.x, heatmap.y].map((range) => modelTicks(heatmap.order, range));
    Plotly.relayout(target, {
      "xaxis.tickvals": x.tickvals, "xaxis.ticktext": x.ticktext,
      "yaxis.tickvals": y.tickvals, "yaxis.ticktext": y.ticktext,
    });
  });
  moveByKeys(target, heatmap, N, N, () => {
    const a = heatmap.order[heatmap.row], b = heatmap.order[heatmap.column];
    readPair(a, b);
    const cursor = cell(heatmap.column, heatmap.row, { color: colour("mark"), width: 2, dash: "dot" });
    Plotly.relayout(target, { shapes: [...selectedShapes(), cursor] });
  }, () => selectCell(heatmap.row, heatmap.column));
}

function selectCell(row, column) {
  if (row !== column) show({ a: heatmap.order[row], b: heatmap.order[column] });
}

function fillLayerChoice() {
  const { metric } = state;
  const texts = ["all, the whole models", ...(metric.layers ? metric.tensors.map((tensor) => page.tensors[tensor]) : [])];
  fillSelect(byId("layer"), texts, state.layer + 1);
  byId("layer").disabled = texts.length === 1;
}

function fillMetricChoices() {
  for (const select of [byId("metric"), ...document.querySelectorAll(".metric-choice")]) {
    const groups = new Map();
    for (const metric of page.metrics) {
      if (!groups.has(metric.category)) groups.set(metric.category, element("optgroup", { label: metric.category }));
      groups.get(metric.category).append(element("option", { value: metric.name }, metric.title));
    }
    select.replaceChildren(...groups.values());
    select.addEventListener("change", () => show({ metric: metrics.get(select.value) }));
  }
}

function followMetric(changes) {
  for (const select of [byId("metric"), ...document.querySelectorAll(".metric-choice")]) select.value = state.metric.name;
  byId("metric-about").textContent = state.metric.about;
  if (changes.metric) fillLayerChoice();
  redraw("heatmap-plot");
}

byId("layer").addEventListener("change", ({ target }) => show({ layer: Number(target.value) - 1 }));
plot("heatmap-plot", drawHeatmap, followHeatmap);
fillMetricChoices();
followers.push(followMetric);
followMetric({ metric: state.metric });
