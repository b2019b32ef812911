// What every part of the page uses: state, elements, numbers, colours, and drawing only what is on the screen.

const state = {
  data: JSON.parse(document.getElementById("data").textContent),
  run: 0,
  search: "",
  measure: null,
  scale: "own",
  order: "gain",
  picture: "improved",
  marks: true,
  sort: {},
};
const SHOWN = 1000; // rows of a table and curves at once: more are found by searching
const MISSING = "–";
const run = () => state.data.runs[state.run];

// text only ever becomes a text node: no id, error or setting can become markup
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [key, text] of Object.entries(value)) node.style.setProperty(key, text);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child != null));
  return node;
}

function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Plotly reads a little markup in labels
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// ------------------------------------------------------------------------------------------------------------ numbers

const known = (value) => value !== null && value !== undefined;
const grouped = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const percent = (value, digits = 1) => (known(value) ? `${(100 * value).toFixed(digits)}\u00a0%` : MISSING);
const signed = (value, digits = 1) => {
  const text = Math.abs(value).toFixed(digits);
  return `${Number(text) === 0 ? "±" : value < 0 ? "−" : "+"}${text}`;
};
const points = (value) => (known(value) ? signed(100 * value) : MISSING);
const whole = (value) => (known(value) ? grouped.format(value) : MISSING);
function number(value) {
  if (!known(value)) return MISSING;
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e7) return grouped.format(value);
  const size = Math.abs(value);
  return size >= 1e5 || size < 1e-3 ? value.toExponential(2) : String(Number(value.toPrecision(4)));
}
const scoreText = (score) => (score.share ? percent : number);
function duration(seconds) {
  if (!known(seconds)) return MISSING;
  if (seconds < 90) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}
const timeUnit = (seconds) => (seconds < 300 ? ["s", 1] : seconds < 10800 ? ["min", 60] : ["h", 3600]);
const moment = (iso) => (iso ? `${iso.slice(0, 10)} ${iso.slice(11, 16)} UTC` : MISSING);

// ------------------------------------------------------------------------------------------------------------- trials

// the column whose gain orders trials
const lead = () => run().lead || { name: null, label: "" };
function measure() {
  const measures = run().measures;
  return measures[state.measure] || measures.find((m) => m.final === lead().name) || measures[0];
}

const column = (name) => run().trials[name] || [];
const at = (name, i) => (column(name)[i] === undefined ? null : column(name)[i]);
const size = () => column("trial_id").length;
const indices = () => Array.from({ length: size() }, (_, i) => i);
const outcome = (i) => (at("status", i) === "success" ? at("verdict", i) || "success" : at("status", i));
const many = () => new Set(column("task_id")).size < size();
const title = (i) => {
  const task = at("task_id", i) || at("trial_id", i);
  return many() && known(at("sample", i)) ? `${task} · ${at("sample", i)}` : task;
};
const WORDS = {
  improved: "better", same: "same", worse: "worse", success: "success", stopped: "stopped by ASHA", failed: "failed",
  unfinished: "unfinished",
};
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const dark = () => document.documentElement.dataset.theme === "dark";
const colourOf = (name) => `var(--${name === "success" ? "adapted" : name})`;
const chip = (name) => el("span", { class: "chip", style: { "--c": colourOf(name) } }, WORDS[name] || name);

function described(i) {
  const words = ["task_id", "trial_id", "category", "status", "stop_reason"].map((name) => at(name, i));
  const settings = run().swept.map((name) => `${name.slice(7)}=${at(name, i)}`);
  return [...words, WORDS[outcome(i)], ...settings].join(" ").toLowerCase();
}
function found() {
  const terms = state.search.toLowerCase().split(/\s+/).filter(Boolean);
  return indices().filter((i) => { const text = terms.length && described(i); return terms.every((t) => text.includes(t)); });
}

// --------------------------------------------------------------------------------------------------------- lazy drawing

const observer = new IntersectionObserver(
  (entries) => { for (const entry of entries) if (entry.isIntersecting) { observer.unobserve(entry.target); draw(entry.target); } },
  { rootMargin: "500px" },
);
function draw(node) {
  node.drawing(node);
  node.dataset.drawn = "true";
}
// `drawing` runs when the node comes near the screen; a chart is drawn again when the colours change
function lazy(node, drawing) {
  node.drawing = drawing;
  observer.observe(node);
  return node;
}
function redrawCharts() {
  for (const node of document.querySelectorAll(".chart[data-drawn]")) draw(node);
}

// -------------------------------------------------------------------------------------------------------------- theme

const SUN = "M12 4V2m0 20v-2m8-8h2M2 12h2m13.7-5.7 1.4-1.4M4.9 19.1l1.4-1.4m11.4 0 1.4 1.4M4.9 4.9l1.4 1.4M12 16a4 4 0 1 0 0-8 4 4 0 0 0 0 8z";
const MOON = "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z";
const darkSystem = matchMedia("(prefers-color-scheme: dark)");
let chosenTheme = null; // for a page from a file, storage may be refused: then the choice lasts as long as the page
try { chosenTheme = localStorage.getItem("report-theme"); } catch { /* see above */ }
function applyTheme() {
  document.documentElement.dataset.theme = (chosenTheme ? chosenTheme === "dark" : darkSystem.matches) ? "dark" : "light";
  const path = svg("path", { d: dark() ? SUN : MOON, fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "stroke-linejoin": "round" });
  document.getElementById("theme").replaceChildren(svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, path));
}
function toggleTheme() {
  chosenTheme = dark() ? "light" : "dark";
  try { localStorage.setItem("report-theme", chosenTheme); } catch { /* see above */ }
  applyTheme();
  redrawCharts();
}
darkSystem.addEventListener("change", () => { applyTheme(); redrawCharts(); });

// ------------------------------------------------------------------------------------- sections of one family's own

const OWN_SECTIONS = [];
// functions that return a section, or null where there is nothing to show
function registerSection(...make) { OWN_SECTIONS.push(...make); }
