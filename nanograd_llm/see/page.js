"use strict";
const all = JSON.parse(document.getElementById("data").textContent);
const BAR = "\u0304", MINUS = "\u2212";
let page = all, number = 0, backward = false, above = [], picked = null, openGroups = new Set();
const decoded = new Map();

function el(tag, given, ...children) {
  const svg = /^(svg|rect|path|circle|text|g)$/.test(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(given || {}))
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  node.append(...children.flat(9).filter(c => c !== null && c !== undefined && c !== false));
  return node;
}

function bytesOf(base64) {
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) bytes[k] = text.charCodeAt(k);
  return bytes;
}

/* An array of the file: its cells in rows, and what they stand for. */
function array(i) {
  if (!decoded.has(i)) {
    const a = all.arrays[i], bytes = bytesOf(a.b);
    const places = a.o && { 1: Uint8Array, 2: Uint16Array, 4: Uint32Array }[a.ob];
    const single = /float(32|16)/.test(a.d);
    const data = single ? new Float32Array(bytes.buffer) : new Float64Array(bytes.buffer);
    let max = 0, sum = 0;
    for (const x of data) { if (Number.isFinite(x)) { max = Math.max(max, Math.abs(x)); sum += x * x; } }
    decoded.set(i, { id: i, shape: a.s, dtype: a.d, rows: a.g[0], cols: a.g[1], data, max, single, pool: a.p, places: places && new places(bytesOf(a.o).buffer),
      norm: a.norm === undefined ? Math.sqrt(sum) : Number(a.norm) });
  }
  return decoded.get(i);
}

function short(x) {
  if (typeof x === "string") return x;
  if (!Number.isFinite(x)) return String(x).replace("-", MINUS);
  if (x === 0) return "0";
  const size = Math.abs(x);
  const text = size >= 1e5 || size < 1e-3 ? x.toExponential(1).replace("e+", "e") : String(Number(x.toPrecision(3)));
  return text.replace(/^-/, MINUS);
}

/* The shortest text that gives the number again, as Python's repr. */
function exact(x, a) {
  if (!a.single || !Number.isFinite(x)) return String(x);
  for (let digits = 1; digits < 10; digits++) {
    const text = x.toPrecision(digits);
    if (Math.fround(Number(text)) === x) return String(Number(text));
  }
  return String(x);
}

const shapeText = s => "(" + s.join(", ") + (s.length === 1 ? ",)" : ")");

function indexText(flat, shape) {
  const index = [];
  for (const n of [...shape].reverse()) { index.unshift(flat % n); flat = Math.floor(flat / n); }
  return index.length ? "[" + index.join(",") + "]" : "";
}

const columns = a => a.shape.length > 1 ? a.shape[a.shape.length - 1] : a.rows > 1 ? 64 : a.shape.length ? a.shape[0] : 1;

/* The place in the flat array of the entry that cell k shows, and the cell of a flat place. */
function flatOf(a, k) {
  if (!a.pool) return k;
  const place = a.places[k], row = Math.floor(k / a.cols) * a.pool[0] + Math.floor(place / a.pool[1]);
  return row * columns(a) + k % a.cols * a.pool[1] + place % a.pool[1];
}
function cellOf(a, flat) {
  if (!a.pool) return flat;
  const width = columns(a);
  return Math.floor(Math.floor(flat / width) / a.pool[0]) * a.cols + Math.floor((flat % width) / a.pool[1]);
}

const style = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function rgb(hex) { const n = parseInt(hex.length === 4 ? hex.slice(1).replace(/./g, "$&$&") : hex.slice(1), 16);
  return [n >> 16, (n >> 8) & 255, n & 255]; }
