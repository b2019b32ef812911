// SAD students: success by variant and task type, KL from the teacher by span over training, and one episode.

const SAD_SPANS = { reasoning: "#8a63d2", action: "#0a8f6a", observation: "#7c8794", other: "#7c8794" };
const sadPercent = (value) => (value ? [value.mean, value.half].filter(known).map((v) => (100 * v).toFixed(1)).join(" ± ") : MISSING);

function sadTable(found) {
  const columns = [
    { key: "variant", label: "variant", value: (v) => v.label },
    { ...numeric("exact", "solved, %", null, (v) => v.exact.mean), node: (v) => sadPercent(v.exact) },
    { ...numeric("test", "test, %", null, (v) => v.test_success_rate?.mean), node: (v) => sadPercent(v.test_success_rate) },
    ...found.kinds.map((kind) => ({ ...numeric(kind, `${kind}, %`, null, (v) => v.kinds[kind]?.mean), node: (v) => sadPercent(v.kinds[kind]) })),
    numeric("kl_reasoning", "KL reasoning", number, (v) => v.kl_reasoning?.mean),
    numeric("kl_action", "KL action", number, (v) => v.kl_action?.mean),
    numeric("tokens", "teacher tokens", whole, (v) => v.teacher_tokens?.mean),
    numeric("seeds", "seeds", whole, (v) => v.seeds),
  ];
  return sortable("sad-variants", columns, found.variants, { label: "Variants" });
}

function sadSection() {
  const found = state.data.sections.sad_student;
  if (!found) return null;
  const baselines = found.baselines.map((one) => `${one.name} ${percent(one.mean)}`).join(", ");
  return section("sad", "Success of students", "Validation problems solved by greedy roll-outs, all runs on this page together, without trials that ASHA stopped. Means over seeds, ± half of a 95 % interval (Student's t).",
    sadTable(found), el("p", { class: "note" }, `On the same problems: ${baselines}.`));
}

function drawSadCurves(node, height, found, name) {
  const traces = found.curves.filter((curve) => curve[name]).map((curve, k) => ({
    x: curve.epochs, y: curve[name], mode: "lines+markers", name: plain(curve.label), connectgaps: true,
    line: { color: RUN_COLOURS[k % RUN_COLOURS.length], width: 1.8 },
  }));
  plot(node, height, traces, { xaxis: { title: "epoch" }, yaxis: { title: "nats a token", type: "log" } });
}

function sadCurvesSection() {
  const found = state.data.sections.sad_student;
  if (!found) return null;
  return section("sad-kl", "KL from the teacher by span", "On held-out trajectories, the first seed of each variant.",
    el("div", { class: "cols" }, ...["reasoning", "action"].map((name) => chartCard("span6", name,
      chart(320, (node, height) => drawSadCurves(node, height, found, `kl_${name}`), { id: `chart-sad-${name}` })))));
}

function sadEpisode(episode) {
  const most = Math.max(0.1, ...episode.kl.filter(known));
  const text = el("p", { class: "mono", style: { "white-space": "pre-wrap", "line-height": "1.9" } }, episode.texts.map((word, k) => {
    const span = episode.spans[k], kl = episode.kl[k];
    const written = span === "reasoning" || span === "action";
    // the stronger the background, the further the student is from the teacher
    const share = written && known(kl) ? Math.round(70 * Math.min(1, kl / most)) : 0;
    return el("span", { "data-span": span, title: `${span}${known(kl) ? `, KL ${kl.toFixed(3)}` : ""}`, style: {
      color: written ? SAD_SPANS[span] : "var(--soft)", background: `color-mix(in srgb, #d1440c ${share}%, transparent)` } }, word);
  }));
  return el("div", { class: "card" }, text, el("p", { class: "note" }, `${episode.problem}, ${episode.success ? "solved" : "not solved"}. The darkest background is ${most.toFixed(2)} nats.`));
}

function sadEpisodeSection() {
  const found = state.data.sections.sad_student;
  if (!found?.episodes.length) return null;
  const box = el("div", {}, sadEpisode(found.episodes[0]));
  return section("sad-episode", "One episode", "A validation problem played by the first seed of each variant: reasoning in violet, actions in green, what the environment says in grey; the background is the KL from the teacher.",
    el("div", { class: "controls" }, choice("variant", found.episodes.map((one, k) => [k, one.label]), 0, (value) => box.replaceChildren(sadEpisode(found.episodes[value])))), box);
}

registerSection(sadSection, sadCurvesSection, sadEpisodeSection);
