"use strict";
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
// Dark and light in turn, so that neighbours differ in a black and white print too.
const colours = {
  false: ["#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#785ef0", "#a37500", "#56b4e9"],
  true: ["#ffffff", "#56b4e9", "#ff9f5a", "#3ddbab", "#f3a6d1", "#b3a1ff", "#f0c04a", "#9ad4f5"],
};

function themed(layout) {
  const css = getComputedStyle(document.documentElement);
  const ink = css.getPropertyValue("--ink").trim();
  const line = css.getPropertyValue("--line").trim();
  const axis = (given) => ({ ...given, linecolor: ink, tickcolor: ink, gridcolor: line, fixedrange: touch });
  return {
    ...layout,
    font: { color: ink, size: 12, family: "system-ui, sans-serif" },
    hoverlabel: { bgcolor: css.getPropertyValue("--paper").trim(), font: { color: ink } },
    xaxis: axis(layout.xaxis),
    yaxis: axis(layout.yaxis),
    dragmode: touch ? false : "zoom",
  };
}

function coloured(trace) {
  if (!trace.meta) return trace;
  const palette = colours[dark.matches];
  const color = palette[trace.meta.style % palette.length];
  const given = { line: { ...trace.line, color }, marker: { ...trace.marker, color } };
  return { ...trace, ...given, error_y: { ...trace.error_y, color } };
}

function draw() {
  for (const place of document.querySelectorAll(".plot")) {
    const figure = JSON.parse(document.getElementById(place.id + "-data").textContent);
    const config = { responsive: true, displayModeBar: false };
    Plotly.react(place, figure.data.map(coloured), themed(figure.layout), config);
  }
  document.body.dataset.drawn = "yes";
}

dark.addEventListener("change", draw);
draw();