function colour(x, max) {
  if (!Number.isFinite(x)) return [128, 128, 128];
  const share = max ? Math.min(1, Math.abs(x) / max) : 0, to = rgb(style(x < 0 ? "--minus" : "--plus")), from = rgb(style("--back"));
  return from.map((c, i) => Math.round(c + (to[i] - c) * share));
}
/* Is black text on this colour the more readable (WCAG's relative luminance)? */
const light = c => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * (c[i] / 255) ** 2.2, 0) > 0.18;

/* A picture of an array: numbers where it is small, else a heat map. max: of a scale that several share. */
function map(i, name, more, given = {}) {
  const a = array(i), max = given.max || a.max, maps = el("div", { class: "map scroll" });
  const pick = k => { picked = { ...given, array: i, cell: k }; render(); };
  const known = Object.keys({ ...(given.part ? {} : given.input && given.input.t), ...(given.part ? {} : given.value && given.value.nudge) });
  const cells = new Set(known.map(flat => cellOf(a, Number(flat)))), marks = cells.size && cells.size < a.data.length;
  const isPicked = picked && picked.array === i && picked.key === given.key;
  const few = a.cols <= 12 && a.rows <= 16 && !a.pool, float = a.dtype.startsWith("float");
  const texts = all.tokens.filter(text => a.shape.length === 3 && a.shape[0] === 1 && text.length === a.rows && !a.pool);
  const rowNames = texts.length === 1 ? texts[0] : null;
  if (few) {
    const table = el("table", { role: "presentation" });
    for (let r = 0; r < a.rows; r++) {
      const row = el("tr", {}, rowNames ? el("th", { scope: "row" }, rowNames[r]) : null);
      for (let c = 0; c < a.cols; c++) {
        const k = r * a.cols + c, x = a.data[k];
        const cell = el("td", { title: exact(x, a), "data-k": k, class: (isPicked && picked.cell === k ? "sel" : "") + (marks && cells.has(k) ? " known" : ""),
          onclick: () => pick(k) }, float ? short(x) : String(x));
        if (float) { const back = colour(x, max); cell.style.background = `rgb(${back})`;
          cell.style.color = light(back) ? "#000" : "#fff"; }
        row.append(cell);
      }
      table.append(row);
    }
    maps.append(table);
  } else maps.append(heat(a, max, isPicked ? picked.cell : -1, pick, marks ? cells : []));
  const move = event => {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -a.cols, ArrowDown: a.cols }[event.key];
    if (!by || !event.shiftKey) return;
    event.preventDefault(); event.stopPropagation();
    const k = isPicked ? picked.cell + by : 0;
    if (k >= 0 && k < a.data.length) { pick(k); const f = document.querySelector(`figure[data-key="${given.key}"]`); if (f) f.focus(); }
  };
  const kind = a.pool ? `each cell shows the largest in size of ${a.pool[0]}×${a.pool[1]} entries` : "";
  const label = `${name}, shape ${shapeText(a.shape)}, ${a.dtype}, norm ${short(a.norm)}. Shift and arrows pick an entry.`;
  return el("figure", { tabindex: 0, role: "group", "aria-label": label, "data-key": given.key, "data-array": i, onkeydown: move,
    "data-name": name },
    el("figcaption", {}, el("b", {}, name), " ", el("span", { class: "soft mono" },
      [(a.shape.length ? shapeText(a.shape) + " " : "") + a.dtype, more, kind].filter(Boolean).join("; "))), maps,
    float && a.data.length > 1 ? el("div", { class: "scale mono" }, short(-max), el("i"), short(max), ` norm ${short(a.norm)}`) : null);
}

