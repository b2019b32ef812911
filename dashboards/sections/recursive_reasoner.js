// Recursive reasoners: accuracy against steps, what each variant came to, and puzzles solved step by step.

const HALTING = { fixed: "base", bce: "adapted", dqn: "copy" };
const BOXES = { 4: [2, 2], 6: [2, 3], 9: [3, 3] }; // rows and columns of a Sudoku's boxes
const OUTSIDE = 10; // the token of cells beyond an ARC grid

const settings = (changes) => Object.entries(changes).map(([name, value]) => `${name} = ${value}`).join(", ");
const variantLabel = (variant) => settings(variant.changes) || "reference";
const spread = ({ mean, half }, scale, digits) => [mean, half].filter(known).map((value) => (scale * value).toFixed(digits)).join(" ± ");

function openTrialOf(k, i) {
  if (k !== state.run) { state.run = k; state.measure = null; render(); }
  openTrial(i);
}

function drawPareto(node, height, one) {
  const label = (trial) => plain(variantLabel(one.variants[trial.variant]));
  const front = one.trials.filter((trial) => trial.front).sort((a, b) => a.steps - b.steps || a.exact - b.exact);
  const traces = [{ x: front.map((t) => t.steps), y: front.map((t) => 100 * t.exact), mode: "lines", name: "Pareto front", line: { color: colour("soft"), width: 1.5, shape: "hv" }, hoverinfo: "skip" }];
  for (const [halting, tone] of Object.entries(HALTING)) {
    const some = one.trials.filter((trial) => trial.halting === halting);
    if (!some.length) continue;
    traces.push({
      x: some.map((t) => t.steps), y: some.map((t) => 100 * t.exact), customdata: some.map((t) => [t.run, t.place]), text: some.map(label), mode: "markers", name: halting,
      marker: { color: colour(tone), size: 10, opacity: 0.85, line: { width: some.map((t) => (t.front ? 2 : 0)), color: colour("ink") } },
      hovertemplate: "<b>%{text}</b><br>%{y:.1f} % exact in %{x:.2f} steps<extra></extra>",
    });
  }
  const most = Math.max(...one.trials.map((trial) => trial.steps));
  for (const [k, { name, exact }] of one.baselines.entries()) traces.push({ ...meanLine(100 * exact, name, [0, most * 1.05]), line: { color: colour("soft"), width: 1.2, dash: ["dash", "dot"][k] } });
  plot(node, height, traces, {
    xaxis: { title: "steps of a held-out puzzle, mean", range: [0, most * 1.05] },
    yaxis: { title: "solved exactly", ticksuffix: " %", range: [-3, 103] },
  });
  if (!node.opens) node.on("plotly_click", (event) => { const trial = event.points[0].customdata; if (trial) openTrialOf(...trial); });
  node.opens = true;
}

function variantTable(one, name) {
  const reference = one.variants.find((variant) => !settings(variant.changes));
  const columns = [
    { key: "variant", label: "variant", value: variantLabel },
    { ...numeric("exact", "exact, %", null, (v) => v.exact.mean), node: (v) => spread(v.exact, 100, 1) },
    numeric("change", "change", points, (v) => (reference && v !== reference ? v.exact.mean - reference.exact.mean : null), "points of exact accuracy against the reference"),
    { ...numeric("steps", "steps", null, (v) => v.steps.mean), node: (v) => spread(v.steps, 1, 2) },
    numeric("seeds", "seeds", whole, (v) => v.seeds),
  ];
  return sortable(name, columns, one.variants, { label: "Variants" });
}

function reasonerSection() {
  const all = state.data.sections.recursive_reasoner;
  if (!all.length) return null;
  return section("reasoner", "Accuracy and steps", "Held-out puzzles solved exactly against the steps that the halting rule took for them; all runs on this page, without trials that ASHA stopped.",
    all.map((one, k) => el("div", { class: "cols", "data-dataset": one.dataset },
      chartCard("span6", one.dataset, chart(400, (node, height) => drawPareto(node, height, one), { id: `chart-pareto-${k}` })),
      el("div", { class: "span6" }, variantTable(one, `variants-${k}`),
        el("p", { class: "note", style: { "margin-top": "8px" } }, `Means over seeds, ± half of a 95 % interval (Student's t).${Object.keys(one.reference).length ? ` Reference: ${settings(one.reference)}.` : ""}`)))));
}

