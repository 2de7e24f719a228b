"use strict";
// Plots. Each is drawn when it first scrolls into view, and again when its data or the colour scheme change.

const plots = new Map(); // id of the element -> { draw, drawn }
const LABELS = 60; // axes name the models only if at most this many are in view
const narrow = window.matchMedia("(max-width: 40rem)");

// draw() returns { data, layout }. `redraw` skips plots that were never in view.
function plot(id, draw, ready = () => {}) {
  plots.set(id, { draw, ready, drawn: false });
}

function redraw(...ids) {
  for (const id of ids) if (plots.get(id)?.drawn) drawPlot(id);
}

function drawPlot(id) {
  const entry = plots.get(id);
  const { data, layout } = entry.draw();
  const config = { displayModeBar: false, responsive: true, scrollZoom: false };
  const finished = Plotly.react(byId(id), data, { ...commonLayout(), ...layout }, config);
  if (!entry.drawn) finished.then(() => entry.ready(byId(id)));
  entry.drawn = true;
}

// Called once Plotly has loaded.
function drawPlots() {
  const observer = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      observer.unobserve(target);
      drawPlot(target.id);
    }
  }, { rootMargin: "300px" });
  for (const id of plots.keys()) observer.observe(byId(id));
}

// A colour of the style sheet, in the current colour scheme.
function colour(name) {
  const probe = element("span", { style: `color: var(--${name}); display: none` });
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function commonLayout() {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true };
  return {
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 8, r: 8, t: 8, b: 8 },
    // On a touch screen a drag scrolls the page.
    dragmode: window.matchMedia("(pointer: coarse)").matches ? false : "zoom",
    hoverlabel: { bgcolor: colour("paper"), bordercolor: colour("line"), font: { color: colour("ink") } },
    xaxis: axis,
    yaxis: axis,
    legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0 },
    showlegend: false,
  };
}

const axisColours = () => ({ gridcolor: colour("line"), zerolinecolor: colour("line"), automargin: true });

const BRIGHT_IS_HIGH = [
  [0, "rgb(0,32,76)"], [0.13, "rgb(0,45,110)"], [0.25, "rgb(55,68,108)"], [0.38, "rgb(86,91,109)"],
  [0.5, "rgb(117,117,117)"], [0.63, "rgb(148,142,119)"], [0.75, "rgb(183,169,112)"], [0.88, "rgb(220,199,94)"],
  [1, "rgb(253,231,55)"],
]; // cividis, which looks alike with and without colour-vision deficiency

function extremes(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
}

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
  const [low, high] = extremes(values);
  const flip = state.metric.better === "lower";
  const trace = {
    type: "heatmap", z, zmin: low, zmax: high, colorscale: BRIGHT_IS_HIGH, reversescale: flip, hoverinfo: "none",
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

function cell(x, y, line) {
  return { type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5, line, fillcolor: "rgba(0,0,0,0)" };
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

// Arrow keys move the cursor { row, column } within a plot of cells.
function moveByKeys(target, cursor, rows, columns, moved, entered = () => {}) {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  target.addEventListener("keydown", (event) => {
    const step = steps[event.key];
    if (event.key === "Enter") entered();
    if (!step) return;
    event.preventDefault();
    cursor.row = Math.min(rows - 1, Math.max(0, cursor.row + step[0]));
    cursor.column = Math.min(columns - 1, Math.max(0, cursor.column + step[1]));
    moved();
  });
}

function drawLayers() {
  const { metric } = state;
  const count = metric.tensors.length;
  const names = metric.tensors.map((tensor) => plain(page.tensors[tensor]));
  const x = Array.from(names.keys());
  const spread = array(metric.spread);
  const quantile = (index) => Array.from(spread.subarray(index * count, (index + 1) * count));
  const hovertemplate = "%{text}<br>%{fullData.name}: %{y:.4g}<extra></extra>";
  const band = (low, high, opacity, name) => [
    { x, y: quantile(low), mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false },
    { x, y: quantile(high), mode: "lines", line: { width: 0 }, fill: "tonexty", fillcolor: faded("series-1", opacity),
      hoverinfo: "skip", name },
  ];
  const data = [
    ...band(0, 4, 0.15, "80 % of the pairs"), ...band(1, 3, 0.3, "half of the pairs"),
    { x, y: quantile(2), text: names, name: "median", mode: "lines", line: { color: colour("series-1"), width: 2 },
      hovertemplate },
  ];
  if (metric.layers) {
    const layers = array(metric.layers), pair = pairNumber(state.a, state.b);
    data.push({
      x, y: x.map((layer) => layers[layer * PAIRS + pair]), text: names, mode: "lines+markers",
      name: plain(`${shortened(page.models[state.a])}, ${shortened(page.models[state.b])}`),
      line: { color: colour("series-2"), width: 1.5 }, marker: { size: 5 }, hovertemplate,
    });
  }
  const step = Math.ceil(count / (narrow.matches ? 12 : 40));
  const tickvals = x.filter((layer) => layer % step === 0);
  // Names of tensors differ mostly at their ends.
  const ticktext = tickvals.map((layer) => plain(shortenedStart(page.tensors[metric.tensors[layer]])));
  return { data, layout: {
    xaxis: { ...axisColours(), tickvals, ticktext, tickangle: -90, tickfont: { size: 10 }, range: [-0.5, count - 0.5] },
    yaxis: { ...axisColours(), title: { text: plain(metric.title) } },
    showlegend: true, height: 460,
  } };
}

function faded(name, opacity) {
  return colour(name).replace("rgb(", "rgba(").replace(")", `, ${opacity})`);
}

function showLayers() {
  const { metric } = state;
  const has = metric.tensors.length > 0;
  const message = page.tensors.length
    ? `${metric.title} is not defined for single tensors.`
    : "The table has no values of single tensors. Compute them with per_layer=True (--per-layer).";
  byId("layers-message").textContent = message;
  byId("layers-message").hidden = has;
  byId("layers-plot").hidden = !has;
  if (has) redraw("layers-plot");
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

function followState(changes) {
  for (const select of [byId("metric"), ...document.querySelectorAll(".metric-choice")]) select.value = state.metric.name;
  byId("metric-about").textContent = state.metric.about;
  byId("pair-a").value = state.a;
  byId("pair-b").value = state.b;
  if (changes.metric) fillLayerChoice();
  redraw("heatmap-plot");
  showLayers();
}

byId("layer").addEventListener("change", ({ target }) => show({ layer: Number(target.value) - 1 }));
for (const [id, which] of [["pair-a", "a"], ["pair-b", "b"]]) {
  fillSelect(byId(id), page.models);
  byId(id).addEventListener("change", ({ target }) => {
    const chosen = Number(target.value), other = which === "a" ? "b" : "a";
    // The models of a pair are distinct: choosing the other one exchanges the two.
    show(chosen === state[other] ? { a: state.b, b: state.a } : { [which]: chosen });
  });
}

byId("scheme").addEventListener("change", ({ target }) => {
  document.documentElement.style.colorScheme = target.value;
  redraw(...plots.keys());
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(...plots.keys()));
narrow.addEventListener("change", () => redraw(...plots.keys()));

plot("heatmap-plot", drawHeatmap, followHeatmap);
plot("layers-plot", drawLayers);
fillMetricChoices();
followers.push(followState);
followState({ metric: state.metric });
