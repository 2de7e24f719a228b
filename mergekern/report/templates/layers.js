"use strict";
// One metric over the tensors.

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
    const pair = pairNumber(state.a, state.b);
    const ofPair = (name) => x.map((layer) => array(name)[layer * PAIRS + pair]);
    data.push({
      x, y: ofPair(metric.layers), text: names, mode: "lines+markers",
      name: plain(`${shortened(page.models[state.a])}, ${shortened(page.models[state.b])}`),
      line: { color: colour("series-2"), width: 1.5 }, marker: { size: 5 }, hovertemplate,
      ...(metric.layer_errors && { error_y: { type: "data", array: ofPair(metric.layer_errors), thickness: 1, width: 0 } }),
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

function showLayers() {
  const { metric } = state;
  const has = metric.tensors.length > 0;
  const message = page.tensors.length
    ? `${metric.title} is not defined for single tensors.`
    : "The table has no values of single tensors. Compute them with per_layer=True (--per-layer).";
  byId("layers-message").textContent = message;
  byId("layers-message").hidden = has;
  byId("layers-drawn").hidden = !has;
  if (has) redraw("layers-plot");
}

plot("layers-plot", drawLayers);
followers.push(showLayers);
showLayers();
