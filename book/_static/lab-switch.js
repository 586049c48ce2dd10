(window.labs ??= {}).switch = (live, data, lab) => {
  const { h, s, num, plot, swatch } = lab, { rounds, iterations } = data;
  let round = rounds[0], row = round.rows.find(r => r.switch * 2 === iterations) ?? round.rows[0];

  // Which predictor scores which iteration.
  const schedule = plot("Which predictor scores which iteration", width => {
    const step = width / iterations, at = row.switch * step, box = { y: 2, height: 18 };
    return [38, [
      Array.from({ length: iterations }, (_, i) => s("rect", { ...box, x: i * step + 0.5, width: step - 1, class: i < row.switch ? "o" : "b" })),
      s("text", { x: 0, y: 34, class: "soft" }, row.switch ? `cheap predictor, ${row.switch}` : ""),
      row.switch < iterations && s("text", { x: width, y: 34, "text-anchor": "end", class: "soft" }, `supernet, ${iterations - row.switch}`),
      row.switch && row.switch < iterations ? s("line", { x1: at, x2: at, y1: 0, y2: 24, stroke: "var(--ink)", "stroke-width": 2 }) : null]];
  });
  const cost = plot("Share of the supernet's evaluations and of the search time", width => {
    const x = v => v * (width - 40), top = Math.max(1, ...round.rows.flatMap(r => [r.evaluations, r.seconds]));
    return [76, [["evaluations of the supernet", row.evaluations, "b"], ["search time", row.seconds, "s"]].map(([name, v, cls], i) => [
      s("text", { x: 0, y: 12 + 36 * i, class: "soft" }, `${name}, share of the supernet alone`),
      s("rect", { x: 0, y: 17 + 36 * i, width: x(v / top), height: 11, class: cls }),
      s("text", { x: x(v / top) + 5, y: 27 + 36 * i }, num(v))])];
  });
  // Differences from the supernet alone, by switch: a mean and its interval, the chosen one in colour.
  const panel = (key, title, unit, scale, digits) => plot(`${title}, by switch`, width => {
    const left = 46, top = 24, height = 120, rows = round.rows.filter(r => r[key]?.[0] != null);
    const ends = rows.flatMap(r => r[key].filter(v => v !== null)).map(v => v * scale);
    const reach = 1.08 * Math.max(...ends.map(Math.abs), 1e-9);
    const x = k => left + 10 + k / iterations * (width - left - 20), y = v => top + height / 2 - v / reach * height / 2;
    const kids = [s("text", { x: 0, y: 12, class: "bold" }, `${title} (${unit})`),
      s("rect", { x: left, y: top, width: width - left - 1, height, fill: "none", stroke: "var(--rule)" })];
    for (const v of [-reach / 1.08, 0, reach / 1.08]) kids.push(
      s("line", { x1: left, x2: width - 1, y1: y(v), y2: y(v), stroke: v ? "var(--rule)" : "var(--ink)", "stroke-width": v ? 0.6 : 1 }),
      s("text", { x: left - 5, y: y(v) + 4, "text-anchor": "end", class: "soft" }, num(v, digits)));
    for (const r of rows) {
      const [value, low, high] = r[key].map(v => v === null ? null : v * scale), chosen = r === row;
      const look = { stroke: chosen ? "var(--key)" : "var(--soft)", "stroke-width": chosen ? 3 : 1.4 };
      if (low !== null) kids.push(s("line", { x1: x(r.switch), x2: x(r.switch), y1: y(low), y2: y(high), ...look }));
      kids.push(s("circle", { cx: x(r.switch), cy: y(value), r: chosen ? 6 : 3.5, class: chosen ? "k" : "s" }));
    }
    for (const r of round.rows) kids.push(s("text", { x: x(r.switch), y: top + height + 16, "text-anchor": "middle",
      class: r === row ? "bold" : "soft" }, r.switch));
    return [top + height + 22, kids];
  });
  const plots = [schedule, cost, panel("bleu", "BLEU, trained from scratch", "higher is better", 1, 1),
    panel("loss", "Validation loss, thousandths", "lower is better", 1000, 0)];

  const said = h("p", { class: "lab-said", role: "status" });
  const signed = (v, digits) => (v > 0 ? "+" : "") + num(v, digits);
  const told = ([value, low, high], scale, digits, unit) => `${signed(value * scale, digits)} ${unit}` + (low === null ? "" :
    ` (${signed(low * scale, digits)} to ${signed(high * scale, digits)}: ${low <= 0 && high >= 0 ? "no difference can be told" : "a difference"})`);
  const show = () => {
    const seeds = `${row.seeds} ${row.seeds > 1 ? "searches" : "search"}`;
    said.textContent = row.switch === 0 ? `The supernet throughout, ${seeds}: what the others are compared with.` :
      `${row.switch < iterations ? `The supernet takes over after ${row.switch} iterations` : "The supernet is never asked"}, ${seeds}. ` +
      `What is found differs from what the supernet alone finds by ${told(row.bleu, 1, 1, "BLEU")} and ${told(row.loss, 1000, 1, "thousandths of a nat")}.`;
    plots.forEach(p => p.paint());
  };
  const holder = h("div");
  const fill = () => {
    const values = round.rows.map(r => r.switch);
    const near = values.reduce((a, b) => Math.abs(b - row.switch) < Math.abs(a - row.switch) ? b : a);
    row = round.rows.find(r => r.switch === near);
    holder.replaceChildren(lab.slider("Iterations with the cheap predictor", values, near,
      v => { row = round.rows.find(r => r.switch === v); show(); }, v => `${v} of ${iterations}`));
    show();
  };
  const choice = h("select", { id: "lab-round", onchange: () => { round = rounds[choice.selectedIndex]; fill(); } },
    rounds.map(r => h("option", {}, r.title)));
  live.append(h("div", { class: "lab-row" }, h("label", { for: "lab-round" }, "Searches"), choice), holder, h("div", {}, schedule), said,
    h("div", {}, cost), h("div", { class: "lab-two" }, h("div", {}, plots[2]), h("div", {}, plots[3])),
    h("p", { class: "lab-note" }, swatch("k"), "the chosen switch ", swatch("s"), "the others. Bars are 95 % intervals over searches and trainings; " +
      "the numbers below are iterations with the cheap predictor. Where there are one or two searches, they say little."));
  fill();
};