function heat(a, max, selected, pick, marked) {
  const size = Math.max(3, Math.min(16, Math.floor(760 / Math.max(1, a.cols)))), high = Math.max(size, a.rows < 4 ? 14 : size);
  const canvas = el("canvas", { width: a.cols * size, height: Math.max(1, a.rows) * high, role: "img", "aria-label": "heat map" });
  const g = canvas.getContext("2d");
  for (let k = 0; k < a.data.length; k++) {
    const c = colour(a.data[k], max), x = k % a.cols * size, y = Math.floor(k / a.cols) * high;
    g.fillStyle = `rgb(${c})`; g.fillRect(x, y, size, high);
    if (a.data[k] < 0 && size > 5) { g.strokeStyle = light(c) ? "rgba(0,0,0,.35)" : "rgba(255,255,255,.5)"; g.beginPath();
      g.moveTo(x + size * .3, y + high / 2); g.lineTo(x + size * .7, y + high / 2); g.stroke(); }
  }
  g.strokeStyle = style("--text");
  for (const k of marked) g.strokeRect(k % a.cols * size + .5, Math.floor(k / a.cols) * high + .5, size - 1, high - 1);
  if (selected >= 0) { g.lineWidth = 2;
    g.strokeRect(selected % a.cols * size, Math.floor(selected / a.cols) * high, size, high); }
  const at = e => { const box = canvas.getBoundingClientRect();
    return Math.min(a.rows - 1, Math.floor((e.clientY - box.top) / high)) * a.cols + Math.min(a.cols - 1, Math.floor((e.clientX - box.left) / size)); };
  canvas.addEventListener("click", e => pick(at(e)));
  canvas.addEventListener("mousemove", e => { canvas.title = exact(a.data[at(e)], a); });
  return canvas;
}

/* A formula whose symbols light up with the arrays that they are. */
function formula(text, names, small) {
  const box = el("div", { class: "formula mono" + (small ? " small" : "") });
  const parts = text.normalize("NFD").match(/\p{L}\p{M}*[\p{L}\p{M}\p{N}_]*|[^\p{L}]+/gu) || [];
  for (const part of parts) {
    const plain = part.normalize("NFD").replace(BAR, ""), bar = part !== plain;
    if (!names.includes(plain)) { box.append(part.normalize("NFC")); continue; }
    const key = bar ? plain[0] + BAR + plain.slice(1) : plain;
    const light = on => document.querySelectorAll("figure").forEach(f =>
      f.classList.toggle("lit", on && f.dataset.name.normalize("NFD") === key));
    box.append(el("b", { class: bar ? "bar" : null, onmouseenter: () => light(true), onmouseleave: () => light(false) },
      part.normalize("NFC")));
  }
  return box;
}

const bar = name => (name[0] + BAR + name.slice(1)).normalize("NFC");
const call = () => page.calls[number];
const callName = c => `${c.op}${c.module ? " in " + c.module : ""}`;
const steps = () => 2 * page.calls.length;
const place = () => backward ? steps() - 1 - number : number;
function goto(step) {
  step = Math.max(0, Math.min(steps() - 1, step));
  backward = step >= page.calls.length; number = backward ? steps() - 1 - step : step; picked = null; render();
}
function flip() { backward = !backward; picked = null; render(); }
function openFused() {
  if (!call().open) return;
  above.push([page, number]); page = call().open; number = backward ? page.calls.length - 1 : 0; picked = null; render();
}
function close() { if (picked) { picked = null; render(); } else if (above.length) { [page, number] = above.pop(); render(); } }

const isWrong = x => x.ok === 0 || Object.values(x.t || {}).some(t => !t[4]);

/* What the marks of the list mean, and which rules were compared. */
function legend() {
  const sent = page.calls.flatMap(c => c.in.filter(x => x.g !== undefined));
  const dtype = array(page.values[page.calls[page.calls.length - 1].y].g).dtype;
  const wrong = page.calls.filter(c => c.in.some(isWrong)).length, left = sent.filter(x => x.ok < 0).length;
  return el("p", { class: "soft legend" }, "A bar is the norm of the gradient that arrives. Each rule's gradients were compared, all entries at once, ",
    "with the slopes of its forward along two random directions: ",
    wrong ? el("span", { class: "bad" }, `${wrong} of ${page.calls.length} calls ${wrong > 1 ? "have" : "has"} a wrong rule, marked ≠`) : el("span", { class: "ok" }, `they agree within the rounding of ${dtype}`),
    left ? `; ${left} of ${sent.length} gradients are too large for that and were not compared.` : ".");
}