// -------------------------------------------------------------------------------------------------------- thinking time

const WAYS = { steps: "more steps", halting: "halting rule", best_score: "best halting score", first_to_halt: "first to halt", symmetry_votes: "votes over symmetries" };
const wayLabel = (curve) => `${WAYS[curve.method] || curve.method}${curve.trajectories > 1 ? `, ${curve.trajectories}` : ""}${curve.noise ? `, noise ${curve.noise}` : ""}${curve.level === "harder" ? ", harder" : ""}`;

function drawScaling(node, height, measured) {
  const keys = [...new Set(measured.curves.map((curve) => wayLabel({ ...curve, level: "" })))];
  const traces = measured.curves.map((curve) => ({
    x: curve.points.map((p) => p.flops_per_puzzle / 1e9), y: curve.points.map((p) => 100 * p.exact_accuracy), mode: "lines+markers", name: wayLabel(curve),
    customdata: curve.points.map((p) => [p.steps, 1000 * p.seconds_per_puzzle]), marker: { size: 6 },
    line: { color: RUN_COLOURS[keys.indexOf(wayLabel({ ...curve, level: "" })) % RUN_COLOURS.length], width: 1.6, dash: curve.level === "harder" ? "dot" : "solid" },
    hovertemplate: `<b>${plain(wayLabel(curve))}</b><br>%{y:.1f} % exact, %{customdata[0]:.1f} steps<br>%{x:.3g} GFLOP, %{customdata[1]:.3g} ms a puzzle<extra></extra>`,
  }));
  plot(node, height, traces, { xaxis: { title: "operations of a puzzle, GFLOP", type: "log" }, yaxis: { title: "solved exactly", ticksuffix: " %" } });
}

function scalingTable(measured, name) {
  const best = measured.curves.map((curve) => ({ curve, point: curve.points.reduce((a, b) => (b.exact_accuracy > a.exact_accuracy ? b : a)) }));
  const columns = [
    { key: "way", label: "way to think", value: (row) => wayLabel(row.curve) },
    numeric("exact", "best exact", percent, (row) => row.point.exact_accuracy),
    ...(best.some((row) => known(row.point.valid_accuracy)) ? [numeric("valid", "valid", percent, (row) => row.point.valid_accuracy)] : []),
    numeric("steps", "steps", number, (row) => row.point.steps, "supervision steps of a puzzle over all trajectories"),
    numeric("flops", "GFLOP", number, (row) => row.point.flops_per_puzzle / 1e9),
    numeric("ms", "ms", number, (row) => 1000 * row.point.seconds_per_puzzle, "a puzzle, on the machine that measured it"),
  ];
  return sortable(name, columns, best, { label: "Ways to think" });
}

function scalingSection() {
  const all = state.data.sections.recursive_reasoner.filter((one) => one.scaling.length);
  if (!all.length) return null;
  return section("scaling", "Thinking time", "Held-out puzzles solved exactly against what a trained reasoner spends on each, without another step of training (python -m sweeps.reasoner_scaling).",
    all.map((one, k) => {
      const box = el("div", { class: "cols", "data-dataset": one.dataset });
      const show = (measured) => {
        const trained = [`${measured.trained_max_steps} steps at most in training`, known(measured.train_cpu_minutes) ? `trained in ${number(measured.train_cpu_minutes)} core-minutes, ${whole(measured.train_steps)} optimizer steps` : null, `${measured.curves[0].puzzles} puzzles`];
        box.replaceChildren(
          chartCard("span6", one.dataset, chart(400, (node, height) => drawScaling(node, height, measured), { id: `chart-scaling-${k}` })),
          el("div", { class: "span6" }, scalingTable(measured, `scaling-${k}`), el("p", { class: "note", style: { "margin-top": "8px" } }, `${trained.filter(Boolean).join("; ")}. The table has the best point of each curve.`)));
      };
      show(one.scaling[0]);
      const label = (measured) => `${variantLabel(one.variants[measured.variant])}, seed ${measured.seed}`;
      return el("div", {}, one.scaling.length > 1 ? el("div", { class: "controls" }, choice("trial", one.scaling.map((measured, i) => [i, label(measured)]), 0, (value) => show(one.scaling[value]))) : null, box);
    }));
}

// --------------------------------------------------------------------------------------------------------- step by step

