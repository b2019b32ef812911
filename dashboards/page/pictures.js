// Small multiples of loss curves, and task pictures in ARC's colours.

const ARC = ["#000000", "#0074D9", "#FF4136", "#2ECC40", "#FFDC00", "#AAAAAA", "#F012BE", "#FF851B", "#7FDBFF", "#870C25"];

// -------------------------------------------------------------------------------------------------------------- curves

const WIDTH = 150, HEIGHT = 78, LEFT = 26, BOTTOM = 12;

function bounds(curves) {
  const values = curves.flatMap((curve) => [...curve.train, ...curve.eval]).filter((v) => known(v) && Number.isFinite(v));
  if (!values.length) return [0, 1];
  // not Math.min(...values): a long list of arguments overflows the stack
  const low = values.reduce((a, b) => Math.min(a, b)), high = values.reduce((a, b) => Math.max(a, b));
  return low === high ? [low - 0.5 * Math.abs(low || 1), high + 0.5 * Math.abs(high || 1)] : [low, high];
}

function curvePath(curve, key, x, y) {
  let path = "", pen = "M";
  curve.epoch.forEach((epoch, k) => {
    const value = curve[key][k];
    if (!known(value)) { pen = "M"; return; }
    path += `${pen}${x(epoch).toFixed(1)} ${y(value).toFixed(1)}`;
    pen = "L";
  });
  return path;
}

function drawCurve(node, i, shared) {
  const curve = run().curves[i];
  const [low, high] = shared || bounds([curve]);
  const first = curve.epoch[0], last = curve.epoch.at(-1);
  const x = (epoch) => (last === first ? (LEFT + WIDTH) / 2 : LEFT + ((epoch - first) / (last - first)) * (WIDTH - LEFT - 4));
  const y = (value) => 5 + (1 - (value - low) / (high - low)) * (HEIGHT - BOTTOM - 7);
  const box = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, "aria-hidden": "true" });
  box.append(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - 4, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
  const label = (text, px, py, anchor) => { const t = svg("text", { x: px, y: py, "text-anchor": anchor }); t.textContent = text; box.append(t); };
  const brief = (value) => String(Number(value.toPrecision(2)));
  label(brief(high), LEFT - 4, 9, "end");
  label(brief(low), LEFT - 4, HEIGHT - BOTTOM, "end");
  label(String(first), LEFT, HEIGHT - 2, "start");
  if (last !== first) label(String(last), WIDTH - 4, HEIGHT - 2, "end");
  for (const key of ["train", "eval"]) {
    box.append(svg("path", { class: key, d: curvePath(curve, key, x, y) }));
  }
  const end = curve.eval.at(-1);
  if (known(end)) box.append(svg("circle", { class: "end", cx: x(last), cy: y(end), r: 2.6 }));
  node.querySelector("svg")?.remove();
  node.append(box);
}

const ORDERS = {
  gain: ["gain over the base", (i) => (known(at("gain", i)) ? -at("gain", i) : Infinity)],
  loss: ["evaluation loss", (i) => at("final_loss", i) ?? Infinity],
  task: ["task", (i) => title(i)],
  ended: ["end", (i) => at("end", i) ?? Infinity],
};
function ordered(list, key) {
  const value = ORDERS[key][1];
  return [...list].sort((a, b) => { const [p, q] = [value(a), value(b)]; return p < q ? -1 : p > q ? 1 : 0; });
}

function curveGrid() {
  const list = ordered(found().filter((i) => run().curves[i]), state.order);
  if (!list.length) return el("p", { class: "empty" }, "Nothing matches the search.");
  const shared = state.scale === "shared" ? bounds(list.map((i) => run().curves[i])) : null;
  const nodes = list.slice(0, SHOWN).map((i) => {
    const value = at("final_loss", i);
    const node = el("button", { type: "button", class: "curve", "data-trial": at("trial_id", i), onclick: () => openTrial(i), title: `${title(i)}: ${WORDS[outcome(i)]}` },
      el("span", { class: "head" }, el("span", { class: "mono", style: { color: colourOf(outcome(i) === "same" ? "ink" : outcome(i)) } }, title(i)), el("span", { class: "value" }, number(value))));
    return lazy(node, () => drawCurve(node, i, shared));
  });
  return el("div", { class: "curves" }, nodes);
}

// ------------------------------------------------------------------------------------------------------------ pictures

const parsed = (text) => (known(text) ? text.split("/").map((row) => [...row].map(Number)) : null);