function list() {
  const root = el("ul"), groups = [{ path: "", node: root }];
  const many = page.calls.length > 40, max = Math.max(...page.calls.map(c => array(page.values[c.y].g).norm));
  const counts = {};
  for (const c of page.calls) { const parts = c.module.split("."); let path = "";
    for (const p of parts) { path = path ? path + "." + p : p; counts[path] = (counts[path] || 0) + 1; } }
  const isOpen = path => openGroups.has(path) !== !(many && /^[^.]+\.\d+$/.test(path));
  page.calls.forEach((c, i) => {
    const parts = c.module ? c.module.split(".") : [], prefixes = parts.map((_, k) => parts.slice(0, k + 1).join("."))
      .filter(p => counts[p] > 1 && !(counts[p] === page.calls.length));
    const wanted = prefixes.filter((p, k) => k === prefixes.length - 1 || counts[p] !== counts[prefixes[k + 1]]);
    while (groups.length > 1 && !wanted.includes(groups[groups.length - 1].path)) groups.pop();
    for (const path of wanted.slice(groups.length - 1)) {
      const parent = groups[groups.length - 1], open = isOpen(path), inner = el("ul");
      const here = !open && (c2 => c2.module === path || c2.module.startsWith(path + "."))(call());
      const shown = parent.path && path.startsWith(parent.path + ".") ? path.slice(parent.path.length + 1) : path;
      const head = el("button", { "aria-expanded": String(open), "aria-current": here ? "step" : null,
        onclick: () => { openGroups.has(path) ? openGroups.delete(path) : openGroups.add(path); render(); } },
        el("svg", { "aria-hidden": "true" }), indent(groups.length - 1), (open ? "▾ " : "▸ "), el("b", {}, shown),
        el("span", { class: "soft shape" }, counts[path] + " ops"));
      parent.node.append(el("li", {}, head, open ? inner : null));
      groups.push({ path, node: open ? inner : el("ul") });
    }
    const y = page.values[c.y], size = array(y.g).norm / (max || 1) * 40, wrong = c.in.some(isWrong);
    const done = backward ? i >= number : i <= number;
    const last = groups[groups.length - 1].path, rest = c.module.startsWith(last + ".") ? c.module.slice(last.length + 1) : last ? "" : c.module;
    groups[groups.length - 1].node.append(el("li", {}, el("button", { "aria-current": i === number ? "step" : null,
      class: done ? null : "later", "data-call": i, onclick: () => { number = i; picked = null; render(); } },
      el("svg", { "aria-hidden": "true", viewBox: "0 0 40 9" }, el("rect", { x: 40 - size, y: 1, width: size, height: 7, rx: 2 })),
      indent(groups.length - 1), el("span", { class: "op" }, c.op, wrong ? el("span", { class: "bad" }, " ≠") : null),
      el("span", { class: "soft mono" }, rest), el("span", { class: "soft mono shape" }, shapeText(array(y.a).shape)))));
  });
  return root;
}
const indent = n => { const s = el("span"); s.style.width = n * 12 + "px"; s.style.flex = "none"; return s; };

function inputMap(c, x, whole) {
  const v = x.v === undefined ? null : page.values[x.v], from = v ? (v.made >= 0 ? "from " + v.made + " " + callName(page.calls[v.made]) : v.n) : "";
  return map(v ? v.a : x.a, x.n, from, { key: `${whole}${x.n}`, value: v, entry: v ? v.n : x.n });
}

