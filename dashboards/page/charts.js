// Charts drawn by Plotly. Each takes the node it is drawn in and reads the run shown; all are safe to draw again.

const coarse = matchMedia("(pointer: coarse)");

function chart(height, drawing, attributes = {}) {
  return lazy(el("div", { ...attributes, class: `chart ${attributes.class || ""}`, style: { "min-height": `${height}px` } }), (node) => drawing(node, height));
}

function plot(node, height, traces, layout) {
  const axis = { gridcolor: colour("grid"), linecolor: colour("line"), zerolinecolor: colour("line"), automargin: true, title: { font: { size: 12, color: colour("soft") }, standoff: 8 } };
  const merged = (own) => ({ ...axis, ...own, title: { ...axis.title, text: own && own.title } });
  const axes = Object.fromEntries(["xaxis", "yaxis"].map((name) => [name, merged(layout[name] || {})]));
  const legend = { orientation: "h", traceorder: "normal", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", font: { size: 12 }, bgcolor: "rgba(0,0,0,0)", ...layout.legend };
  Plotly.react(node, traces, {
    height, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("ink") },
    margin: { l: 8, r: 14, t: 34, b: 8, pad: 4 }, hovermode: "closest", dragmode: coarse.matches ? false : "zoom",
    hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink"), size: 12.5 }, align: "left" },
    ...layout, ...axes, legend,
  }, { displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false });
}

function opensTrials(node) {
  if (node.opens) return;
  node.opens = true;
  node.on("plotly_click", (event) => { const i = event.points[0].customdata; if (Number.isInteger(i)) openTrial(i); });
}

const meanLine = (value, name, range) => ({ x: range, y: [value, value], mode: "lines", name, line: { color: colour("ink"), width: 1.2, dash: "dash" }, hoverinfo: "skip" });

const SERIES = [["base", "base", "circle-open"], ["final", "trained", "circle"], ["baseline", "trivial baseline", "diamond-open"]];

const dotKeys = () => el("div", { class: "keys dots" }, SERIES.map(([key, name]) => el("span", { class: `key ${key}` }, name)));

// rows of dots on one scale from 0 to 100 %: before training, after it, and the trivial baseline
function dots(node, height, rows) {
  const labels = rows.map((row) => plain(row.label));
  const links = { x: [], y: [] };
  rows.forEach((row, i) => { links.x.push(100 * row.base, 100 * row.final, null); links.y.push(labels[i], labels[i], null); });
  const traces = [{ ...links, mode: "lines", line: { color: colour("adapted"), width: 3 }, opacity: 0.35, hoverinfo: "skip", showlegend: false, connectgaps: false }];
  for (const [key, name, symbol] of SERIES) {
    const some = rows.map((row, i) => [row[key], labels[i]]).filter(([value]) => known(value));
    if (!some.length) continue;
    traces.push({
      x: some.map(([value]) => 100 * value), y: some.map(([, label]) => label), name, mode: "markers",
      marker: { symbol, size: 11, color: colour(key === "final" ? "adapted" : key), line: { width: 2, color: colour(key === "final" ? "adapted" : key) } },
      hovertemplate: `%{y}<br>${name}: %{x:.1f} %<extra></extra>`,
    });
  }
  const top = Math.max(5, ...rows.flatMap((row) => [row.base, row.final, row.baseline].filter(known).map((v) => 100 * v)));
  plot(node, height, traces, {
    showlegend: false, margin: { l: 8, r: 14, t: 6, b: 8, pad: 4 },
    xaxis: { ticksuffix: " %", range: [-0.02 * top, Math.min(101.5, top * 1.08)], title: "" },
    yaxis: { autorange: "reversed", type: "category", showgrid: true },
  });
}

const drawSummary = (node, height) => dots(node, height, run().measures.map((m) => {
  const means = run().summary.means;
  return { label: m.label, base: means[m.base], final: means[m.final], baseline: means[m.baseline] };
}));

