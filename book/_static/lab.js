// What all interactive figures share. Each of them registers a function in `labs`; scripts may come in any order.
(() => {
  const make = (node, attrs, kids) => {
    for (const [k, v] of Object.entries(attrs ?? {}))
      if (k.startsWith("on")) node.addEventListener(k.slice(2), v);
      else if (v !== false && v != null) node.setAttribute(k, v === true ? "" : v);
    node.append(...kids.flat(9).filter(k => k != null && k !== false));
    return node;
  };
  const h = (tag, attrs, ...kids) => make(document.createElement(tag), attrs, kids);
  const s = (tag, attrs, ...kids) => make(document.createElementNS("http://www.w3.org/2000/svg", tag), attrs, kids);
  // A number as text: a true minus, a comma for thousands.
  const num = (v, digits = 2) => v.toLocaleString("en-US", { minimumFractionDigits: digits,
    maximumFractionDigits: digits }).replace("-", "\u2212");
  const mean = v => v.reduce((a, b) => a + b, 0) / v.length;
  const mae = (y, p) => mean(y.map((v, i) => Math.abs(v - p[i])));
  // Kendall's tau-b; NaN where one side is constant.
  const tau = (y, p) => {
    let both = 0, ny = 0, np = 0;
    for (let i = 0; i < y.length; i++) for (let j = 0; j < i; j++) {
      const a = Math.sign(y[i] - y[j]), b = Math.sign(p[i] - p[j]);
      both += a * b; ny += a * a; np += b * b;
    }
    return both / Math.sqrt(ny * np);
  };
  // An architecture in words, and drawn: a bar per layer as wide as its feed-forward part, a spine that is thick where the width is large.
  const words = a => `Encoder: ${a.ef.length} layers, width ${a.e}, feed-forward ${a.ef.join(", ")}. Decoder: ${a.df.length} ` +
    `layer${a.df.length > 1 ? "s" : ""}, width ${a.d}, feed-forward ${a.df.join(", ")}.`;
  const draw = (a, space) => {
    const rows = space.depth, unit = 28 / Math.max(...space.ffn), low = Math.min(...space.width);
    const stack = (x, width, ffn, kind) => [
      s("rect", { class: "spine", x: x - (width > low ? 5 : 1.5), y: (rows - ffn.length) * 9 - 2, width: width > low ? 10 : 3,
        height: ffn.length * 9 + 4 }),
      ffn.map((f, i) => s("rect", { class: kind, x: x - f * unit / 2, y: (rows - 1 - i) * 9, width: f * unit, height: 7,
        rx: 1.5 }))];
    return s("svg", { viewBox: `0 -3 64 ${rows * 9 + 4}`, role: "img", "aria-label": words(a) },
      stack(15, a.e, a.ef, "b"), stack(49, a.d, a.df, "o"));
  };
  // A name, a slider and its value. The label has "for": one that wraps both would name the output, which comes first.
  let ids = 0;
  const field = (label, input, out) => {
    input.id = `lab-${++ids}`;
    return h("div", { class: "lab-ctl" }, h("span", {}, h("label", { for: input.id }, label), out), input);
  };
  // A slider over a list of values.
  const slider = (label, values, start, change, text = String) => {
    const out = h("output", {}, text(start));
    const input = h("input", { type: "range", min: 0, max: values.length - 1, step: 1, value: values.indexOf(start),
      "aria-valuetext": text(start),
      oninput: () => { show(); change(values[+input.value]); } });
    const show = () => { const t = text(values[+input.value]); out.textContent = t; input.setAttribute("aria-valuetext", t); };
    const node = field(label, input, out);
    node.set = v => {
      if (values.includes(v)) { input.value = values.indexOf(v); show(); }
      else { out.textContent = "mixed"; input.setAttribute("aria-valuetext", "mixed"); }
    };
    return node;
  };
  // A plot that is drawn anew at the width it has, so that text keeps its size: paint(width) returns SVG nodes and a height.
  const plot = (label, paint) => {
    const node = s("svg", { role: "img", "aria-label": label, width: "100%" });
    node.paint = () => {
      const width = node.parentNode?.clientWidth;
      if (!width) return;
      const [height, kids] = paint(width);
      node.setAttribute("height", height); node.setAttribute("viewBox", `0 0 ${width} ${height}`);
      node.replaceChildren(...kids.flat(9).filter(Boolean));
    };
    new ResizeObserver(node.paint).observe(node);
    return node;
  };
  const table = (head, rows) => h("table", { class: "lab-tab" }, h("thead", {}, h("tr", {}, head.map(t => h("th",
    { scope: "col" }, t)))),
    h("tbody", {}, rows.map(([cls, first, ...rest]) => h("tr", { class: cls }, h("th", { scope: "row" }, first),
      rest.map(t => h("td", {}, t))))));
  const swatch = cls => h("span", { class: `sw ${cls}`, "aria-hidden": "true" });
  const lab = { h, s, num, mean, mae, tau, words, draw, field, slider, plot, table, swatch };
  // Build each figure beside its still picture; the still stays where anything goes wrong.
  const start = () => document.querySelectorAll(".lab[data-lab]:not([data-on])").forEach(root => {
    const live = h("div", { class: "lab-live" });
    try {
      window.labs[root.dataset.lab](live, JSON.parse(root.querySelector("script.lab-data").textContent), lab);
      root.append(live);
      root.dataset.on = "";
      live.querySelectorAll("svg").forEach(node => node.paint?.());
    } catch (error) { live.remove(); console.error(`figure ${root.dataset.lab}:`, error); }
  });
  if (document.readyState === "loading") addEventListener("DOMContentLoaded", start); else start();
})();