function accuracy(answer, truth) {
  const cells = truth.length * truth[0].length;
  let right = 0;
  truth.forEach((row, r) => row.forEach((value, c) => { if (answer?.[r]?.[c] === value) right += 1; }));
  return { right, cells, exact: right === cells && answer.length === truth.length && answer[0].length === truth[0].length };
}

function drawGrid(canvas, grid, truth, cell) {
  const ratio = Math.min(3, devicePixelRatio || 1), rows = grid.length, columns = grid[0].length, gap = cell >= 5 ? 1 : 0;
  const width = columns * cell + gap, height = rows * cell + gap;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  canvas.style.width = `${width}px`;
  canvas.style.aspectRatio = `${width} / ${height}`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.fillStyle = "#555b63";
  pen.fillRect(0, 0, width, height);
  grid.forEach((row, r) => row.forEach((value, c) => {
    pen.fillStyle = ARC[value];
    pen.fillRect(c * cell + gap, r * cell + gap, cell - gap, cell - gap);
    if (truth && state.marks && truth[r]?.[c] !== value && cell >= 4) {
      const middle = [c * cell + gap + (cell - gap) / 2, r * cell + gap + (cell - gap) / 2], radius = Math.max(1, cell * 0.17);
      pen.beginPath(); pen.arc(...middle, radius + 0.8, 0, 7); pen.fillStyle = "#000"; pen.fill();
      pen.beginPath(); pen.arc(...middle, radius, 0, 7); pen.fillStyle = "#fff"; pen.fill();
    }
  }));
}

function pairRow(pair, large) {
  const grids = pair.map(parsed), truth = grids[1];
  const longest = Math.max(...grids.filter(Boolean).flatMap((grid) => [grid.length, grid[0].length]));
  const cell = Math.max(2, Math.min(large ? 18 : 14, Math.floor((large ? 190 : 88) / longest)));
  const tall = Math.max(...grids.filter(Boolean).map((grid) => grid.length)) * cell + 1;
  return el("div", { class: "grids" }, ["input", "expected", "base", "adapted"].map((name, k) => {
    const grid = grids[k], answers = k >= 2;
    let said = grid ? `${grid.length}\u00a0×\u00a0${grid[0].length}` : "";
    if (answers && grid) {
      const { right, cells, exact } = accuracy(grid, truth);
      said = exact ? "exact" : `${right} of ${cells} cells`;
      if (grid.length !== truth.length || grid[0].length !== truth[0].length) said += `, size ${grid.length}\u00a0×\u00a0${grid[0].length}`;
    }
    const picture = grid
      ? lazy(el("canvas", { role: "img", "aria-label": `${name}: ${said}` }), (canvas) => drawGrid(canvas, grid, answers ? truth : null, cell))
      : el("div", { class: "none" }, "no grid came out");
    return el("figure", {}, el("div", { class: "frame", style: { "min-height": `${Math.max(tall, 40)}px` } }, picture), el("figcaption", {}, el("b", {}, name === "adapted" ? "adapter" : name), said));
  }));
}

function picture(i) {
  const pairs = run().pictures.kept[i];
  const gain = known(at("gain", i)) ? `${points(at("gain", i))} points` : "";
  return el("article", { class: "card picture" },
    el("div", { class: "head" }, el("button", { type: "button", class: "linklike", onclick: () => openTrial(i) }, title(i)), chip(outcome(i)), el("span", { class: "gain" }, gain)),
    pairs.slice(0, 2).map((pair) => pairRow(pair, false)));
}

const final = (i) => { const [first, second] = run().measures; return [first, second || first].map((m) => (m ? at(m.final, i) ?? -1 : -1)); };
const byFinal = (a, b) => final(b)[0] - final(a)[0] || final(b)[1] - final(a)[1];
const PICTURES = {
  improved: ["most improved", (list) => list.filter((i) => (at("gain", i) ?? 0) > 0 || outcome(i) === "improved").sort((a, b) => at("gain", b) - at("gain", a))],
  best: ["best", (list) => list.sort(byFinal)],
  worst: ["worst", (list) => list.sort((a, b) => byFinal(b, a))],
  harmed: ["most harmed", (list) => list.filter((i) => (at("gain", i) ?? 0) < 0 || outcome(i) === "worse").sort((a, b) => at("gain", a) - at("gain", b))],
};
const PICTURED = 12;

function gallery() {
  const list = PICTURES[state.picture][1](found().filter((i) => run().pictures.kept[i]));
  if (!list.length) return el("p", { class: "empty" }, state.search ? "Nothing matches the search." : "There is none.");
  return el("div", { class: "gallery" }, list.slice(0, PICTURED).map(picture));
}
