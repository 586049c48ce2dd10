(window.labs ??= {}).guess = (live, data, lab) => {
  const { h, s, num, mae, tau, draw, plot, table, swatch } = lab;
  const { demos, tests, space, rounds } = data, [low, high] = data.range;
  const middle = Math.round(lab.mean(demos.map(d => d.bleu)) * 20) / 20;
  const guesses = [];
  let open = false; // whether the answer of this round is shown
  const item = () => tests[guesses.length - (open ? 1 : 0)];

  // The ten demonstrations
  const cards = h("ol", { class: "lab-cards" });
  const order = h("button", { type: "button", "aria-pressed": "false",
    onclick: () => deal(order.getAttribute("aria-pressed") === "false") }, "Sort by BLEU");
  const deal = sorted => {
    order.setAttribute("aria-pressed", sorted);
    order.textContent = sorted ? "Order of the prompt" : "Sort by BLEU";
    cards.replaceChildren(...(sorted ? [...demos].sort((a, b) => a.bleu - b.bleu) : demos).map(d =>
      h("li", {}, draw(d.arch, space), h("b", {}, num(d.bleu)), num(d.gflops))));
  };

  // The question
  const title = h("h4", { tabindex: -1 }), ask = h("div", { class: "lab-ask" });
  const input = h("input", { type: "range", min: low, max: high, step: 0.05, value: middle, oninput: () => moved() });
  const out = h("output", {}), said = h("p", { class: "lab-said", role: "status" });
  const button = h("button", { class: "lab-main" });
  const strip = plot("Scale of BLEU with the ten demonstrations and, once shown, the answers", width => {
    const x = v => 9 + (v - low) / (high - low) * (width - 18), now = item();
    const kids = [];
    for (let v = Math.ceil(low * 2) / 2; v <= high + 1e-9; v += 0.5)
      kids.push(s("line", { x1: x(v), x2: x(v), y1: 4, y2: 96, stroke: "var(--rule)" }), v % 1 === 0 && s("text", { x: x(v),
        y: 110, "text-anchor": "middle", class: "soft" }, num(v, 0)));
    demos.forEach(d => kids.push(s("circle", { cx: x(d.bleu), cy: 12, r: 4, class: "s", opacity: 0.7 })));
    const mark = (row, v, cls, name) => {
      const y = 30 + row * 17, right = x(v) < width * 0.6;
      kids.push(s("rect", { x: x(v) - 5, y: y - 5, width: 10, height: 10, rx: row ? 2 : 5, class: cls }),
        s("text", { class: "halo", x: x(v) + (right ? 9 : -9), y: y + 4, "text-anchor": right ? "start" : "end" },
          `${name} ${num(v)}`));
    };
    mark(0, +input.value, "k", "you");
    if (open) {
      kids.unshift(s("line", { x1: x(now.bleu), x2: x(now.bleu), y1: 2, y2: 98, stroke: "var(--ink)", "stroke-width": 2,
        "stroke-dasharray": "4 3" }));
      mark(1, now.bleu, "i", "true"); mark(2, now.model, "p", "language model"); mark(3, now.count, "g", "counting");
    }
    return [116, kids];
  });
  const moved = () => { out.textContent = num(+input.value); input.setAttribute("aria-valuetext",
    `${num(+input.value)} BLEU`); strip.paint(); };
  const off = (v, truth) => Math.abs(v - truth) < 0.005 ? "exact" : `${num(Math.abs(v - truth))} too ${v > truth ? "high" : "low"}`;

  const form = h("form", { onsubmit: event => {
    event.preventDefault();
    if (!open) {
      open = true;
      guesses.push(+(+input.value).toFixed(2));
      const t = item();
      said.textContent = `True: ${num(t.bleu)}. You: ${num(guesses.at(-1))}, ${off(guesses.at(-1), t.bleu)}. ` +
        `Language model: ${num(t.model)}, ${off(t.model, t.bleu)}. Counting: ${num(t.count)}, ${off(t.count, t.bleu)}.`;
      button.focus({ preventScroll: true }); // before the slider is switched off, or the focus is lost
      input.disabled = true;
      if (guesses.length % rounds === 0 || guesses.length === tests.length) score();
      label(); strip.paint();
    } else if (guesses.length < tests.length) { open = false; question(); input.focus({ preventScroll: true }); }
    else restart();
  } }, lab.field("Your guess, BLEU on validation", input, out), strip, h("div", { class: "lab-row" }, button));
  const label = () => { button.textContent = !open ? "Show the answer" : guesses.length === tests.length ? "Start again" :
    guesses.length % rounds === 0 ? `${rounds} more` : "Next architecture"; };
  const restart = () => { guesses.length = 0; open = false; result.replaceChildren(); question(); input.focus({ preventScroll: true }); };
  const question = () => {
    const t = item(), a = t.arch;
    const end = Math.min(tests.length, (Math.floor(guesses.length / rounds) + 1) * rounds);
    title.textContent = `Test architecture ${guesses.length + 1} of ${end}`;
    ask.replaceChildren(draw(a, space), h("div", {}, h("div", {}, swatch("o"), h("b", { class: "n" },
      `${a.df.length} decoder layer${a.df.length > 1 ? "s" : ""}`), `, width ${a.d}`),
      h("div", { class: "lab-note" }, `feed-forward ${a.df.join(", ")}`), h("div", {}, swatch("b"),
        `${a.ef.length} encoder layers, width ${a.e}`),
      h("div", { class: "lab-note" }, `feed-forward ${a.ef.join(", ")}`), h("div", {}, `${num(t.gflops, 2)} GFLOPs`)));
    input.disabled = false; input.value = middle; said.textContent = "";
    moved(); label();
  };

  // The score
  const column = key => tests.map(t => t[key]);
  const whole = key => `${num(mae(column("bleu"), column(key)))} and ${num(tau(column("bleu"), column(key)))}`;
  const result = h("div", { role: "status" });
  const score = () => {
    const seen = tests.slice(0, guesses.length), y = seen.map(t => t.bleu), flat = y.map(() => data.mean);
    const line = (cls, name, p) => [cls, name, num(mae(y, p)), isNaN(tau(y, p)) ? "\u2013" : num(tau(y, p))];
    result.replaceChildren(h("h4", {}, `After ${guesses.length} guesses`),
      table(["", "mean error", "tau"], [line("you", [swatch("k"), "you"], guesses), line("", [swatch("p"), "language model"],
        seen.map(t => t.model)),
        line("", [swatch("g"), "depth and parameters"], seen.map(t => t.count)), line("", [swatch("s"), "mean of the ten"], flat)]),
      h("p", { class: "lab-note" },
        `Error in BLEU, smaller is better; tau from \u22121 to 1, larger is better, and rough over so few. On all ${tests.length}: ` +
        `language model ${whole("model")}, counting ${whole("count")}.`),
      h("details", {}, h("summary", {}, "All guesses"), table(["", "true", "you", "model", "counting"],
        seen.map((t, i) => ["", `${i + 1}`, num(t.bleu), num(guesses[i]), num(t.model), num(t.count)]))));
  };

  live.append(h("div", { class: "lab-row lab-top" }, h("h4", {}, "Ten trained architectures"), order), cards,
    h("p", { class: "lab-note" }, swatch("b"), "encoder ", swatch("o"),
      "decoder. A bar is a layer, as wide as its feed-forward part; a thick spine is a width of ",
      `${Math.max(...space.width)}, a thin one of ${Math.min(...space.width)}. Below: BLEU and, small, GFLOPs.`), title, ask,
        form, said, result);
  deal(false); question();
};