const drawCategories = (node, height) => {
  const m = measure();
  dots(node, height, run().categories.map((c) => ({ label: `${c.name} (${c.trials} of ${c.of})`, base: c.means[m.base], final: c.means[m.final], baseline: c.means[m.baseline] })));
};

function compared() {
  const m = measure();
  return indices().filter((i) => at("status", i) === "success" && known(at(m.base, i)) && known(at(m.final, i)))
    .map((i) => ({ i, base: 100 * at(m.base, i), final: 100 * at(m.final, i) }));
}
const GROUPS = [["improved", (d) => d > 1e-7], ["same", (d) => Math.abs(d) <= 1e-7], ["worse", (d) => d < -1e-7]];

function drawTasks(node, height) {
  const m = measure();
  const all = compared();
  const traces = [{ x: [0, 100], y: [0, 100], mode: "lines", line: { color: colour("soft"), width: 1, dash: "dot" }, hoverinfo: "skip", showlegend: false }];
  const shown = new Set(found());
  for (const [name, test] of GROUPS) {
    const some = all.filter((one) => test(one.final - one.base));
    if (!some.length) continue;
    traces.push({
      x: some.map((one) => one.base), y: some.map((one) => one.final), customdata: some.map((one) => one.i), mode: "markers",
      name: `${WORDS[name]} (${some.length})`, text: some.map((one) => plain(title(one.i))),
      marker: { color: colour(name), size: 7, opacity: some.map((one) => (shown.has(one.i) ? 0.75 : 0.06)), line: { width: 0 } },
      hovertemplate: "<b>%{text}</b><br>base %{x:.1f} %<br>adapted %{y:.1f} %<extra></extra>",
    });
  }
  plot(node, height, traces, {
    xaxis: { title: `${m.label}, base`, ticksuffix: " %", range: [-3, 103] },
    yaxis: { title: `${m.label}, adapted`, ticksuffix: " %", range: [-3, 103] },
  });
  opensTrials(node);
}

function drawGains(node, height) {
  const all = compared().map((one) => ({ ...one, gain: one.final - one.base })).sort((a, b) => b.gain - a.gain);
  const traces = GROUPS.map(([name, test]) => {
    const some = all.map((one, rank) => ({ ...one, rank: rank + 1 })).filter((one) => test(one.gain));
    return {
      type: "bar", x: some.map((one) => one.rank), y: some.map((one) => one.gain), customdata: some.map((one) => one.i), name: WORDS[name],
      text: some.map((one) => plain(title(one.i))), textposition: "none", marker: { color: colour(name), line: { width: 0 } },
      hovertemplate: "<b>%{text}</b><br>%{y:+.1f} points<extra></extra>",
    };
  }).filter((trace) => trace.x.length);
  const mean = all.reduce((sum, one) => sum + one.gain, 0) / Math.max(1, all.length);
  traces.push(meanLine(mean, `mean ${signed(mean)} over ${whole(all.length)} of ${whole(run().summary.trials)}`, [0.4, all.length + 0.6]));
  plot(node, height, traces, {
    bargap: all.length > 120 ? 0 : 0.15, xaxis: { title: `${run().noun}, by gain`, range: [0.4, all.length + 0.6] },
    yaxis: { title: "gain over the base, points", zeroline: true, zerolinecolor: colour("soft") },
  });
  opensTrials(node);
}

// ------------------------------------------------------------------------------------------------------------- losses