const token = (grid, c) => parseInt(grid[c], 36);
// the token of the cells that are asked for; in ARC grids all are
const ASKED = { sudoku: 0, maze: 1 };
const isGiven = (kind, puzzle, c) => Boolean(puzzle.input) && kind in ASKED && token(puzzle.input, c) !== ASKED[kind];
const isWrong = (kind, puzzle, grid, c) => grid[c] !== puzzle.target[c] && !isGiven(kind, puzzle, c);

function puzzleGrid(kind, side, grid, puzzle, answer, label) {
  const box = svg("svg", { viewBox: `-0.5 -0.5 ${10 * side + 1} ${10 * side + 1}`, class: `puzzle ${kind}`, role: "img", "aria-label": label });
  for (let c = 0; c < side * side; c += 1) {
    const x = 10 * (c % side), y = 10 * Math.floor(c / side);
    const given = isGiven(kind, puzzle, c), wrong = answer && isWrong(kind, puzzle, grid, c);
    // what a model writes into cells that nobody asks for means nothing
    const value = token(given ? puzzle.input : grid, c);
    const tone = kind === "sudoku" ? (given ? "given" : !answer ? "" : wrong ? "wrong" : "right") : kind === "maze" ? `maze-${value}` : "";
    const cell = svg("rect", { x, y, width: 10, height: 10, class: tone });
    if (kind === "arc" && value < OUTSIDE) cell.setAttribute("style", `fill: ${ARC[value]}`);
    box.append(cell);
    if (kind === "sudoku" && value) {
      const digit = svg("text", { x: x + 5, y: y + 5.4, class: tone });
      digit.textContent = String(value);
      box.append(digit);
    } else if (kind !== "sudoku" && wrong) box.append(svg("circle", { cx: x + 5, cy: y + 5, r: 2.2 }));
  }
  const [rows, columns] = kind === "sudoku" ? BOXES[side] : [side, side];
  for (let line = 0; line <= side; line += rows) box.append(svg("line", { x1: 0, x2: 10 * side, y1: 10 * line, y2: 10 * line }));
  for (let line = 0; line <= side; line += columns) box.append(svg("line", { y1: 0, y2: 10 * side, x1: 10 * line, x2: 10 * line }));
  return box;
}

function solvedSteps(pictures, puzzle) {
  const { kind } = pictures;
  const frame = (name, said, grid, answer, late) => el("figure", { class: late ? "late" : "" }, puzzleGrid(kind, pictures.side, grid, puzzle, answer, `${name} ${said}`), el("figcaption", {}, el("b", {}, name), said));
  const steps = puzzle.answers.map((grid, k) => {
    const count = [...grid].filter((_, c) => isWrong(kind, puzzle, grid, c)).length, step = k + 1;
    return frame(`step ${step}${step === puzzle.answered ? ", halts" : ""}`, count ? `${count} wrong` : "solved", grid, true, step > puzzle.answered);
  });
  return el("div", { class: "steps" }, puzzle.input ? frame("puzzle", "", puzzle.input, false) : null, steps, frame("solution", "", puzzle.target, false));
}

function stepsSection() {
  const all = state.data.sections.recursive_reasoner.filter((one) => one.pictures.solved.length);
  if (!all.length) return null;
  return section("steps", "Step by step", "Held-out puzzles and the answer after each step, of the first seed of each variant. Wrong cells are marked; answers after the rule has halted are pale.",
    all.map((one) => {
      const { pictures } = one, shown = { solved: pictures.solved[0], puzzle: 0 };
      const box = el("div", { class: "card" });
      const again = () => box.replaceChildren(solvedSteps(pictures, shown.solved.puzzles[shown.puzzle]));
      again();
      return el("div", { "data-dataset": one.dataset },
        el("div", { class: "controls" }, el("b", {}, one.dataset),
          choice("variant", pictures.solved.map((solved, k) => [k, variantLabel(one.variants[solved.variant])]), 0, (value) => { shown.solved = pictures.solved[value]; again(); }),
          choice("puzzle", shown.solved.puzzles.map((_, k) => [k, k + 1]), 0, (value) => { shown.puzzle = Number(value); again(); }),
          pictures.left_out ? el("span", { class: "note" }, `${whole(pictures.left_out)} more variants are left out to keep the page small.`) : null), box);
    }));
}

registerSection(reasonerSection, scalingSection, stepsSection);
