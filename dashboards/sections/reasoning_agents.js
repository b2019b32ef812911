// Reasoning agents: criteria with verdicts, a problem with its steps, a refinement, and what was measured along the way.

const agentsData = () => state.data.sections.reasoning_agents[0];
const shareOr = (one, value) => (one.percent ? percent(value) : number(value));

function criteriaTable(one) {
  const columns = [
    { key: "name", label: "criterion", value: (c) => c.name, node: (c) => el("span", { title: c.meaning }, c.name) },
    { key: "bound", label: "bound", value: (c) => c.bound, node: (c) => `${c.better === "max" ? "≥" : "≤"} ${shareOr(c, c.bound)}` },
    { ...numeric("value", "measured", null, (c) => c.value.mean), node: (c) => { const half = known(c.value.half) ? c.value.half : c.within; return shareOr(c, c.value.mean) + (known(half) ? ` ± ${shareOr(c, half)}` : ""); } },
    { ...numeric("baseline", "baseline", null, (c) => c.baseline), node: (c) => el("span", { title: c.baseline_name }, shareOr(c, c.baseline)) },
    { key: "met", label: "verdict", value: (c) => c.met, node: (c) => { const all = c.met === one.seeds.length; return el("span", { class: "chip", style: { "--c": colourOf(all ? "improved" : "worse") } }, all ? "met" : c.met ? `met by ${c.met} of ${one.seeds.length} seeds` : "missed"); } },
  ];
  return sortable("criteria", columns, one.criteria, { label: "Criteria" });
}

// a word of a problem: underlined where it belongs to a step, the thicker the deeper
function words(text, steps, wrong = []) {
  const inside = new Map(steps.flatMap((step) => Array.from({ length: step.to - step.from + 1 }, (_, k) => [step.from + k, step])));
  const nodes = text.map((word, i) => {
    const step = inside.get(i), style = {};
    if (step) style["border-bottom"] = `${1 + step.depth}px solid ${colour("adapted")}`;
    if (wrong.includes(i)) { style.color = colour("worse"); style["font-weight"] = "600"; }
    return [step && step.from === i ? el("sup", { class: "note" }, String(step.depth)) : null, el("span", { style }, word), step && step.to === i ? el("sup", {}, "∎ ") : " "];
  });
  return el("p", { style: { "line-height": "2" } }, nodes.flat());
}

function criteriaSection() {
  if (!state.data.sections.reasoning_agents.length) return null;
  const one = agentsData(), seeds = one.seeds.length;
  const interval = seeds > 1 ? `means over ${seeds} seeds, ± half of a 95 % interval (Student's t)` : "one seed, ± half of a 95 % interval over problems, queries or games";
  return section("criteria", "Criteria", `Measured on held-out problems, beside a trivial baseline: ${interval}.`,
    criteriaTable(one), one.left_out ? el("p", { class: "note" }, `Trials of ${whole(one.left_out)} other settings are in the table of trials.`) : null);
}

function problemSection() {
  if (!state.data.sections.reasoning_agents.length) return null;
  const { example, refinement_example: refined } = agentsData().shown;
  if (!example && !refined) return null;
  const found = example && [el("p", { class: "note" }, "Gold steps, with their depth at the start of each"), words(example.words, example.gold), el("p", { class: "note" }, "Found by HRM"), words(example.words, example.found)];
  const candidates = refined && refined.candidates.map((candidate, k) => [
    el("p", { class: "note" }, `${k ? `refinement ${k}` : "candidate"}: ${known(candidate.answer) ? candidate.answer : "no program"}${candidate.answer === refined.answer ? ", right" : ""}; ${candidate.wrong.length} words wrong`), words(refined.words, [], candidate.wrong)]);
  return section("tagged", "A problem, and a refinement", "Deeper than any problem in training. Words of steps are underlined, thicker the deeper.",
    el("div", { class: "cols" }, found ? el("div", { class: "card span6", id: "tagged-problem" }, found) : null, candidates ? el("div", { class: "card span6", id: "refinement" }, candidates.flat()) : null));
}

function lines(node, height, x, series, layout) {
  const tones = ["adapted", "copy", "base", "stopped"];
  plot(node, height, Object.entries(series).map(([name, values], k) => ({ x, y: values.map((value) => 100 * value), name, mode: "lines+markers", line: { color: colour(tones[k]), width: 2 }, hovertemplate: `${name}: %{y:.1f} %<extra></extra>` })),
    { yaxis: { ticksuffix: " %", range: [-3, 103] }, ...layout });
}

function drawRouting(node, height, routing) {
  const most = Math.max(...routing.map((p) => p.cost));
  plot(node, height, ["agent", "router"].map((kind) => {
    const some = routing.filter((p) => p.name.startsWith("router") === (kind === "router"));
    return {
      x: some.map((p) => p.cost), y: some.map((p) => 100 * p.success), text: some.map((p) => p.name), name: kind, mode: "markers+text", textposition: "top center",
      marker: { size: 11, color: colour(kind === "router" ? "adapted" : "base") },
      customdata: some.map((p) => (known(p.regret) ? `<br>regret ${number(p.regret)}` : "")), hovertemplate: "<b>%{text}</b><br>%{y:.1f} % at a cost of %{x:.2f}%{customdata}<extra></extra>",
    };
  }), { xaxis: { title: "cost, passes of an encoder", range: [0, most * 1.15] }, yaxis: { title: "problems answered", ticksuffix: " %", range: [-3, 103] } });
}

function agentCurvesSection() {
  if (!state.data.sections.reasoning_agents.length) return null;
  const { precision_curve: precision, selfplay_curve: play, routing } = agentsData().shown;
  if (!precision && !play && !routing) return null;
  const along = play && { "against random": play.map((p) => p.mcts_win_rate), "against OpenSpiel's MCTS": play.map((p) => p.bot_win_rate), "optimal moves": play.map((p) => p.optimal_moves), "optimal without search": play.map((p) => p.policy_optimal_moves) };
  return section("along", "Retrieval, self-play and routing", "Chunks of the queried module among the first k; wins and optimal moves after each round of self-play, before the first included; success against cost of each agent and each router.",
    el("div", { class: "cols" },
      precision ? chartCard("span6", "Precision at k", chart(300, (node, height) => lines(node, height, [1, 2, 3, 5, 10], precision, { xaxis: { title: "k" } }), { id: "chart-precision" })) : null,
      play ? chartCard("span6", "Self-play", chart(300, (node, height) => lines(node, height, play.map((_, k) => k), along, { xaxis: { title: "rounds", dtick: 1 } }), { id: "chart-selfplay" })) : null,
      routing ? chartCard("span6", "Routing", chart(300, (node, height) => drawRouting(node, height, routing), { id: "chart-routing" })) : null));
}

registerSection(criteriaSection, problemSection, agentCurvesSection);
