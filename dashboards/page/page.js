// The sections of the page, in reading order; each appears where the run has the data for it.

const runLabel = (one) => (new Set(state.data.runs.map((r) => r.sweep)).size > 1 ? `${one.sweep} / ${one.run_id}` : one.run_id);

function section(id, heading, note, ...content) {
  return el("section", { id, "data-nav": heading }, el("header", {}, el("h2", {}, heading), note ? el("p", { class: "note" }, note) : null), ...content);
}
const card = (span, ...content) => el("div", { class: `card ${span}` }, ...content);
const chartCard = (span, heading, ...content) => card(span, heading ? el("div", { class: "chart-title" }, heading) : null, ...content);

function choice(label, options, current, change) {
  return el("label", {}, label, el("select", { onchange: (event) => change(event.target.value) }, options.map(([value, text]) => el("option", { value, selected: String(value) === String(current) }, text))));
}
function segments(name, options, current, change) {
  const box = el("div", { class: "seg", role: "group", "aria-label": name });
  box.append(...options.map(([value, text]) => el("button", {
    type: "button", "aria-pressed": String(value === current), "data-value": value,
    onclick: () => { for (const button of box.children) button.setAttribute("aria-pressed", String(button.dataset.value === value)); change(value); },
  }, text)));
  return box;
}

// --------------------------------------------------------------------------------------------------------- the summary

function tile(label, big, ...sub) {
  return el("div", { class: "card tile" }, el("span", { class: "label" }, label), el("span", { class: "big" }, big), ...sub);
}
function change(base, last) {
  const gain = last - base;
  return el("span", { class: Math.abs(gain) < 5e-4 ? "" : gain > 0 ? "up" : "down" }, `${points(gain)} points`);
}
function split(entries) {
  return [
    el("div", { class: "split", "aria-hidden": "true" }, entries.filter(([, n]) => n).map(([name, n]) => el("i", { style: { flex: n, background: colourOf(name) } }))),
    el("div", { class: "keys" }, entries.filter(([, n]) => n).map(([name, n]) => el("span", { class: "key", style: { "--c": colourOf(name) } }, `${whole(n)} ${WORDS[name] || name}`))),
  ];
}

function hero() {
  const one = run(), { means, counts, versus_base: versus, seconds } = one.summary, tiles = [];
  const several = state.data.runs.length > 1;
  const compared = versus.improved + versus.same + versus.worse;
  for (const m of one.measures.slice(0, 2)) {
    const trivial = means[m.baseline];
    tiles.push(tile(m.label, percent(means[m.final]), el("span", { class: "sub" }, change(means[m.base], means[m.final]), ` against the base (${percent(means[m.base])})`), el("span", { class: "sub" }, `mean over ${one.summary.over_text[m.final]}`), known(trivial) ? el("span", { class: "sub" }, `${m.baseline_label}: ${percent(trivial)}`) : null));
  }
  if (compared) tiles.push(tile("better than the base", `${whole(versus.improved)} of ${whole(compared)}`, ...split([["improved", versus.improved], ["same", versus.same], ["worse", versus.worse]])));
  if (!one.measures.length) for (const score of one.scores.filter((s) => known(s.mean)).slice(0, 3)) tiles.push(tile(score.label, scoreText(score)(score.mean), el("span", { class: "sub" }, `mean over ${score.over}`)));
  tiles.push(tile(one.noun, whole(one.summary.trials), ...split([["success", counts.success || 0], ["stopped", counts.stopped || 0], ["failed", counts.failed || 0], ["unfinished", one.summary.unfinished]])));
  tiles.push(tile("pace", known(one.pace.per_hour) ? `${whole(one.pace.per_hour)} / h` : MISSING, el("span", { class: "sub" }, `${duration(one.pace.busy)} of training`), seconds.gpu_seconds ? el("span", { class: "sub" }, `${duration(seconds.gpu_seconds)} of GPUs`) : el("span", { class: "sub" }, "on CPUs")));
  const hardware = one.run.hardware || {};
  const where = (hardware.gpus && hardware.gpus.length ? hardware.gpus.join(", ") : `${hardware.cpu || "CPU"}, ${hardware.cores} cores`);
  return [
    several ? el("div", { class: "runs", role: "group", "aria-label": "Run shown" }, el("span", { class: "note" }, "Run shown:"), state.data.runs.map((r, k) => el("button", { type: "button", "aria-pressed": String(k === state.run), onclick: () => { state.run = k; state.measure = null; render(); } }, runLabel(r)))) : null,
    el("div", { class: "hero" }, el("h1", {}, one.conclusion[0]), one.conclusion.length > 1 ? el("p", { class: "lead" }, one.conclusion.slice(1).join(" ")) : null, el("p", { class: "note" }, `${one.sweep} / ${one.run_id}, started ${moment(one.run.started_at)} on ${where}.`)),
    el("div", { class: "tiles" }, tiles),
  ];
}