function forwardView(c) {
  const y = page.values[c.y];
  return [el("h3", {}, "what goes in"), el("div", { class: "maps" }, c.in.map(x => inputMap(c, x, "in"))),
    c.static.length ? el("p", { class: "mono soft" }, c.static.join(", ")) : null,
    el("h3", {}, "what comes out"), el("div", { class: "maps" }, map(y.a, "y", "", { key: "y", value: y, entry: y.n })),
    forwardSource(c, "the source of the forward")];
}
const forwardSource = (c, title) => el("details", {}, el("summary", {}, title), el("pre", { tabindex: 0 }, all.sources[c.forward]));

const gradient = value => value.made < 0 ? value.n + ".grad" : `the gradient of ${value.n}`;

function sumOf(value, name, more) {
  const max = Math.max(array(value.g).max, ...value.uses.map(u => array(u[2]).max)), parts = [];
  value.uses.forEach((use, k) => {
    const user = page.calls[use[0]], input = user.in.find(x => x.i === use[1]);
    if (k) parts.push(el("span", {}, "+"));
    parts.push(map(use[2], `from ${use[0]} ${user.op}`, `as ${input.n}` + (user.module ? " in " + user.module : ""),
      { max, key: `${name}use${k}`, value, entry: `the part of ${gradient(value)}`, input, part: true }));
  });
  return el("div", { class: "maps" }, parts, el("span", {}, "="), map(value.g, name, more, { max, key: name, value, entry: gradient(value) }));
}

function backwardView(c) {
  const y = page.values[c.y], out = [], several = y.uses.length > 1;
  const from = y.uses.length ? "from " + y.uses[0][0] + " " + callName(page.calls[y.uses[0][0]]) : "where backward begins";
  out.push(el("h3", {}, several ? `ȳ is the sum of ${y.uses.length} uses` : "ȳ, as it arrives"));
  out.push(several ? sumOf(y, bar("y"), "") : el("div", { class: "maps" }, map(y.g, bar("y"), from, { key: bar("y"), value: y, entry: gradient(y) })));
  if (y.hook) out.push(el("p", { class: "soft" }, "A hook replaced this cotangent; what came after the hook is shown."));
  out.push(el("h3", {}, "what the rule sends back"), el("div", { class: "maps" }, c.in.filter(x => x.g !== undefined).map(x => {
    const value = page.values[x.v];
    return x.g === y.g && array(x.g).data.length > 1 && c.in.length > 1 && x !== c.in[0]
      ? el("p", { class: "mono" }, el("b", {}, bar(x.n)), ` to ${value.n}: ȳ, unchanged`)
      : map(x.g, bar(x.n), "to " + value.n, { key: bar(x.n), value, entry: gradient(value), input: x });
  })));
  out.push(panel(c) || el("p", { class: "soft" }, "Click a number to see the chain rule on it, term by term, and to nudge it; in a large array, one that is framed or underlined."));
  for (const x of c.in.filter(x => x.g !== undefined && page.values[x.v].made < 0 && page.values[x.v].uses.length > 1)) {
    const value = page.values[x.v];
    out.push(el("h3", {}, `${value.n}.grad, use by use`), sumOf(value, value.n + ".grad", ""));
  }
  out.push(el("h3", {}, "the rule"), el("div", { class: "mono soft" }, c.ruleat), el("pre", { tabindex: 0 }, all.sources[c.rule]));
  if (c.keeps.length) out.push(forwardSource(c, `the source of the forward, which has computed ${c.keeps.join(", ")}`));
  if (c.kept.length) out.push(el("details", {}, el("summary", {}, "what it had at hand"),
    el("div", { class: "maps" }, c.kept.map(([name, i]) => map(i, name, "", { key: "kept" + name })))));
  return out;
}