function drawLoss(node, height, i) {
  const curve = run().curves[i];
  const traces = [["train", "training", "base", 1.5], ["eval", "evaluation", "adapted", 2.5]].map(([key, name, tone, width]) => ({
    x: curve.epoch, y: curve[key], name, mode: curve.epoch.length < 40 ? "lines+markers" : "lines",
    line: { color: colour(tone), width }, marker: { size: 5 }, hovertemplate: `epoch %{x}: %{y:.4g}<extra>${name}</extra>`,
  })).filter((trace) => trace.y.some(known));
  const cutoff = at("status", i) === "stopped" ? at("asha_cutoff", i) : null;
  const shapes = known(cutoff) ? [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: cutoff, y1: cutoff, line: { color: colour("stopped"), dash: "dash", width: 1.2 } }] : [];
  const annotations = known(cutoff) ? [{ xref: "paper", x: 1, y: cutoff, xanchor: "right", yanchor: "bottom", showarrow: false, text: `ASHA's cutoff at epoch ${at("rung", i)}`, font: { size: 11.5, color: colour("stopped") } }] : [];
  plot(node, height, traces, { xaxis: { title: "epoch", tickformat: "d", dtick: Math.max(1, Math.ceil((curve.epoch.at(-1) - curve.epoch[0]) / 12)) }, yaxis: { title: "loss (cross-entropy per token)" }, shapes, annotations });
}

// ---------------------------------------------------------------------------------------------------------------- time

function lanes() {
  const groups = new Map();
  for (const i of indices()) {
    if (!known(at("start", i)) || !known(at("end", i))) continue;
    const slot = at("slot", i), worker = at("worker", i);
    const key = known(slot) ? `${known(worker) ? worker : 0}:${slot}` : "";
    if (!groups.has(key)) groups.set(key, { worker: known(worker) ? worker : 0, slot, bars: [] });
    groups.get(key).bars.push({ i, start: at("start", i), end: at("end", i) });
  }
  const workers = new Set([...groups.values()].map((lane) => lane.worker)).size;
  const all = [];
  for (const lane of groups.values()) {
    lane.bars.sort((a, b) => a.start - b.start);
    if (!known(lane.slot)) { // trials of their own, or that no slot ever took: each on the first line that is free
      for (const bar of lane.bars) {
        let own = all.find((one) => one.free && one.bars.at(-1).end <= bar.start);
        if (!own) all.push((own = { name: "", order: 1e9 + all.length, free: true, bars: [] }));
        own.bars.push(bar);
      }
      continue;
    }
    // a trained adapter waits for its evaluation beside its slot, which has gone on
    lane.bars.forEach((bar, k) => { if (k + 1 < lane.bars.length) bar.end = Math.max(bar.start, Math.min(bar.end, lane.bars[k + 1].start)); });
    all.push({ name: workers > 1 ? `worker ${lane.worker}, slot ${lane.slot}` : `slot ${lane.slot}`, order: lane.worker * 1e4 + lane.slot, bars: lane.bars });
  }
  all.sort((a, b) => a.order - b.order);
  all.filter((lane) => lane.free).forEach((lane, k) => { lane.name = all.length === 1 ? "trials" : `line ${k + 1}`; });
  return all;
}

const span = () => Math.max(1, ...column("end").filter(known));

function drawTimeline(node, height) {
  const all = lanes(), [unit, scale] = timeUnit(span());
  const kinds = new Map();
  for (const lane of all) for (const bar of lane.bars) {
    const kind = outcome(bar.i);
    if (!kinds.has(kind)) kinds.set(kind, []);
    kinds.get(kind).push({ ...bar, name: lane.name });
  }
  const traces = Object.keys(WORDS).filter((kind) => kinds.has(kind)).map((kind) => {
    const bars = kinds.get(kind);
    return {
      type: "bar", orientation: "h", name: `${WORDS[kind]} (${bars.length})`, y: bars.map((bar) => bar.name),
      base: bars.map((bar) => bar.start / scale), x: bars.map((bar) => (bar.end - bar.start) / scale), customdata: bars.map((bar) => bar.i),
      text: bars.map((bar) => `<b>${plain(title(bar.i))}</b><br>${duration(bar.end - bar.start)}`), textposition: "none",
      marker: { color: colour(kind === "success" ? "adapted" : kind), line: { color: colour("card"), width: 1 } },
      hovertemplate: `%{text}<extra>${WORDS[kind]}</extra>`,
    };
  });
  plot(node, height, traces, {
    barmode: "overlay", bargap: 0.18, xaxis: { title: `${unit} since the first start`, range: [0, (span() / scale) * 1.01] },
    yaxis: { type: "category", categoryorder: "array", categoryarray: all.map((lane) => lane.name), autorange: "reversed", tickfont: { size: all.length > 24 ? 9 : 11 }, showgrid: false },
  });
  opensTrials(node);
}