const leftOut = (one) => (one.summary.left_out_text ? ` Left out of the data: ${one.summary.left_out_text}.` : "");

function summarySection() {
  const one = run(), means = one.summary.means;
  if (!one.measures.length) {
    const rows = one.scores.filter((score) => known(score.mean));
    return rows.length ? section("summary", "Summary", `Means over successful trials, on held-out examples.${leftOut(one)}`, card("", el("dl", {}, rows.flatMap((score) => [el("dt", {}, score.label), el("dd", {}, scoreText(score)(score.mean), el("span", { class: "note" }, ` over ${score.over}`))])))) : null;
  }
  const row = (m) => el("tr", {}, el("td", {}, m.label), el("td", { class: "num" }, one.summary.over_text[m.final]), el("td", { class: "num" }, percent(means[m.base])), el("td", { class: "num" }, percent(means[m.final])), el("td", { class: "num" }, change(means[m.base], means[m.final])), el("td", { class: "num" }, percent(means[m.baseline])));
  const heads = ["", "mean over", "base", "trained", "change", "trivial baseline"].map((text, k) => el("th", { class: k ? "num flat" : "flat", scope: "col" }, text));
  const others = one.scores.filter((score) => known(score.mean)).map((score) => `${score.label} ${scoreText(score)(score.mean)} (over ${score.over})`);
  const extra = others.length ? el("p", { class: "note", style: { "margin-top": "10px" } }, `Also: ${others.join(", ")}.`) : null;
  return section("summary", "Summary", `Means over successful trials, on held-out test pairs that no training saw.${leftOut(one)}`,
    el("div", { class: "cols" }, el("div", { class: "span7" }, el("div", { class: "table plain" }, el("table", {}, el("thead", {}, el("tr", {}, heads)), el("tbody", {}, one.measures.map(row)))), extra), chartCard("span5", null, dotKeys(), chart(215, drawSummary, { id: "chart-summary" }))));
}

// -------------------------------------------------------------------------------------------------------- the sections

function comparisonSection() {
  const runs = state.data.runs;
  if (runs.length < 2) return null;
  const measures = (runs.find((one) => one.measures.length) || { measures: [] }).measures;
  const { tasks: shared, of_tasks: of, means, settings } = state.data.comparison, base = means[0];
  const line = (label, cell) => el("tr", {}, el("td", {}, label), runs.map((one, k) => el("td", { class: "num" }, cell(one, k))));
  const rows = [
    ...measures.map((m) => line(m.label, (one, k) => { const v = means[k][m.final]; return k && known(v) && known(base[m.final]) ? el("span", {}, `${percent(v)} `, change(base[m.final], v)) : percent(v); })),
    line("better / same / worse than the base", (one) => ["improved", "same", "worse"].map((v) => one.summary.versus_base[v]).join(" / ")),
    line("trials", (one) => whole(one.summary.trials)), line("failed", (one) => whole(one.summary.counts.failed || 0)),
    line("training time", (one) => duration(one.pace.busy)), line("per hour", (one) => whole(one.pace.per_hour)),
    ...settings.map((setting) => el("tr", {}, el("td", { class: "mono" }, setting.name), setting.values.map((v) => el("td", { class: "num mono" }, v === null ? MISSING : String(v).slice(0, 60))))),
  ];
  const head = el("tr", {}, el("th", { class: "flat" }, ""), runs.map((one) => el("th", { class: "num flat", scope: "col" }, runLabel(one))));
  const tasks = runs.length > 1 && runs[0].lead && (runs[0].trials[runs[0].lead.name] || []).some(known);
  return section("comparison", "Comparison", `${measures.length ? `Accuracies are means over ${whole(shared)} of ${whole(of)} tasks, those that all of these runs have done, changes against the first run. ` : ""}Settings in which the runs differ are at the end.`,
    el("div", { class: "table plain", style: { "margin-bottom": "14px" } }, el("table", { id: "comparison-table" }, el("thead", {}, head), el("tbody", {}, rows))),
    el("div", { class: "cols" }, measures.length ? chartCard("span6", "After training", chart(320, drawRuns, { id: "chart-runs" })) : null,
      tasks ? chartCard("span6", "Each task, best trial of either run", chart(320, drawRunTasks, { id: "chart-run-tasks" })) : null));
}