/* The chain rule for entry `flat` of an input of a call, term by term. */
function chain(user, x, flat, where) {
  const t = x.t && x.t[flat], name = bar(x.n), line = (...parts) => el("p", { class: "mono" }, parts);
  if (!t) return null;
  const yShape = array(page.values[user.y].g).shape, [terms, rest, total, sent, ok] = t;
  return [line(`${name}${where} = Σ ȳ·∂y/∂${x.n}${where}`), terms.map(([place, dy, slope]) => { const at = indexText(place, yShape);
    return line(`ȳ${at}·∂y${at}/∂${x.n} = ${short(dy)} · ${short(slope)} = ${short(dy * slope)}`); }),
    rest[0] ? line(`and ${rest[0]} smaller ones, in sum ${short(rest[1])}`) : null,
    line(`= ${total}; the rule sent ${sent}: `, el("span", { class: ok ? "ok" : "bad" },
      ok || "they differ: the rule is wrong here"))];
}

/* Why the gradient of a value differs from what a nudge of it finds: something on the way from it to the result. */
function onTheWay(value) {
  const below = new Set([value]), wrong = [];
  for (const c of page.calls) {
    const through = c.in.filter(x => x.v !== undefined && below.has(page.values[x.v]));
    if (!through.length || page.values[c.y] === value) continue;
    below.add(page.values[c.y]);
    if (through.some(isWrong)) wrong.push(`${page.calls.indexOf(c)} ${c.op}`);
  }
  if ([...below].some(v => v.hook)) return "a hook replaced a gradient on the way from the result to here";
  return wrong.length ? `this gradient came through a wrong rule: that of ${wrong.join(", ")}`
    : "a rule between here and the result is wrong";
}

/* The number that is picked: its chain rule and its nudge. */
function panel(c) {
  if (!picked) return null;
  const a = array(picked.array), value = picked.value, x = picked.input, k = picked.cell;
  const known = { ...(x && x.t), ...(value && value.nudge) };
  const here = flatOf(a, k), number = exact(a.data[k], a), out = [];
  const flat = Number([here, ...Object.keys(known)].find(f => f in known && cellOf(a, Number(f)) === k) ?? here);
  const where = indexText(flat, a.shape);
  const name = x && !picked.part ? bar(x.n) : picked.entry || "";
  out.push(el("p", { class: "mono" }, `${name}${indexText(here, a.shape)} = `, el("b", { id: "number" }, number),
    a.pool ? `, the largest in size of the ${a.pool[0]}×${a.pool[1]} entries of this cell` : ""));
  const t = x && !picked.part && x.t && x.t[flat];
  if (t) out.push(chain(c, x, flat, where));
  else if (value && !x && value.uses.length > 1 && picked.array === value.g) for (const [number, place, part] of value.uses) {
    const user = page.calls[number], use = array(part);
    out.push(el("p", {}, `${value.uses[0][2] === part ? "" : "+ "}from ${number} ${callName(user)}`, use.pool ? "" : [": ", el("b", {}, exact(use.data[k], use))]),
      el("div", { class: "inner" }, chain(user, user.in.find(y => y.i === place), flat, where)));
  }
  const n = value && value.nudge && value.nudge[flat];
  if (n) out.push(el("p", {}, `Nudge ${value.n}${where} up and down, run the recorded calls again: the result moves by `,
    el("b", {}, short(n[0])), " per unit; backward says ", el("b", {}, short(n[1])), ": ",
    el("span", { class: n[2] ? "ok" : "bad" }, n[2] || `they differ by more than the rounding of ${n[3]}`),
    n[2] ? "" : `: ${onTheWay(value)}`,
    value.uses.length > 1 ? ` (the whole gradient of ${value.n}: all ${value.uses.length} uses together)` : ""));
  if (!t && !n && value && !picked.part) out.push(el("p", { class: "soft" },
    "Of a large array only the entries with the largest gradients are worked out in this file. In Python: ", el("code", {}, x
      ? `trace.terms(${c.n}, "${x.n}", ${pythonIndex(where)})` : `trace.nudge(${value.made < 0 ? `"${value.n}"` : value.made}, ${pythonIndex(where)})`)));
  return el("div", { class: "panel", id: "panel" }, out);
}
const pythonIndex = where => where ? "(" + where.slice(1, -1).replace(/,/g, ", ") + (where.includes(",") ? ")" : ",)") : "()";

