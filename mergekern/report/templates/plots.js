"use strict";
// Plots. Each is drawn when it first scrolls into view, and again when its data or the colour scheme change.

const plots = new Map(); // id of the element -> { draw, ready, drawn }
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

// Unpack the library, whose text waits compressed in the page, and run it.
async function loadPlotly() {
  const packed = byId("plotly");
  const stream = new Blob([bytesOf(packed.textContent)]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = element("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
  packed.remove();
}

async function startPlots() {
  try {
    await loadPlotly();
  } catch (error) {
    byId("no-plots").textContent = `This browser cannot draw the plots (${error.message}); one of 2023 or later can.`;
    byId("no-plots").hidden = false;
    return;
  }
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

function faded(name, opacity) {
  return colour(name).replace("rgb(", "rgba(").replace(")", `, ${opacity})`);
}

function commonLayout() {
  const axis = { ...axisColours(), linecolor: colour("line") };
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

// Blue below 0, orange above.
const aroundZero = () => [[0, colour("low")], [0.5, colour("middle")], [1, colour("high")]];

function extremes(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : [0, 1];
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

function cell(x, y, line) {
  return { type: "rect", x0: x - 0.5, x1: x + 0.5, y0: y - 0.5, y1: y + 0.5, line, fillcolor: "rgba(0,0,0,0)" };
}

// The plot as it is seen, on the colour of the page, at twice the size of the screen.
async function savePlot(id) {
  if (!plots.get(id).drawn) drawPlot(id);
  const target = byId(id);
  const figure = { data: target.data, layout: { ...target.layout, paper_bgcolor: colour("paper") } };
  const size = { width: target.clientWidth, height: target.clientHeight, scale: 2 };
  const image = await Plotly.toImage(figure, { format: "png", ...size });
  save(new Blob([bytesOf(image.slice(image.indexOf(",") + 1))], { type: "image/png" }), `${fileName(id)}.png`);
}

for (const button of document.querySelectorAll("[data-png]")) {
  if (!("DecompressionStream" in window)) button.hidden = true;
  button.addEventListener("click", () => savePlot(button.dataset.png));
}

byId("scheme").addEventListener("change", ({ target }) => {
  document.documentElement.style.colorScheme = target.value;
  redraw(...plots.keys());
});
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw(...plots.keys()));
narrow.addEventListener("change", () => redraw(...plots.keys()));
