"use strict";
// The data of the page, and the current selection. All scripts of this page share these names.

const page = JSON.parse(document.getElementById("document").textContent);
const N = page.models.length;
const PAIRS = (N * (N - 1)) / 2;
const metrics = new Map(page.metrics.map((metric) => [metric.name, metric]));

const byId = (id) => document.getElementById(id);

const TYPES = { f4: Float32Array, f8: Float64Array, u2: Uint16Array, u4: Uint32Array };
const decoded = new Map();

function bytesOf(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// An array of numbers by its name, decoded at first use.
function array(name) {
  if (!decoded.has(name)) {
    const element = document.querySelector(`script[data-array="${CSS.escape(name)}"]`);
    decoded.set(name, new TYPES[element.dataset.dtype](bytesOf(element.textContent).buffer));
  }
  return decoded.get(name);
}

// Pairs are numbered like the rows of the table: (0, 1), (0, 2), … (1, 2), …
function pairNumber(a, b) {
  if (a > b) [a, b] = [b, a];
  return a * N - (a * (a + 1)) / 2 + (b - a - 1);
}

const firstOf = new Uint16Array(PAIRS);
const secondOf = new Uint16Array(PAIRS);
for (let a = 0, pair = 0; a < N; a++) {
  for (let b = a + 1; b < N; b++, pair++) {
    firstOf[pair] = a;
    secondOf[pair] = b;
  }
}

// Values of all pairs: for whole models (layer −1), or for one of the tensors for which the metric is defined.
function pairValues(metric, layer) {
  if (layer < 0) return array(metric.values);
  return array(metric.layers).subarray(layer * PAIRS, (layer + 1) * PAIRS);
}

function format(value) {
  if (!Number.isFinite(value)) return "—";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 1e-3 || size >= 1e5) return value.toExponential(3);
  return size >= 9999.5 ? value.toFixed(0) : value.toPrecision(4);
}

// Plotly interprets some HTML in its texts; names must be shown literally.
function plain(text) {
  return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function shortened(name, length = 22) {
  return name.length > length ? `${name.slice(0, length - 1)}…` : name;
}

function shortenedStart(name, length = 28) {
  return name.length > length ? `…${name.slice(1 - length)}` : name;
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// For readers of the screen who do not see what changed.
function announce(text) {
  byId("said").textContent = text;
}

function fillSelect(select, texts, chosen = 0) {
  select.replaceChildren(...texts.map((text, index) => element("option", { value: index }, text)));
  select.value = chosen;
}

// The current selection. `show` changes it and calls all followers.
const state = { metric: metrics.get(page.first), layer: -1, a: 0, b: 1, correlation: "pearson" };
const followers = [];

function show(changes) {
  Object.assign(state, changes);
  if (state.layer >= 0 && !(state.metric.layers && state.layer < state.metric.tensors.length)) state.layer = -1;
  for (const follow of followers) follow(changes);
}