const WIDE = 256;
/* A drawing of an expression of a few numbers, with the local slope on each edge. */
function graph() {
  if (page.calls.length > 12 || page.values.some(v => array(v.a).data.length > 1)) return null;
  const depth = new Map(), column = [];
  page.values.forEach((v, i) => depth.set(i, v.made < 0 ? 0 : 1 + Math.max(...page.calls[v.made].in.filter(x => x.v !== undefined).map(x => depth.get(x.v)))));
  page.values.forEach((v, i) => { if (v.made < 0) depth.set(i, Math.max(0, Math.min(...v.uses.map(u => depth.get(page.calls[u[0]].y) - 1)))); });
  page.values.forEach((v, i) => (column[depth.get(i)] = column[depth.get(i)] || []).push(i));
  const first = i => page.values[i].uses.length ? Math.min(...page.values[i].uses.map(u => u[0] * 100 + u[1])) : 0;
  column.forEach(c => c.sort((i, j) => first(i) - first(j)));
  const at = new Map(), high = Math.max(...column.map(c => c.length)) * 84;
  column.forEach((c, d) => c.forEach((i, r) => at.set(i, [10 + d * WIDE, (high - c.length * 84) / 2 + r * 84 + 8])));
  const svg = el("svg", { width: column.length * WIDE - WIDE + 150, height: high + 10, role: "img", "aria-label": "the expression as a graph" });
  page.calls.forEach((c, n) => {
    const [x1, y1] = at.get(c.y), cx = x1 - 54, cy = y1 + 31, now = n === number;
    svg.append(el("path", { d: `M${cx} ${cy}L${x1} ${cy}`, class: now ? "now" : null }));
    c.in.forEach(x => {
      if (x.v === undefined) return;
      const [x0, y0] = at.get(x.v), sx = x0 + 118, sy = y0 + 31;
      svg.append(el("path", { d: `M${sx} ${sy}C${(sx + cx) / 2} ${sy} ${(sx + cx) / 2} ${cy} ${cx} ${cy}`, class: now ? "now" : null }));
      const t = x.t && x.t[0];
      if (t) svg.append(el("text", { x: sx + 5, y: sy + (sy > cy ? 16 : -6), class: "g" }, "× " + short(t[0][0] ? t[0][0][2] : 0)));
    });
    svg.append(el("circle", { cx, cy, r: 20, class: "node" + (now ? " now" : "") }),
      el("text", { x: cx, y: cy + 4, "text-anchor": "middle" }, { multiply: "×", add: "+", subtract: MINUS, divide: "÷" }[c.op] || c.op.slice(0, 5)));
  });
  page.values.forEach((v, i) => {
    const [x, y] = at.get(i), known = v.made < 0 || backward || v.made <= number;
    const arrived = backward && (v.made < 0 ? v.uses.some(u => u[0] >= number) : v.made >= number || v.uses.some(u => u[0] >= number));
    svg.append(el("rect", { x, y, width: 118, height: 62, rx: 6, class: "node" }), el("text", { x: x + 9, y: y + 17, "font-weight": "bold" }, v.n.replace(/^the output of \d+ /, "").slice(0, 14)),
      el("text", { x: x + 9, y: y + 35, class: "v" }, known ? "value " + short(array(v.a).data[0]) : ""),
      el("text", { x: x + 9, y: y + 52, class: "g" }, arrived ? "grad " + short(array(v.g).data[0]) : ""));
  });
  return el("div", { class: "graph scroll", tabindex: 0, role: "group", "aria-label": "graph" }, svg);
}

const icon = d => el("svg", { viewBox: "0 0 18 18", "aria-hidden": "true" }, el("path", { d }));
const button = (label, d, action, off) => el("button", { "aria-label": label, title: label, disabled: off ? "" : null, onclick: action }, typeof d === "string" && d[0] === "M" ? icon(d) : d);