function taskSection() {
  const one = run();
  if (!one.measures.length) return null;
  const redraw = () => { for (const id of ["chart-tasks", "chart-gains", "chart-categories"]) { const node = document.getElementById(id); if (node) draw(node); } };
  const measured = one.measures.map((m, k) => [k, m.label]);
  return section("tasks", "Base and adapter", "Every point is a trial on held-out test pairs; above the dotted line the adapter is better than the base. A click opens the trial.",
    el("div", { class: "controls" }, choice("measure", measured, one.measures.indexOf(measure()), (value) => { state.measure = Number(value); redraw(); })),
    el("div", { class: "cols" },
      chartCard("span6", "Task by task", chart(430, drawTasks, { id: "chart-tasks" })),
      chartCard("span6", "Gains in order", chart(430, drawGains, { id: "chart-gains" })),
      one.categories.length ? chartCard("", "By category (trials that succeeded, of all), means", dotKeys(), chart(Math.max(130, 60 + 44 * one.categories.length), drawCategories, { id: "chart-categories" })) : null));
}

function tableSection() {
  const count = found().length, all = size();
  const note = count < all ? `${whole(count)} of ${whole(all)} match the search.` : "A click on a heading sorts, a click on a row opens the trial.";
  return section("trials", count && many() ? "Trials" : run().measures.length ? "Tasks" : "Trials", `${note}${count > SHOWN ? ` The first ${whole(SHOWN)} are listed; search for the others.` : ""}`, trialTable());
}

function lossSection() {
  const list = indices().filter((i) => run().curves[i]);
  if (!list.length) return null;
  const legend = el("span", { class: "keys" }, el("span", { class: "key line thin", style: { "--c": "var(--base)" } }, "training"), el("span", { class: "key line", style: { "--c": "var(--adapted)" } }, "evaluation"));
  const note = "Loss (cross-entropy per token) over epochs. The number is the last evaluation loss; the scale is each curve's own unless they share one.";
  if (list.length <= 3) {
    return section("losses", "Loss curves", "Loss (cross-entropy per token) over epochs.", el("div", { class: "cols" }, list.map((i) => chartCard(list.length > 1 ? "span6" : "", title(i), chart(320, (node, height) => drawLoss(node, height, i), { id: `chart-loss-${i}` })))));
  }
  const box = el("div", { class: "box", id: "curves" }, curveGrid());
  const again = () => box.replaceChildren(curveGrid());
  const orders = Object.entries(ORDERS).map(([key, [label]]) => [key, label]).filter(([key]) => key !== "gain" || column("gain").length);
  if (!column("gain").length && state.order === "gain") state.order = "loss";
  const searching = el("input", { type: "search", placeholder: "Find tasks", "aria-label": "Find curves", value: state.search, "data-search": true, oninput: (event) => search(event.target.value) });
  return section("losses", "Loss curves", note,
    el("div", { class: "controls" }, searching, choice("order", orders, state.order, (value) => { state.order = value; again(); }), segments("scale", [["own", "own scale"], ["shared", "one scale"]], state.scale, (value) => { state.scale = value; again(); }), legend), box);
}

function pictureSection() {
  const kept = Object.keys(run().pictures.kept).length;
  if (!kept) return null;
  const box = el("div", { id: "gallery" }, gallery());
  const again = () => box.replaceChildren(gallery());
  const palette = el("span", { class: "palette", "aria-hidden": "true" }, ARC.map((tone) => el("i", { style: { background: tone } })));
  const left = run().pictures.trials - kept;
  const note = `Held-out test pairs: the input, the right answer, and what came out before and after training. A white dot marks a wrong cell.${left ? ` The answers of ${whole(left)} trials with the smallest changes are left out to keep the page small.` : ""}`;
  return section("pictures", "Task pictures", note,
    el("div", { class: "controls" }, segments("which", Object.entries(PICTURES).map(([key, [label]]) => [key, label]), state.picture, (value) => { state.picture = value; again(); }),
      el("label", {}, el("input", { type: "checkbox", checked: state.marks, onchange: (event) => { state.marks = event.target.checked; again(); } }), "mark wrong cells"), palette), box);
}

