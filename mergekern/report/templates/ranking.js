"use strict";
// The ranked table, one page of rows at a time: a zoo may have thousands of pairs.

const ROWS = 25;
const SHOWN_METRICS = 4;
const ranking = { order: new Uint32Array(0), column: null, reversed: false, start: 0 };

// Predictions and measurements come before metrics, and the first metric before the others. `low` and `high` are the ends
// of an interval, where there is one.
const columns = [
  ...(page.outcomes ? page.outcomes.columns : []),
  ...[...page.metrics].sort((one, other) => (other.name === page.first) - (one.name === page.first)).map(
    ({ name, title, category, about, better, values, errors }) => (
      { name, title, category, about, better, values, errors })),
];

function chooseColumns() {
  const first = columns.findIndex((column) => column.values === state.metric.values);
  const outcomes = columns.length - page.metrics.length;
  columns.forEach((column, index) => (column.shown = index < outcomes || index === first));
  // Beside the first metric, show one metric of each other category, up to SHOWN_METRICS.
  const categories = new Set([columns[first].category]);
  for (const column of columns.slice(outcomes)) {
    if (categories.size >= SHOWN_METRICS) break;
    if (!categories.has(column.category)) column.shown = true;
    categories.add(column.category);
  }
  ranking.column = page.outcomes ? columnOfAnswer() : columns[first];
}

// The scores of the method of the answer: predicted ones, if there are any of some method.
function columnOfAnswer() {
  const alike = columns.filter((column) => column.method && Boolean(column.low) === Boolean(columns[0].low));
  return alike.find((column) => column.method === page.method) ?? columns[0];
}

// Pairs without a value come last in both directions.
function rank() {
  const wanted = byId("filter").value.trim().toLowerCase();
  const matches = page.models.map((name) => name.toLowerCase().includes(wanted));
  let count = 0;
  const found = new Uint32Array(PAIRS);
  for (let pair = 0; pair < PAIRS; pair++) {
    if (matches[firstOf[pair]] || matches[secondOf[pair]]) found[count++] = pair;
  }
  const values = array(ranking.column.values);
  const sign = (ranking.column.better === "higher" ? -1 : 1) * (ranking.reversed ? -1 : 1);
  ranking.order = found.subarray(0, count).sort((p, q) => {
    const x = values[p], y = values[q];
    if (x !== x || y !== y) return (x !== x) - (y !== y) || p - q;
    return sign * (x - y) || p - q;
  });
  ranking.start = 0;
  drawRows();
}

function sortBy(column) {
  ranking.reversed = column === ranking.column && !ranking.reversed;
  ranking.column = column;
  rank();
  drawHead();
}

function drawHead() {
  const cells = columns.filter((column) => column.shown).map((column) => {
    const sorted = column === ranking.column;
    const rises = (column.better === "lower") !== ranking.reversed;
    const button = element("button", { title: column.about, onclick: () => sortBy(column) }, column.title);
    if (sorted) button.append(element("span", { "aria-hidden": "true" }, rises ? " ▲" : " ▼"));
    const direction = sorted ? (rises ? "ascending" : "descending") : null;
    return element("th", { scope: "col", class: "number", "aria-sort": direction }, button);
  });
  const fixed = ["#", "Model", "and model"].map((text) => element("th", { scope: "col" }, text));
  // The headings are replaced, so the pressed one would lose the keyboard focus.
  const focused = [...document.querySelectorAll("#ranking thead button")].indexOf(document.activeElement);
  document.querySelector("#ranking thead").replaceChildren(element("tr", {}, ...fixed, ...cells));
  if (focused >= 0) document.querySelectorAll("#ranking thead button")[focused]?.focus();
}