function head() {
  const step = place(), last = steps() - 1;
  return el("header", {}, el("h1", {}, [...above.map(([p]) => p.title), page.title].join(" › ")),
    button("first step", "M3 3h2v12H3zM15 3v12L6 9z", () => goto(0), !step), button("step back", "M13 3v12L4 9z", () => goto(step - 1), !step),
    button("next step", "M5 3v12l9-6z", () => goto(step + 1), step === last), button("last step", "M13 3h2v12h-2zM3 3v12l9-6z", () => goto(last), step === last),
    el("b", { id: "where" }, `${backward ? "backward" : "forward"} ${backward ? page.calls.length - number : number + 1} of ${page.calls.length}`),
    button("go to the other pass", ["forward ⇄ backward ", el("kbd", {}, "f")], flip),
    above.length ? button("back to the fused op", ["close ", el("kbd", {}, "Esc")], () => { picked = null; close(); }) : null,
    button("light or dark", "M9 2a7 7 0 1 0 0 14zM9 2a7 7 0 0 1 0 14v-1.5a5.5 5.5 0 0 0 0-11z", theme),
    el("span", { class: "soft keys" }, el("kbd", {}, "←"), " ", el("kbd", {}, "→"), " step"));
}
function theme() {
  const now = document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  document.documentElement.dataset.theme = now === "dark" ? "light" : "dark"; render();
}

const live = el("div", { class: "hidden", role: "status", "aria-live": "polite" });
const banner = el("div"), main = document.getElementById("main");
function render() {
  const c = call(), focus = document.activeElement && document.activeElement.getAttribute("aria-label");
  c.n = number;
  const scrolled = main.querySelector("nav") ? main.querySelector("nav").scrollTop : 0;
  const names = ["y", ...c.in.map(x => x.n), ...c.kept.map(k => k[0])];
  banner.replaceChildren(head());
  main.replaceChildren(el("div", { class: "cols" }, el("nav", { "aria-label": "op calls" }, list(), legend()),
    el("div", { class: "call" }, graph(), el("h2", {}, `${backward ? "backward through" : "forward:"} ${c.op} `,
      el("span", { class: "soft mono" }, c.module ? "in " + c.module : "")),
      el("div", { class: "mono soft" }, `${c.at} ${c.src}`), el("div", {}, c.doc), formula(c.f, names, backward),
      backward ? formula(c.adj, names) : null,
      c.open ? el("p", {}, el("button", { onclick: openFused }, `open ${c.op}: the ${c.open.calls.length} ops it equals `, el("kbd", {}, "o"))) : null,
      backward ? backwardView(c) : forwardView(c), backward ? null : panel(c))));
  const nav = main.querySelector("nav"), now = nav.querySelector("[aria-current]");
  nav.scrollTop = scrolled;
  if (now && (now.offsetTop < nav.scrollTop || now.offsetTop > nav.scrollTop + nav.clientHeight - 40)) nav.scrollTop = now.offsetTop - 80;
  const again = focus && [...document.querySelectorAll("[aria-label]")].find(n => n.getAttribute("aria-label") === focus);
  if (again) again.focus({ preventScroll: true });
  const number_ = document.getElementById("panel");
  live.textContent = number_ ? number_.innerText : `${document.getElementById("where").textContent}: ${callName(c)}`;
}

document.addEventListener("keydown", event => {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const done = { ArrowRight: () => goto(place() + 1), ArrowLeft: () => goto(place() - 1), Home: () => goto(0),
    End: () => goto(steps() - 1), n: () => goto(place() + 1), b: () => goto(place() - 1), f: flip, o: openFused, Escape: close }[event.key];
  if (done) { event.preventDefault(); done(); }
});
for (const name of ["beforeprint", "afterprint"]) addEventListener(name, render);  // on paper the colours are the light ones
document.body.prepend(banner); document.body.append(live);
render();