function drawPace(node, height) {
  const { bins, per_hour: mean } = run().pace, [unit, scale] = timeUnit(span());
  plot(node, height, [{
    type: "bar", x: bins.at.map((x) => x / scale), y: bins.rate, marker: { color: colour("adapted"), opacity: 0.8 }, name: "ended",
    hovertemplate: `at %{x:.1f} ${unit}: %{y:,.0f} an hour<extra></extra>`, showlegend: false,
  }, meanLine(mean, `mean ${whole(mean)} per hour`, [0, span() / scale])], {
    bargap: 0.12,
    xaxis: { title: `${unit} since the first start`, range: [0, (span() / scale) * 1.01] }, yaxis: { title: `${run().noun} per hour`, rangemode: "tozero" },
  });
}

// -------------------------------------------------------------------------------------------------------------- search

function dimension(label, values) {
  const some = values.filter(known);
  if (!some.every((value) => typeof value === "number")) {
    const names = [...new Set(some.map(String))].sort();
    return { label, values: values.map((v) => names.indexOf(String(v))), tickvals: names.map((_, k) => k), ticktext: names.map(plain), range: [-0.1, Math.max(names.length - 1, 0.1) + 0.1] };
  }
  const distinct = [...new Set(some)].sort((a, b) => a - b);
  const low = distinct[0], high = distinct.at(-1);
  const log = low > 0 && high / low >= 20;
  const f = log ? Math.log10 : (v) => v;
  const ticks = distinct.length <= 6 ? distinct : Array.from({ length: 5 }, (_, k) => (log ? low * (high / low) ** (k / 4) : low + ((high - low) * k) / 4));
  // labels of values that lie close together would lie on each other
  const place = (v) => (f(v) - f(low)) / (f(high) - f(low) || 1);
  const spread = ticks.reduce((kept, v) => (kept.length && place(v) - place(kept.at(-1)) < 0.06 ? kept : [...kept, v]), []);
  // Plotly takes two labels of the same text for one
  let texts = [], digits = 3;
  do texts = spread.map((v) => String(Number(v.toPrecision(digits)))); while (new Set(texts).size < texts.length && ++digits < 12);
  return { label: log ? `${label} (log)` : label, values: values.map((v) => f(v)), tickvals: spread.map(f), ticktext: texts, range: low === high ? [f(low) - 1, f(low) + 1] : [f(low), f(high)] };
}