function timeSection() {
  if (!column("end").some(known)) return null;
  const count = lanes().length;
  const slots = column("slot").some(known);
  return section("time", "Timeline", slots ? "What each slot trained and when. A bar ends where the slot's next adapter starts; its evaluation comes after that, together with others." : "Which trials ran when.",
    el("div", { class: "cols" }, chartCard("", slots ? "Slots" : "Trials", chart(Math.min(1100, 110 + count * (count > 24 ? 15 : 22)), drawTimeline, { id: "chart-timeline" })), chartCard("", `${run().noun[0].toUpperCase()}${run().noun.slice(1)} that ended, per hour`, chart(240, drawPace, { id: "chart-pace" }))));
}

const webgl = (() => { try { return Boolean(document.createElement("canvas").getContext("webgl")); } catch { return false; } })();

function searchSection() {
  const one = run();
  if (!one.swept.length && !one.rungs.length) return null;
  const parts = [];
  if (one.configurations.filter((c) => known(c.relative_loss)).length > 1) {
    const drawing = webgl ? el("div", { class: "scroll" }, chart(360, drawParallel, { id: "chart-parallel", class: "wide" })) : el("p", { class: "empty" }, "This browser draws no WebGL, which parallel coordinates need; the table below has the same numbers.");
    parts.push(chartCard("", "Every configuration as a line through its settings", drawing, el("p", { class: "note" }, "Drag along an axis to keep only the lines through a part of it. The loss is the lowest evaluation loss over the lowest of any trial on the same task, mean over the configuration's trials: 1 is the best possible.")));
  }
  if (one.configurations.length) {
    const names = Object.keys(one.configurations[0].values);
    const columns = [
      ...names.map((name) => ({ key: `config/${name}`, label: name, value: (c) => c.values[name], numeric: one.configurations.every((c) => typeof c.values[name] === "number") })),
      numeric("relative_loss", "loss / best", number, (c) => c.relative_loss), numeric("gain", "gain, points", points, (c) => c.gain, `mean gain over the base, successful trials: ${lead().label}`),
      numeric("trials", "trials", whole, (c) => c.trials), numeric("stopped", "stopped", whole, (c) => c.stopped), numeric("failed", "failed", whole, (c) => c.failed),
    ];
    parts.push(el("div", {}, sortable("configurations", columns, one.configurations, { class: "short", label: "Configurations", sort: { key: "relative_loss", down: false } })));
  }
  if (one.rungs.length) {
    const spared = one.rungs.reduce((sum, rung) => sum + rung.spared, 0), stopped = one.rungs.reduce((sum, rung) => sum + rung.stopped, 0);
    parts.push(chartCard("span5", "ASHA's rungs", chart(270, drawRungs, { id: "chart-rungs" }), el("p", { class: "note" }, `${whole(stopped)} trials were stopped, which spared ${whole(spared)} epochs.`)));
    const rows = indices().filter((i) => at("status", i) === "stopped");
    const columns = [
      { key: "task", label: "task", value: title, node: opener }, ...one.swept.map((name) => ({ key: name, label: name.slice(7), value: (i) => at(name, i), numeric: column(name).every((v) => !known(v) || typeof v === "number") })),
      numeric("rung", "stopped at epoch", whole), numeric("final_loss", "eval loss", number), numeric("asha_cutoff", "cutoff", number),
    ];
    if (rows.length) parts.push(el("div", { class: "span7" }, el("div", { class: "chart-title", style: { margin: "0 0 8px" } }, "What it stopped"), sortable("stopped", columns, rows, { class: "short", label: "Trials that ASHA stopped", open: openTrial, sort: { key: "rung", down: false } })));
  }
  return section("search-results", "Search", one.rungs.length ? "What was tried, what it came to, and what ASHA stopped." : "What was tried and what it came to.", el("div", { class: "cols" }, parts));
}

function failureSection() {
  const list = run().failures;
  if (!list.length) return null;
  const lasting = list.filter((one) => one.now === "failed").length;
  return section("failures", "Failures", `${whole(list.length)} failed attempts; ${lasting ? `${whole(lasting)} of them are of trials that have not succeeded since. The same command with the same --run-id tries them again.` : "each of these trials has succeeded since."}`,
    el("div", {}, list.slice(0, 200).map((one) => failure(one, false))), list.length > 200 ? el("p", { class: "note" }, `${whole(list.length - 200)} more are in trials/.`) : null);
}

