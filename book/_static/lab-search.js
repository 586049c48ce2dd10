(window.labs ??= {}).search = (live, data, lab) => {
  const { h, s, num, plot, draw, swatch, words } = lab;
  const { steps, alone, space } = data, last = steps.length - 1, turn = steps.findIndex(t => t.by === "s");
  let at = 0, timer = 0;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const total = (list, key, i) => list.slice(0, i + 1).reduce((a, t) => a + (t[key] ?? 0), 0);

  // One panel: a frame with a scale, the reference line, then the points so far.
  const panel = (kids, width, top, height, title, values, digits, lines) => {
    const left = 52, low = Math.min(...values), high = Math.max(...values), pad = (high - low) * 0.08;
    const x = i => left + 8 + i / last * (width - left - 16), y = v => top + height - (v - low + pad) / (high - low
      + 2 * pad) * height;
    kids.push(s("text", { x: 0, y: top - 8, style: "font-weight:600" }, title));
    kids.push(s("rect", { x: left, y: top, width: width - left - 1, height, fill: "none", stroke: "var(--rule)" }));
    for (const v of [low, (low + high) / 2, high]) kids.push(s("line", { x1: left, x2: width - 1, y1: y(v), y2: y(v),
      stroke: "var(--rule)", "stroke-width": 0.6 }),
      s("text", { x: left - 5, y: y(v) + 4, "text-anchor": "end", class: "soft" }, num(v, digits)));
    kids.push(s("line", { x1: x(turn - 0.5), x2: x(turn - 0.5), y1: top, y2: top + height, stroke: "var(--ink)",
      "stroke-dasharray": "4 3" }));
    for (const { list, colour, hollow, dash } of lines) {
      if (list.length > 1) kids.push(s("polyline", { points: list.map(([i, v]) => `${x(i)},${y(v)}`).join(" "), fill: "none",
        stroke: colour, "stroke-width": 1.6, "stroke-dasharray": dash }));
      if (hollow !== null) list.forEach(([i, v]) => kids.push(s("circle", { cx: x(i), cy: y(v), r: i === at ? 5.5 : 3.2,
        fill: hollow ? "var(--back)" : colour, stroke: colour, "stroke-width": 1.5 })));
    }
    return x;
  };
  const reference = h("input", { type: "checkbox", checked: true, onchange: () => chart.paint() });
  const chart = plot("Best-so-far scores by iteration", width => {
    const kids = [], seen = steps.slice(0, at + 1).map((t, i) => ({ ...t, i }));
    const cheap = seen.filter(t => t.by === "c"), asked = cheap.map(t => [t.i, t.sup]),
      own = seen.filter(t => t.by === "s").map(t => [t.i, t.sup]);
    panel(kids, width, 24, 110, "Cheap predictor: predicted BLEU of the best", steps.filter(t => t.by === "c").map(t => t.score), 1,
      [{ list: cheap.map(t => [t.i, t.score]), colour: "var(--orange)" }]);
    const x = panel(kids, width, 172, 150, "Supernet: minus its loss, nats per token", [...steps.map(t => t.sup),
      ...alone.map(t => t.sup)], 3, [
      ...(reference.checked ? [{ list: alone.slice(0, at + 1).map((t, i) => [i, t.sup]), colour: "var(--soft)", hollow: null,
        dash: "2 3" }] : []),
      { list: asked.concat(own.slice(0, 1)), colour: "var(--blue)", hollow: null, dash: "4 3" },
      { list: asked, colour: "var(--blue)", hollow: true, dash: "0 9" }, { list: own, colour: "var(--blue)", hollow: false }]);
    kids.push(s("text", { x: x(turn - 0.5) + 6, y: 40, class: "soft" }, "no longer asked"));
    for (const i of [0, 4, 9, 14, 19, 24, 29]) if (i <= last) kids.push(s("text", { x: x(i), y: 338, "text-anchor": "middle",
      class: "soft" }, `${i + 1}`));
    kids.push(s("text", { x: width, y: 352, "text-anchor": "end", class: "soft" }, "iteration"));
    return [356, kids];
  });
  const spent = plot("Architectures scored so far", width => {
    const kids = [], top = Math.max(total(alone, "ev", last), total(steps, "ev", last)), x = v => v / top * (width - 60);
    [["cheap predictor", "o", total(steps.filter(t => t.by === "c"), "ev", at)], ["supernet", "b", total(steps.slice(0, at
      + 1).filter(t => t.by === "s"), "ev", last)],
      ...(reference.checked ? [["supernet alone, same seed", "s", total(alone, "ev", at)]] : [])].forEach(([name, cls, v],
        i) => kids.push(
      s("text", { x: 0, y: 12 + i * 34, class: "soft" }, name), s("rect", { x: 0, y: 17 + i * 34, width: x(v), height: 10,
        class: cls }),
      s("text", { x: x(v) + 5, y: 26 + i * 34 }, num(v, 0))));
    return [reference.checked ? 100 : 66, kids];
  });

  const said = h("p", { class: "lab-said", role: "status" }), picture = h("div", { style: "width:7.5rem;flex:none" }),
    change = h("p", { class: "lab-note" });
  const scrub = h("input", { type: "range", min: 1, max: last + 1, step: 1, value: 1,
    oninput: () => { stop(); go(+scrub.value - 1); } });
  const out = h("output"), play = h("button", { type: "button", class: "lab-main", onclick: () => timer ? stop() : run() }, "Play");
  const back = h("button", { type: "button", onclick: () => { stop(); go(at - 1); } }, "Back"), next = h("button",
    { type: "button", onclick: () => { stop(); go(at + 1); } }, "Step");
  const jump = h("button", { type: "button", onclick: () => { stop(); go(turn); } }, "To the switch");

  const differences = (a, b) => {
    const found = [], list = (name, x, y) => { const k = x.filter((v, i) => v !== y[i]).length; if (x.length === y.length
      && k) found.push(k === 1 ? name : `${k} ${name}s`); };
    if (a.e !== b.e) found.push(`encoder width ${a.e} to ${b.e}`);
    if (a.d !== b.d) found.push(`decoder width ${a.d} to ${b.d}`);
    if (a.df.length !== b.df.length) found.push(`decoder layers ${a.df.length} to ${b.df.length}`);
    list("encoder feed-forward width", a.ef, b.ef); list("encoder head count", a.eh, b.eh); list("decoder feed-forward width",
      a.df, b.df);
    list("decoder head count", [...a.dh, ...a.ch], [...b.dh, ...b.ch]); list("cross-attention span", a.sp, b.sp);
    return found;
  };
  const go = i => {
    at = Math.max(0, Math.min(last, i));
    const t = steps[at], old = steps[at - 1], who = t.by === "c" ? "cheap predictor" : "supernet";
    scrub.value = at + 1; out.textContent = `${at + 1} of ${last + 1}, ${who}`; scrub.setAttribute("aria-valuetext",
      out.textContent);
    back.disabled = at === 0; next.disabled = at === last;
    const moved = old ? differences(old.arch, t.arch) : [];
    const up = old && t.score - old.score, real = old && t.sup - old.sup;
    said.textContent = at === 0 ? `${t.ev} random architectures within ${num(data.limit, 1)} ms; the cheap predictor scores them all.` :
      at === turn ? `The switch: the supernet scores all ${t.ev} candidates anew, since the two count in different units.` :
      at === last ? `The end: ${num(total(steps.slice(turn), "ev", last), 0)} architectures asked of the supernet, ` +
        `${num(total(alone, "ev", last), 0)} by the supernet alone; ` +
        (num(t.sup, 4) === num(alone[last].sup,
          4) ? `both end at ${num(t.sup, 4)}.` : `it ends at ${num(t.sup, 4)}, the supernet alone at ${num(alone[last].sup, 4)}.`) :
      !moved.length ? `${t.ev} new candidates, none better.` :
      t.by === "s" ? `${t.ev} new candidates; a better one: ${num(real, 4)} nats up.` :
      `${t.ev} new candidates; a better one by the cheap predictor, +${num(up, 2)} BLEU; ` +
        `the supernet, asked afterwards, ${real < -1e-9 ? "disagrees" : "agrees"}.`;
    picture.replaceChildren(draw(t.arch, space));
    change.textContent = moved.length ? `Changed: ${moved.join("; ")}.` : old ? "The same as before." : words(t.arch);
    chart.paint(); spent.paint();
  };
  const stop = () => { clearTimeout(timer); timer = 0; play.textContent = "Play"; said.setAttribute("aria-live", "polite"); };
  const run = () => {
    if (at === last) go(0);
    play.textContent = "Pause"; said.setAttribute("aria-live", "off");
    const tick = () => { go(at + 1); if (at === last) stop(); else timer = setTimeout(tick,
      at === turn ? 2600 : calm ? 1600 : 800); };
    timer = setTimeout(tick, 300);
  };
  document.addEventListener("visibilitychange", () => document.hidden && stop());
  live.append(h("div", { class: "lab-row" }, play, back, next, jump), lab.field("Iteration", scrub, out), said, h("div", {}, chart),
    h("p", { class: "lab-note" }, swatch("o"), "cheap predictor ", swatch("b"),
      "supernet; hollow where it was asked only afterwards, for this picture. Dashed: the switch. "),
    h("label", { class: "lab-check" }, reference, h("span", {}, "show the search with the supernet alone (dotted, grey)")),
    h("div", { class: "lab-two" }, h("div", {}, h("h4", {}, "Architectures scored so far"), spent), h("div", {}, h("h4", {},
      "Best so far"), h("div", { class: "lab-row", style: "flex-wrap:nowrap;align-items:center" }, picture, change))));
  go(0);
};
