"use strict";
// Correlations of the metrics.

const correlations = { row: 0, column: 1 };

const correlationValue = (row, column) => array(page.correlations[state.correlation])[row * page.metrics.length + column];

function drawCorrelations() {
  const count = page.metrics.length;
  const z = page.metrics.map((_, row) => page.metrics.map((_, column) => correlationValue(row, column)));
  const titles = page.metrics.map((metric) => plain(metric.title));
  const ticks = { tickvals: titles.map((_, index) => index), ticktext: narrow.matches ? titles.map(() => "") : titles };
  const trace = {
    type: "heatmap", z, zmin: -1, zmax: 1, hoverinfo: "none",
    colorscale: aroundZero(),
    colorbar: { orientation: "h", thickness: 12, y: 1, yanchor: "bottom", len: 1, ypad: 6, outlinewidth: 0 },
  };
  const whole = [-0.5, count - 0.5];
  return { data: [trace], layout: {
    xaxis: { ...axisColours(), ...ticks, range: whole, showgrid: false, zeroline: false, constrain: "domain", tickangle: -90 },
    yaxis: { ...axisColours(), ...ticks, range: [...whole].reverse(), showgrid: false, zeroline: false, scaleanchor: "x",
      constrain: "domain" },
  } };
}

function readCorrelation() {
  const { row, column } = correlations;
  byId("correlations-readout").replaceChildren(
    `${page.metrics[row].title} and ${page.metrics[column].title.replace(/^./, (letter) => letter.toLowerCase())}: `,
    element("strong", {}, format(correlationValue(row, column))),
  );
}

function followCorrelations(target) {
  target.on("plotly_hover", ({ points: [{ x, y }] }) => {
    [correlations.row, correlations.column] = [y, x];
    readCorrelation();
  });
  moveByKeys(target, correlations, page.metrics.length, page.metrics.length, () => {
    readCorrelation();
    const cursor = cell(correlations.column, correlations.row, { color: colour("mark"), width: 2, dash: "dot" });
    Plotly.relayout(target, { shapes: [cursor] });
  });
}

if (page.metrics.length > 1) {
  byId("correlation-kind").addEventListener("change", ({ target }) => {
    state.correlation = target.value;
    readCorrelation();
    redraw("correlations-plot");
  });
  plot("correlations-plot", drawCorrelations, followCorrelations);
  readCorrelation();
}