function drawRows() {
  const shown = columns.filter((column) => column.shown);
  const end = Math.min(ranking.start + ROWS, ranking.order.length);
  const rows = [];
  for (let place = ranking.start; place < end; place++) {
    const pair = ranking.order[place];
    const a = firstOf[pair], b = secondOf[pair];
    const names = `${page.models[a]} and ${page.models[b]}`;
    const select = element("button", { "aria-label": `${place + 1}: show ${names}`, onclick: () => show({ a, b }) });
    select.append(String(place + 1));
    const row = element("tr", { "data-pair": pair }, element("td", {}, select));
    row.append(element("td", { class: "name" }, page.models[a]), element("td", { class: "name" }, page.models[b]));
    for (const column of shown) row.append(valueCell(column, pair));
    rows.push(row);
  }
  document.querySelector("#ranking tbody").replaceChildren(...rows);
  const total = ranking.order.length;
  const range = total ? `${(ranking.start + 1).toLocaleString("en")}–${end.toLocaleString("en")} of ` : "";
  byId("page-range").textContent = `${range}${total.toLocaleString("en")} pairs`;
  byId("page-first").disabled = byId("page-previous").disabled = ranking.start === 0;
  byId("page-last").disabled = byId("page-next").disabled = end === total;
  markSelected();
}

function valueCell(column, pair) {
  const value = array(column.values)[pair];
  const cell = element("td", { class: "number" }, format(value));
  if (column.low && Number.isFinite(array(column.low)[pair])) cell.append(element("small", {}, interval(column, pair)));
  if (column.errors && Number.isFinite(value)) cell.append(element("small", {}, `± ${format(array(column.errors)[pair])}`));
  return cell;
}

const interval = (column, pair) => `${format(array(column.low)[pair])} – ${format(array(column.high)[pair])}`;

// All pairs of the filter in their order, with every column, also those that are not shown.
function* rankingRows() {
  const sources = [], names = [];
  for (const { name, method, values, low, high, errors } of columns) {
    names.push(name ?? `${low ? "predicted" : "measured"}[${method}]`);
    sources.push(array(values));
    const beside = errors ? { error: errors } : low ? { low, high } : {};
    for (const [what, source] of Object.entries(beside)) {
      names.push(`${what}[${name ?? method}]`);
      sources.push(array(source));
    }
  }
  yield ["model_a", "model_b", ...names];
  for (const pair of ranking.order) {
    yield [page.models[firstOf[pair]], page.models[secondOf[pair]], ...sources.map((source) => source[pair])];
  }
}

function markSelected() {
  const selected = String(pairNumber(state.a, state.b));
  for (const row of document.querySelectorAll("#ranking tbody tr")) {
    row.toggleAttribute("aria-current", row.dataset.pair === selected);
  }
}

function drawColumnChoice() {
  const groups = new Map();
  for (const column of columns) groups.set(column.category, [...(groups.get(column.category) ?? []), column]);
  const fieldsets = [...groups].map(([category, members]) => {
    const boxes = members.map((column) => {
      const box = element("input", { type: "checkbox", onchange: () => {
        column.shown = box.checked;
        drawHead();
        drawRows();
      } });
      box.checked = column.shown;
      return element("label", { title: column.about }, box, ` ${column.title}`);
    });
    return element("fieldset", {}, element("legend", {}, category), ...boxes);
  });
  byId("column-choice").replaceChildren(...fieldsets);
}

function turnTo(start) {
  ranking.start = start;
  drawRows();
}

const lastStart = () => Math.floor((ranking.order.length - 1) / ROWS) * ROWS;
byId("page-first").addEventListener("click", () => turnTo(0));
byId("page-previous").addEventListener("click", () => turnTo(ranking.start - ROWS));
byId("page-next").addEventListener("click", () => turnTo(ranking.start + ROWS));
byId("page-last").addEventListener("click", () => turnTo(lastStart()));
byId("filter").addEventListener("input", rank);
followers.push(markSelected);
csvSources.set("ranking", rankingRows);

chooseColumns();
rank();
drawHead();
drawColumnChoice();
// The page starts with the pair of the answer, else with the one that is ranked first.
[state.a, state.b] = page.pair ?? [firstOf[ranking.order[0]], secondOf[ranking.order[0]]];
markSelected();
