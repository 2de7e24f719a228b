"use strict";
// One pair: its scores by method, and its metrics with ranks.

// The rank among all pairs with a value, 1 for the most mergeable, and the share of the others that are less mergeable.
function standing(metric, pair) {
  const values = array(metric.values), value = values[pair];
  const sign = metric.better === "higher" ? 1 : -1;
  let better = 0, worse = 0, known = 0;
  for (const other of values) {
    if (other !== other) continue;
    known++;
    if (sign * other > sign * value) better++;
    else if (other !== value) worse++;
  }
  return { value, rank: better + 1, known, share: known > 1 ? worse / (known - 1) : NaN };
}

function metricRow(metric, pair) {
  const { value, rank, known, share } = standing(metric, pair);
  const has = Number.isFinite(value);
  const shown = element("td", { class: "number", "data-value": has ? value : "" }, format(value));
  if (metric.errors && has) shown.append(element("small", {}, `± ${format(array(metric.errors)[pair])}`));
  const percent = has && Number.isFinite(share) ? Math.round(100 * share) : null;
  const bar = element("span", { class: "bar", "aria-hidden": "true" },
    element("span", { style: `width: ${percent ?? 0}%` }));
  return element("tr", {},
    element("th", { scope: "row", title: metric.about }, metric.title),
    shown,
    element("td", { class: "number nowrap" }, has ? `${rank.toLocaleString("en")} of ${known.toLocaleString("en")}` : "—"),
    element("td", { class: "share" }, percent === null ? "—" : bar, percent === null ? "" : element("span", {}, `${percent} %`)),
    element("td", {}, metric.better),
  );
}

// So many pairs are ranked at once; with more, the page opens first, and the rows follow one by one.
const RANKED_AT_ONCE = 50_000;
const whenIdle = () => new Promise((done) => (window.requestIdleCallback ?? setTimeout)(() => done()));
let shown = 0; // counts the pairs shown, so that rows of an earlier one stop

async function showMetrics(pair) {
  const table = byId("pair-metrics"), turn = ++shown;
  const names = ["Metric", "Value", "Rank", "Less mergeable pairs", "More mergeable"];
  const numbers = new Set(["Value", "Rank"]);
  const heads = names.map((text) => element("th", { scope: "col", class: numbers.has(text) ? "number" : null }, text));
  table.tHead.replaceChildren(element("tr", {}, ...heads));
  table.caption.textContent = `Metrics of ${page.models[state.a]} and ${page.models[state.b]}`;
  for (const body of [...table.tBodies]) body.remove();
  let body = null, category = null;
  for (const metric of page.metrics) {
    if (PAIRS > RANKED_AT_ONCE) await whenIdle();
    if (turn !== shown) return;
    if (metric.category !== category) {
      category = metric.category;
      body = element("tbody", {}, element("tr", { class: "category" },
        element("th", { scope: "rowgroup", colspan: names.length }, category)));
      table.append(body);
    }
    body.append(metricRow(metric, pair));
  }
}

// What was predicted of a measured pair while the merges of one of its models were held out.
function heldOut(method, pair) {
  const entry = page.outcomes.accuracy.find((known) => known.method === method);
  if (!entry) return [];
  const predicted = array(entry.predicted), measured = array(entry.measured), without = array(entry.without);
  return [...array(entry.pairs).entries()].filter(([, other]) => other === pair).map(([at]) => ({
    without: page.models[without[at]], predicted: predicted[at], off: predicted[at] - measured[at],
  }));
}

const signed = (value) => `${value < 0 ? "−" : "+"}${format(Math.abs(value))}`;

function scoreRow(method, pair) {
  const column = (what) => page.outcomes.columns.find((known) => known.method === method && Boolean(known.low) === what);
  const [predicted, measured] = [column(true), column(false)];
  const value = (known) => (known ? array(known.values)[pair] : NaN);
  const words = page.outcomes.remarks.find((remark) => remark.method === method);
  const range = predicted && Number.isFinite(array(predicted.low)[pair]) ? ` (${interval(predicted, pair)})` : "";
  const off = heldOut(method, pair).map((known) => element("div", {},
    `${format(known.predicted)} without merges of ${known.without}, off by ${signed(known.off)}`));
  return [
    format(value(measured)), `${format(value(predicted))}${range}`, off.length ? off : "—",
    words?.drivers[pair] || "—", words?.remarks[pair] || "—",
  ];
}

function showScores(pair) {
  const names = ["Measured", "Predicted", "Predicted when held out", "What moved it most", "Remarks"];
  const rows = page.outcomes.methods.map((method) => [method, scoreRow(method, pair)]);
  const kept = [...names.keys()].filter((at) => at < 2 || rows.some(([, cells]) => cells[at] !== "—"));
  const heads = ["Method", ...kept.map((at) => names[at])].map((text) => element("th", { scope: "col" }, text));
  const body = rows.map(([method, cells]) => element("tr", {}, element("th", { scope: "row" }, method),
    ...kept.map((at) => element("td", { class: at > 1 ? "words" : null }, ...[cells[at]].flat()))));
  const target = page.outcomes.target.replace(/^./, (letter) => letter.toUpperCase());
  const caption = element("caption", {}, `${target} of ${page.models[state.a]} and ${page.models[state.b]}`);
  byId("selected").replaceChildren(element("table", {}, caption, element("thead", {}, element("tr", {}, ...heads)),
    element("tbody", {}, ...body)));
  byId("selected").hidden = false;
}

function showPair(changes) {
  if (!("a" in changes || "b" in changes)) return;
  byId("pair-a").value = state.a;
  byId("pair-b").value = state.b;
  const pair = pairNumber(state.a, state.b);
  showMetrics(pair);
  if (page.outcomes) showScores(pair);
}

function* pairRows() {
  const pair = pairNumber(state.a, state.b);
  yield ["model_a", "model_b", "metric", "value", "error", "rank", "pairs", "more_mergeable"];
  for (const metric of page.metrics) {
    const { value, rank, known } = standing(metric, pair);
    const error = metric.errors ? array(metric.errors)[pair] : NaN;
    const place = Number.isFinite(value) ? rank : NaN;
    yield [page.models[state.a], page.models[state.b], metric.name, value, error, place, known, metric.better];
  }
}

for (const [id, which] of [["pair-a", "a"], ["pair-b", "b"]]) {
  fillSelect(byId(id), page.models);
  byId(id).addEventListener("change", ({ target }) => {
    const chosen = Number(target.value), other = which === "a" ? "b" : "a";
    // The models of a pair are distinct: choosing the other one exchanges the two.
    show(chosen === state[other] ? { a: state.b, b: state.a } : { [which]: chosen });
  });
}
csvSources.set("pair-metrics", pairRows);
followers.push(showPair);
showPair(state);
