// Prompted grid agents: the terms of the loss over training, memory, and held-out pairs before and after refinement.

const efe = { trial: 0, answer: 0, what: "terms" };
const EFE_CHARTS = { terms: ["value of each term", "terms"], norms: ["gradient norm of each term", "norms"], memory: ["memory and hard cells", null] };

function drawEfe(node, height, trial) {
  const [, key] = EFE_CHARTS[efe.what];
  const lines = key ? trial[key] : { "hard cells": trial.hard, "memory hits": trial.memory.hits, threshold: trial.memory.threshold };
  const traces = Object.entries(lines).filter(([, values]) => values.some(known)).map(([name, values]) => ({
    x: trial.epochs, y: values, mode: trial.epochs.length > 1 ? "lines" : "markers", name: plain(name), line: { width: 1.6 },
    hovertemplate: `<b>${plain(name)}</b><br>epoch %{x}: %{y:.4g}<extra></extra>`,
  }));
  plot(node, height, traces, { xaxis: { title: "epoch" }, yaxis: { title: EFE_CHARTS[efe.what][0], type: key ? "log" : "linear" } });
}

function efeGrids(answer) {
  const truth = parsed(answer.target), grids = ["input", "target", "before", "after"].map((name) => [name, parsed(answer[name])]);
  const longest = Math.max(...grids.flatMap(([, grid]) => [grid.length, grid[0].length]));
  const cell = Math.max(2, Math.min(16, Math.floor(150 / longest)));
  return el("div", { class: "grids" }, grids.map(([name, grid]) => {
    const answers = name === "before" || name === "after";
    const { right, cells, exact } = accuracy(grid, truth);
    const said = !answers ? `${grid.length}\u00a0×\u00a0${grid[0].length}` : exact ? "exact" : `${right} of ${cells} cells`;
    const canvas = lazy(el("canvas", { role: "img", "aria-label": `${name}: ${said}` }), (node) => drawGrid(node, grid, answers ? truth : null, cell));
    return el("figure", {}, el("div", { class: "frame" }, canvas), el("figcaption", {}, el("b", {}, name), said));
  }));
}

function efeAnswer(answer) {
  const refined = answer.change === "keep" ? "The policy left the prompt as it was." : `The policy's change: ${answer.change}.`;
  return el("div", {}, efeGrids(answer),
    el("p", { class: "note" }, `${refined} Score ${number(answer.score_before)} before, ${number(answer.score_after)} after. ${answer.memory ? "Memory held a similar prompt." : "Memory held no similar prompt."} Hard cells, those predicted wrongly, are marked.`),
    answer.prompt ? el("details", {}, el("summary", {}, "Prompt"), el("pre", { style: { "white-space": "pre-wrap", "max-height": "16em", overflow: "auto" } }, answer.changed_prompt)) : null);
}

function efeSection() {
  const all = state.data.sections.arc_efe;
  if (!all.length) return null;
  const box = el("div", { class: "card span6" }), curves = el("div", { class: "span6" });
  const again = () => {
    const trial = all[efe.trial], answer = trial.answers[efe.answer];
    box.replaceChildren(trial.answers.length
      ? el("div", {}, el("div", { class: "controls" }, choice("pair", trial.answers.map((one, k) => [k, `${one.task}, score ${number(one.score_after)}`]), efe.answer, (value) => { efe.answer = Number(value); again(); })), efeAnswer(answer))
      : el("p", { class: "empty" }, "No answers of this trial are on this page."));
    curves.replaceChildren(chartCard("", EFE_CHARTS[efe.what][0], chart(380, (node, height) => drawEfe(node, height, trial), { id: "chart-efe" })));
  };
  again();
  return section("efe", "Expected free energy", "The terms of the loss over training, and held-out pairs with the prediction before and after the policy changed the prompt.",
    el("div", { class: "controls" },
      choice("trial", all.map((trial, k) => [k, trial.label]), efe.trial, (value) => { efe.trial = Number(value); efe.answer = 0; again(); }),
      choice("chart", Object.entries(EFE_CHARTS).map(([key, [label]]) => [key, label]), efe.what, (value) => { efe.what = value; again(); })),
    el("div", { class: "cols" }, curves, box));
}

registerSection(efeSection);