// a line is a configuration: trials of one lie on each other wherever settings are concerned
function drawParallel(node, height) {
  const rows = run().configurations.filter((c) => known(c.relative_loss));
  const dimensions = Object.keys(rows[0].values).map((name) => dimension(plain(name), rows.map((c) => c.values[name])));
  if (run().rungs.length) dimensions.push(dimension("stopped by ASHA, %", rows.map((c) => (100 * c.stopped) / c.trials)));
  if (rows.every((c) => known(c.gain))) dimensions.push(dimension("gain, points", rows.map((c) => 100 * c.gain)));
  const loss = rows.map((c) => c.relative_loss), sorted = [...loss].sort((a, b) => a - b);
  // a few that diverged would leave no colours for the others
  const best = sorted[0], worst = Math.max(best * 1.0001, sorted[Math.floor(0.9 * (sorted.length - 1))]);
  dimensions.push(dimension("loss / best of its task", loss.map((v) => Math.min(v, worst))));
  Plotly.react(node, [{
    type: "parcoords", dimensions, labelfont: { size: 12.5, color: colour("ink") }, tickfont: { size: 11, color: colour("soft") }, rangefont: { size: 1, color: "rgba(0,0,0,0)" },
    line: { color: loss, colorscale: dark() ? [[0, "#ffd45c"], [0.5, "#3f97c4"], [1, "#465066"]] : [[0, "#0b3d91"], [0.5, "#79a5d8"], [1, "#efc98a"]], cmin: best, cmax: worst, showscale: true, colorbar: { title: { text: "loss / best", side: "right", font: { size: 11 } }, thickness: 10, outlinewidth: 0, tickfont: { size: 10.5 } } },
    unselected: { line: { opacity: 0.06, color: colour("soft") } },
  }], { height, autosize: true, margin: { l: 48, r: 20, t: 44, b: 22 }, paper_bgcolor: colour("card"), font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink") } }, { displaylogo: false, responsive: true, displayModeBar: false });
}

function drawRungs(node, height) {
  const rungs = run().rungs, x = rungs.map((rung) => `epoch ${rung.epoch}`);
  const bars = [["went on", "adapted", (r) => r.judged - r.stopped], ["stopped", "stopped", (r) => r.stopped]];
  plot(node, height, bars.map(([name, tone, value]) => ({
    type: "bar", x, y: rungs.map(value), name, marker: { color: colour(tone) }, text: rungs.map((r) => value(r) || ""), textposition: "inside", insidetextanchor: "middle", textangle: 0,
    textfont: { color: dark() ? "#0b0e13" : "#ffffff" }, hovertemplate: `%{x}: %{y} ${name}<extra></extra>`,
  })), { barmode: "stack", bargap: 0.4, xaxis: { type: "category", title: "rung" }, yaxis: { title: "trials judged" } });
}

// ---------------------------------------------------------------------------------------------------------- comparison

const RUN_COLOURS = ["#1f6feb", "#d98a00", "#0a8f6a", "#d1440c", "#8a63d2", "#00a3b4", "#b3123b", "#7c8794"];

function drawRuns(node, height) {
  const runs = state.data.runs, measures = runs.find((one) => one.measures.length).measures;
  plot(node, height, runs.map((one, k) => ({ one, k })).filter(({ one }) => one.measures.length).map(({ one, k }) => ({
    x: measures.map((m) => 100 * state.data.comparison.means[k][m.final]), y: measures.map((m) => m.label), mode: "markers", name: plain(runLabel(one)),
    marker: { size: 11, color: RUN_COLOURS[k % RUN_COLOURS.length] }, hovertemplate: `%{y}: %{x:.1f} %<extra>${plain(runLabel(one))}</extra>`,
  })), { xaxis: { ticksuffix: " %", rangemode: "tozero", title: "mean after training" }, yaxis: { autorange: "reversed", type: "category" } });
}

// accuracy of the best trial of each task in the first run against that in the run shown
function drawRunTasks(node, height) {
  const first = state.data.runs[0], other = state.data.runs[Math.max(1, state.run)], { name, label } = first.lead;
  const bests = [first, other].map((one) => {
    const best = new Map();
    (one.trials[name] || []).forEach((value, i) => { const task = one.trials.task_id[i]; if (known(value)) best.set(task, Math.max(value, best.get(task) ?? -1)); });
    return best;
  });
  const tasks = [...bests[0].keys()].filter((task) => bests[1].has(task));
  plot(node, height, [
    { x: [0, 100], y: [0, 100], mode: "lines", line: { color: colour("soft"), width: 1, dash: "dot" }, hoverinfo: "skip", showlegend: false },
    { x: tasks.map((t) => 100 * bests[0].get(t)), y: tasks.map((t) => 100 * bests[1].get(t)), text: tasks.map(plain), mode: "markers", showlegend: false, marker: { color: colour("adapted"), size: 7, opacity: 0.7 }, hovertemplate: "<b>%{text}</b><br>%{x:.1f} % and %{y:.1f} %<extra></extra>" },
  ], { margin: { l: 8, r: 14, t: 14, b: 8, pad: 4 }, xaxis: { title: plain(`${label}, ${runLabel(first)}`), ticksuffix: " %", range: [-3, 103] }, yaxis: { title: plain(`${label}, ${runLabel(other)}`), ticksuffix: " %", range: [-3, 103] } });
}
