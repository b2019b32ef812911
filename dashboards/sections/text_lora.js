// Text tasks: test rows with what the base and the adapter write.

function textAnswer(answer, exact) {
  return el("td", { class: "mono", style: { "white-space": "pre-wrap" } }, answer ?? "", el("div", { class: "note" }, exact ? "exact" : "not exact"));
}

function textTable(trial) {
  const head = ["prompt", "right", "base", "adapted"].map((name) => el("th", {}, name));
  const body = trial.rows.map((row) => el("tr", {},
    ...[row.prompt, row.completion].map((text) => el("td", { class: "mono", style: { "white-space": "pre-wrap" } }, text ?? "")),
    textAnswer(row.base_answer, row.base_exact), textAnswer(row.adapted_answer, row.adapted_exact)));
  return el("div", { class: "card", style: { overflow: "auto" } }, el("table", {}, el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

function textSection() {
  const all = state.data.sections.text_lora;
  if (!all.length) return null;
  const box = el("div", {}, textTable(all[0]));
  return section("texts", "Answers", "The first test rows of a task: the right completion, and what base and adapter write. Exact means that greedy decoding writes every token of it; answers are there where they were asked for.",
    el("div", { class: "controls" }, choice("task", all.map((one, k) => [k, one.label]), 0, (value) => box.replaceChildren(textTable(all[value])))), box);
}

registerSection(textSection);
