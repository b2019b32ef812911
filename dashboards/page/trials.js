// Tables that can be sorted, and the window that shows everything about one trial.

// columns: {key, label, value(row), node(row), numeric}; what is missing comes last in either order
function sortable(name, columns, rows, options = {}) {
  const sort = (state.sort[name] ??= { ...options.sort });
  const chosen = columns.find((one) => one.key === sort.key);
  let shown = rows;
  if (chosen) {
    const sign = sort.down ? -1 : 1;
    shown = [...rows].sort((a, b) => {
      const [p, q] = [chosen.value(a), chosen.value(b)];
      if (!known(p) || !known(q)) return known(q) - known(p);
      return sign * (typeof p === "string" || typeof q === "string" ? String(p).localeCompare(String(q), "en", { numeric: true }) : p - q);
    });
  }
  const box = el("div", { class: `table ${options.class || ""}`, "data-table": name, tabindex: "0", role: "region", "aria-label": options.label || name });
  const again = (key) => {
    const down = columns.find((one) => one.key === key).numeric; // numbers: the largest first
    state.sort[name] = { key, down: sort.key === key ? !sort.down : Boolean(down) };
    const scrolled = [box.scrollLeft, scrollY];
    const next = sortable(name, columns, rows, options);
    box.replaceWith(next);
    next.scrollLeft = scrolled[0];
    next.querySelector(`th[data-key="${CSS.escape(key)}"] button`).focus({ preventScroll: true });
  };
  const head = el("tr", {}, columns.map((one) => el("th", {
    class: one.numeric ? "num" : "", scope: "col", "data-key": one.key, title: one.title,
    "aria-sort": sort.key === one.key ? (sort.down ? "descending" : "ascending") : null,
  }, el("button", { type: "button", onclick: () => again(one.key) }, one.label))));
  const body = shown.slice(0, SHOWN).map((row) => el("tr", options.open ? { class: "open", onclick: () => options.open(row) } : {},
    columns.map((one) => el("td", { class: one.numeric ? "num" : "", "data-key": one.key }, one.node ? one.node(row) : (one.text || number)(one.value(row))))));
  box.append(el("table", {}, el("thead", {}, head), el("tbody", {}, body)));
  return box;
}

const numeric = (key, label, text, value = (i) => at(key, i), title = null) => ({ key, label, text, value, numeric: true, title });
const opener = (i) => el("button", { type: "button", class: "linklike", onclick: (event) => { event.stopPropagation(); openTrial(i); } }, title(i));

function trialColumns() {
  const has = (name) => name in run().trials;
  const task = { key: "task", label: column("task_id").some((id, i) => id !== at("family", i)) ? "task" : "trial", value: title, node: opener };
  const columns = [task];
  if (has("category")) columns.push({ key: "category", label: "category", value: (i) => at("category", i) });
  columns.push({ key: "outcome", label: "outcome", value: (i) => WORDS[outcome(i)], node: (i) => chip(outcome(i)) });
  for (const name of run().swept) {
    const numbers = column(name).every((value) => !known(value) || typeof value === "number");
    columns.push({ key: name, label: name.slice(7), value: (i) => at(name, i), numeric: numbers });
  }
  for (const { base, final, label, baseline } of run().measures.slice(0, 2)) {
    columns.push(numeric(base, `${label}, base`, percent), numeric(final, label, percent));
    if (baseline && has(baseline) && final === lead().name) columns.push(numeric(baseline, "trivial", percent, undefined, "what a trivial answer reaches"));
  }
  if (has("gain")) columns.push(numeric("gain", "gain, points", points, (i) => at("gain", i), `gain over the base: ${lead().label}`));
  const shown = new Set(columns.map((one) => one.key));
  for (const score of run().scores) if (!shown.has(score.name) && (!run().measures.length || !score.share)) columns.push(numeric(score.name, score.label, scoreText(score)));
  columns.push(numeric("final_loss", "eval loss", number), numeric("epochs", "epochs", whole));
  if (has("seconds")) columns.push(numeric("seconds", "time", duration));
  if (has("attempt") && column("attempt").some((n) => n > 1)) columns.push(numeric("attempt", "attempt", whole));
  return columns;
}

function trialTable() {
  const rows = found();
  if (!rows.length) return el("p", { class: "empty" }, "Nothing matches the search.");
  return sortable("trials", trialColumns(), rows, { open: openTrial, label: "All trials", sort: { key: column("gain").length ? "gain" : "final_loss", down: Boolean(column("gain").length) } });
}

// ---------------------------------------------------------------------------------------------------------- one trial

const FACTS = [
  ["trial_id", "trial", String], ["category", "category", String], ["stop_reason", "ended by", String], ["epochs", "epochs", whole],
  ["final_loss", "evaluation loss", number], ["best_loss", "lowest loss", number],
  ["seconds", "time", duration], ["busy_seconds", "share of compute", duration], ["gpu_seconds", "GPU time", duration],
  ["rung", "last rung, epoch", whole], ["asha_cutoff", "ASHA's cutoff there", number], ["attempt", "attempt", whole], ["worker", "worker", whole], ["slot", "slot", whole],
  ["checkpoint", "weights", String],
];

function openTrial(i) {
  const dialog = document.getElementById("detail");
  const facts = [...run().swept.map((name) => [name, name.slice(7), number]), ...FACTS, ...run().columns.map((one) => [one.name, one.label, scoreText(one)])].filter(([name]) => known(at(name, i)) && (name !== "gpu_seconds" || at(name, i) > 0));
  const others = indices().filter((k) => k !== i && at("task_id", k) === at("task_id", i));
  const failed = run().failures.filter((one) => one.trial_id === at("trial_id", i));
  const pairs = run().pictures.kept[i];
  const close = el("button", { type: "button", class: "icon", "aria-label": "Close", onclick: () => dialog.close() }, "✕");
  dialog.replaceChildren(
    el("div", { class: "top" }, el("h3", { class: "mono" }, title(i)), chip(outcome(i)), known(at("gain", i)) ? el("span", { class: "note" }, `${points(at("gain", i))} points, ${lead().label}`) : null, close),
    el("div", { class: "body" },
      pairs ? el("div", {}, pairs.map((pair) => pairRow(pair, true))) : null,
      run().curves[i] ? el("div", {}, el("div", { class: "chart-title" }, "Loss"), chart(270, (node, height) => drawLoss(node, height, i), { id: "detail-loss" })) : null,
      el("div", { class: "facts" }, facts.map(([name, label, text]) => el("div", {}, el("span", {}, label), el("div", { class: name.endsWith("_id") || name === "checkpoint" ? "mono" : "", style: { "overflow-wrap": "anywhere" } }, text(at(name, i)))))),
      failed.map((one) => failure(one, true)),
      others.length ? el("div", {}, el("h3", {}, "Other trials on this task"), sortable("others", trialColumns(), others, { open: openTrial, class: "short", label: "Other trials on this task" })) : null,
    ),
  );
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
}

function failure(one, open) {
  const where = `${one.task_id || one.trial_id}${one.attempt > 1 || one.now !== "failed" ? `, attempt ${one.attempt}` : ""}`;
  const later = one.now === "failed" ? null : el("span", { class: "note" }, `a later attempt: ${WORDS[one.now] || one.now}`);
  return el("details", { open }, el("summary", {}, el("span", { class: "mono" }, where), " — ", one.error || "no reason given", later), el("pre", {}, one.traceback || "There is no traceback."));
}