function reproduceSection() {
  const { run: record, results, run_id: id } = run();
  const has = / --run-id[ =]/.test(record.command || "");
  const copy = el("button", { type: "button", class: "push", onclick: (event) => {
    navigator.clipboard?.writeText(record.command).then(() => { event.target.textContent = "copied"; }, () => { event.target.textContent = "not allowed"; });
  } }, "copy");
  const hardware = record.hardware || {}, git = record.git;
  const facts = [
    ["commit", git ? `${git.commit}${git.dirty ? ", with changes that were not committed" : ""}` : MISSING], ["seed", record.seed], ["data fingerprint", record.data_fingerprint],
    ["versions", Object.entries(record.versions || {}).filter(([, v]) => v).map(([name, v]) => `${name} ${v}`).join(", ")],
    ["hardware", `${(hardware.gpus || []).join(", ") || "no GPU"}; ${hardware.cpu}, ${hardware.cores} cores, ${hardware.memory_bytes ? `${Math.round(hardware.memory_bytes / 2 ** 30)} GiB` : MISSING}`],
    ["sessions", (record.sessions || []).map((s) => moment(s.started_at)).join("; ")], ["results", results],
  ];
  return section("reproduce", "How to reproduce", `The same command makes the same run${has ? "" : ` under a new name; with --run-id ${id} it continues or extends this one`}. Every row of trials/ has its complete configuration and seed.`,
    card("", el("div", { class: "copy-line" }, el("pre", { class: "wrap", id: "command" }, record.command || MISSING), copy), el("dl", { style: { "margin-top": "14px" } }, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", { class: ["commit", "data fingerprint", "results"].includes(name) ? "mono" : "" }, known(value) ? String(value) : MISSING)]))),
    el("details", { style: { "margin-top": "10px" } }, el("summary", {}, "All settings"), el("pre", {}, JSON.stringify(record.settings, (_, v) => (Array.isArray(v) && v.length > 12 ? `${v.length} values, see run.json` : v), 2))));
}

// ------------------------------------------------------------------------------------------------------------- render

const SECTIONS = [comparisonSection, summarySection, ...OWN_SECTIONS, taskSection, tableSection, lossSection, pictureSection, searchSection, timeSection, failureSection, reproduceSection];

function render() {
  const scrolled = scrollY;
  const boxes = ["curves"].map((id) => [id, document.getElementById(id)?.scrollTop]);
  const parts = size() ? SECTIONS.map((make) => make()).filter(Boolean) : [reproduceSection()];
  const footer = el("footer", {}, `Made ${moment(state.data.made_at)} from Parquet files; `, el("code", {}, "pandas.read_parquet"), ", DuckDB and Polars read them too.");
  const head = hero().filter(Boolean);
  document.getElementById("main").replaceChildren(...head, ...parts, footer);
  document.getElementById("sweep-name").textContent = state.data.runs.length > 1 ? `${state.data.runs.length} runs` : run().sweep;
  document.getElementById("run-name").textContent = run().run_id;
  document.getElementById("nav").replaceChildren(...parts.map((part) => el("a", { href: `#${part.id}` }, part.dataset.nav)));
  for (const [id, top] of boxes) if (top) document.getElementById(id)?.scrollTo(0, top);
  scrollTo(0, scrolled);
}

let waiting = 0;
function search(text) {
  state.search = text;
  for (const input of document.querySelectorAll("#search, [data-search]")) if (input.value !== text) input.value = text;
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    const table = document.getElementById("trials");
    table?.replaceWith(tableSection());
    document.getElementById("curves")?.replaceChildren(curveGrid());
    document.getElementById("gallery")?.replaceChildren(gallery());
    const tasks = document.getElementById("chart-tasks");
    if (tasks?.dataset.drawn) draw(tasks);
  }, 120);
}

// while a sweep runs: ask for newer data, and draw again when there is some
async function watch() {
  const live = document.getElementById("live");
  live.hidden = false;
  live.replaceChildren("live", el("span", {}, ", every 3 s"));
  for (;;) {
    await new Promise((done) => setTimeout(done, 3000));
    try {
      const answer = await fetch("data.json", { cache: "no-cache" });
      if (!answer.ok) throw new Error(answer.statusText);
      const data = await answer.json();
      live.classList.remove("lost");
      live.firstChild.textContent = "live";
      if (data.made_at === state.data.made_at) continue;
      state.data = data;
      render();
    } catch {
      live.classList.add("lost");
      live.firstChild.textContent = "no connection";
    }
  }
}

applyTheme();
document.getElementById("theme").addEventListener("click", toggleTheme);
document.getElementById("search").addEventListener("input", (event) => search(event.target.value));
document.getElementById("detail").addEventListener("click", (event) => { if (event.target.id === "detail") event.target.close(); });
render();
if (state.data.watched) watch();
