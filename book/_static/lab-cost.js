(window.labs ??= {}).cost = (live, data, lab) => {
  const { h, s, num, plot, table, slider, swatch } = lab;
  const { space, start } = data, q = data.qkv, n = data.length;
  const PARTS = [["encoder attention", "b", 1], ["encoder feed-forward", "b pale", 1], ["decoder self-attention", "o", 1],
    ["decoder cross-attention", "g", 1],
    ["decoder feed-forward", "o pale", 1], ["norms, scaling", "s", 1]];
  // The closed form of chapter 1, part by part; a multiply-accumulate is two operations.
  const cost = a => {
    const p = [0, 0, 0, 0, 0, 0], m = [0, 0, 0, 0, 0, n * (a.e + a.d) + 2 * n];
    const add = (to, ...v) => v.forEach((x, i) => { to[i] += x; });
    for (const f of a.ef) {
      add(p, 4 * q * a.e + 3 * q + a.e, 2 * a.e * f + f + a.e, 0, 0, 0, 4 * a.e);
      add(m, n * 4 * q * a.e + 2 * n * n * q + n * q, n * 2 * a.e * f, 0, 0, 0, 2 * n * a.e + 3);
    }
    a.df.forEach((f, i) => {
      const read = n * a.sp[i];
      add(p, 0, 0, 4 * q * a.d + 3 * q + a.d, 2 * q * a.d + 2 * q * a.e + 3 * q + a.d, 2 * a.d * f + f + a.d, 6 * a.d);
      add(m, 0, 0, n * 4 * q * a.d + 2 * n * n * q + n * q, n * 2 * q * a.d + 2 * read * q * a.e + 2 * n * read * q + n * q,
        n * 2 * a.d * f, 3 * n * a.d + 6);
    });
    return { p, f: m.map(v => 2 * v) };
  };
  const sum = v => v.reduce((a, b) => a + b, 0);
  // The page checks itself against numbers that the notebook computed; where they differ the still picture stays.
  for (const [a, p, f] of data.checks) {
    const c = cost(a);
    if (sum(c.p) !== p || sum(c.f) !== f) throw new Error(`cost of an architecture is ${sum(c.p)}, ${sum(c.f)}, not ${p}, ${f}`);
  }
  const fill = (k, v) => Array(k).fill(v);
  const state = structuredClone(start);
  state.heads = space.heads[0];
  let before = cost(state);

  const said = h("p", { class: "lab-said", role: "status" }, "Move a slider, or press a layer, and see what it costs."),
    parts = h("div");
  const stacks = h("div", { class: "lab-two", style: "grid-template-columns:1fr 1fr;gap:.6rem" });
  const LARGEST = data.largest, SMALLEST = data.smallest;
  const bar = (label, key, unit, digits) => plot(label, width => {
    const c = cost(state)[key], total = sum(c) / unit, top = LARGEST[key] / unit, x = v => v / top * (width - 2), kids = [];
    kids.push(s("rect", { x: 0, y: 20, width: width - 2, height: 26, fill: "none", stroke: "var(--rule)" }));
    let at = 0;
    PARTS.forEach(([name, cls], i) => {
      const w = x(c[i] / unit), share = Math.round(100 * c[i] / sum(c));
      kids.push(s("rect", { x: at, y: 20, width: Math.max(0, w - 1), height: 26, class: cls }, s("title", {},
        `${name}: ${share} %`)));
      // Shares stand below the bar, in ink: no colour of the bar has to carry text.
      if (w > 30) kids.push(s("text", { x: at + w / 2, y: 60, "text-anchor": "middle", class: "soft" }, `${share} %`));
      at += w;
    });
    const low = x(SMALLEST[key] / unit);
    kids.push(s("line", { x1: low, x2: low, y1: 16, y2: 50, stroke: "var(--ink)", "stroke-width": 1.5,
      "stroke-dasharray": "3 2" }));
    kids.push(s("text", { x: 0, y: 12, style: "font-weight:600" },
      `${num(total, digits)} ${key === "p" ? "million parameters" : "GFLOPs"}`),
      s("text", { x: width, y: 12, "text-anchor": "end", class: "soft" },
        `${num(SMALLEST[key] / unit, digits)} to ${num(top, digits)}`));
    return [66, kids];
  });
  const bars = [bar("Parameters by part", "p", 1e6, 1), bar("GFLOPs by part", "f", 1e9, 2)];

  const change = (what, act) => value => { before = cost(state); const old = act(value); show(what, old, value); };
  const controls = {
    e: slider("Encoder width", space.width, state.e, change("Encoder width", v => { const o = state.e; state.e = v; return o; })),
    d: slider("Decoder width", space.width, state.d, change("Decoder width", v => { const o = state.d; state.d = v; return o; })),
    layers: slider("Decoder layers", space.layers, state.df.length, change("Decoder layers", v => {
      const o = state.df.length;
      state.df = fill(v, 0).map((_, i) => state.df[i] ?? state.df.at(-1)); state.sp = fill(v, state.sp[0]);
      return o;
    })),
    span: slider("Layers read", [1, 2, 3], state.sp[0], change("Encoder layers read",
      v => { const o = state.sp[0]; state.sp = fill(state.df.length, v); return o; })),
    ef: slider("Encoder FFN", space.ffn, state.ef[0], change("Encoder feed-forward",
      v => { const o = same(state.ef); state.ef = fill(state.ef.length, v); return o; })),
    df: slider("Decoder FFN", space.ffn, state.df[0], change("Decoder feed-forward",
      v => { const o = same(state.df); state.df = fill(state.df.length, v); return o; })),
    heads: slider("Heads", space.heads, state.heads, change("Heads", v => { const o = state.heads; state.heads = v; return o; })),
  };
  const same = list => list.every(v => v === list[0]) ? list[0] : "mixed";
  const stack = (key, name, cls) => {
    const column = h("div", { class: "lab-stack" });
    column.draw = () => {
      while (column.childElementCount - 1 > state[key].length) column.lastChild.remove();
      state[key].forEach((f, i) => {
        let b = column.children[i + 1];
        if (!b) column.append(b = h("button", { type: "button", class: cls, onclick: () => {
          const old = state[key][i], next = space.ffn[(space.ffn.indexOf(old) + 1) % space.ffn.length];
          before = cost(state); state[key][i] = next;
          show(`${name} layer ${i + 1}, feed-forward`, old, next);
        } }));
        b.style.width = `${100 * f / Math.max(...space.ffn)}%`; b.textContent = f;
        b.setAttribute("aria-label", `${name} layer ${i + 1}: feed-forward ${f}. Press to change.`);
      });
    };
    column.append(h("small", {}, name.toLowerCase()));
    return column;
  };
  const columns = [stack("ef", "Encoder", "b"), stack("df", "Decoder", "o")];
  const signed = (v, digits) => (v > 0 ? "+" : "") + num(v, digits);
  const show = (what, old, value) => {
    const now = cost(state), dp = (sum(now.p) - sum(before.p)) / 1e6, df = (sum(now.f) - sum(before.f)) / 1e9;
    if (what) said.textContent = `${what}, ${old} to ${value}: `
      + (dp || df ? `${signed(dp, 1)} million parameters, ${signed(df, 2)} GFLOPs.` :
      "costs nothing. Attention has the same inner width however many heads share it.");
    controls.ef.set(same(state.ef)); controls.df.set(same(state.df));
    columns.forEach(c => c.draw()); bars.forEach(b => b.paint());
    parts.replaceChildren(table(["", "parameters (M)", "GFLOPs"], [...PARTS.map(([name, cls], i) =>
      ["", [swatch(cls), name], num(now.p[i] / 1e6, 1), num(now.f[i] / 1e9, 2)]), ["you", "together", num(sum(now.p) / 1e6, 1),
        num(sum(now.f) / 1e9, 2)]]));
  };
  stacks.append(...columns);
  live.append(h("div", {}, bars[0]), h("div", {}, bars[1]), said,
    h("div", { class: "lab-two" }, h("div", { class: "lab-knobs" }, Object.values(controls)), h("div", {}, stacks, h("p",
      { class: "lab-note" },
      "A box is a layer, as wide as its feed-forward part (FFN). Press one to change it alone. " +
      "Layers read: how many of the last encoder layers a cross-attention reads."))),
    parts, h("p", { class: "lab-note" },
      "In the bars, dashed: the smallest architecture of the space. The frame ends at the largest."),
    h("div", { class: "lab-row" }, h("button", { type: "button", onclick: () => {
      before = cost(state); Object.assign(state, structuredClone(start));
      for (const [key, v] of [["e", state.e], ["d", state.d], ["layers", state.df.length], ["span",
        state.sp[0]]]) controls[key].set(v);
      show(); said.textContent = "Back at the beginning.";
    } }, "Start again")));
  show();
};
