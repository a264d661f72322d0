"use strict";
// Map, selected row and table of a run. State is in the address, after "#".
const D = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);

function unpack(field) {
  if (!field) return null;
  const bytes = Uint8Array.from(atob(field.values), c => c.charCodeAt(0));
  return Object.assign(new Float32Array(bytes.buffer), {shape: field.shape});
}
function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter(c => c !== null && c !== undefined));
  return element;
}
const show = (v, digits = 3) => Number.isFinite(v) ? String(+v.toPrecision(digits)) : v === -Infinity ? "exact" : "–";
const range = n => Array.from({length: n}, (_, i) => i);
function spread(values) {
  let n = 0, mean = 0, square = 0;
  for (const v of values) if (Number.isFinite(v)) { n++; const d = v - mean; mean += d / n; square += d * (v - mean); }
  return {mean, sd: n > 1 ? Math.sqrt(square / n) || 1 : 1};
}

// Fields of a row: columns, latents, log p(x), k̂, classes.
const N = D.ids.length, x = unpack(D.x), P = x.shape[1], back = unpack(D.back);
const logP = unpack(D.log_p), kHat = unpack(D.k), axes = unpack(D.axes);
const latents = D.latents.map(l => ({name: l.name, mean: unpack(l.mean), sd: unpack(l.sd)}));
const classes = Object.entries(D.classes).map(([name, c]) => ({name, count: c.count, p: unpack(c.p)}));
const trusted = i => !kHat || !(kHat[i] > 0.7);
const fields = new Map();
const number = (name, get, kind = "") => fields.set(name, {name, get, kind});
for (const l of latents) number(l.name, i => l.mean[i], "latent");
if (axes) for (const a of [0, 1]) number(`principal axis ${a + 1}`, i => axes[2 * i + a], "latent");
if (logP) number("log p(x)", i => logP[i]);
if (kHat) number("k̂", i => kHat[i]);
for (const l of latents) number(`sd of ${l.name}`, i => l.sd[i], "sd");
for (const c of classes) {
  const likely = i => { let best = 0; for (let k = 1; k < c.count; k++) if (c.p[i * c.count + k] > c.p[i * c.count + best]) best = k; return best; };
  c.likely = range(N).map(likely);
  fields.set(c.name, {name: c.name, kind: "class", names: range(c.count).map(String), get: i => c.likely[i]});
  number(`ambiguity of ${c.name}`, i => 1 - c.p[i * c.count + c.likely[i]]);
  for (let k = 0; k < c.count; k++) number(`P(${c.name} = ${k})`, i => c.p[i * c.count + k]);
}
D.columns.forEach((name, p) => number(fields.has(name) ? `x: ${name}` : name, i => x[i * P + p], "column"));
if (D.labels) {
  const names = [...new Set(D.labels)].sort(), index = new Map(names.map((n, k) => [n, k]));
  fields.set("label", {name: "label", kind: "class", names, get: i => index.get(D.labels[i])});
}
const numeric = [...fields.values()].filter(f => f.kind !== "class");
const firstTwo = () => {
  if (latents.length > 1) {
    const order = latents.map(l => [spread(l.mean).sd, l.name]).sort((a, b) => b[0] - a[0]);
    return [order[0][1], order[1][1]].sort((a, b) => latents.findIndex(l => l.name === a) - latents.findIndex(l => l.name === b));
  }
  const names = numeric.map(f => f.name), columns = numeric.filter(f => f.kind === "column").map(f => f.name);
  return latents.length ? [latents[0].name, logP ? "log p(x)" : columns[0]] : columns.length > 1 ? columns : [names[0], names[0]];
};

// State
const [a0, b0] = firstTwo();
const state = {a: a0, b: b0, color: D.labels ? "label" : classes.length ? classes[0].name : logP ? "log p(x)" : "", row: 0, q: "", sort: logP ? "log p(x)" : "", up: true, mode: "pan"};
let lasso = new Set(), view = null;
function readAddress() {
  for (const [key, value] of new URLSearchParams(location.hash.slice(1))) {
    if (key === "row") { const i = D.ids.indexOf(+value); if (i >= 0) state.row = i; }
    else if (["a", "b"].includes(key)) { if (fields.has(value) && fields.get(value).kind !== "class") state[key] = value; }
    else if (["color", "sort"].includes(key)) { if (!value || fields.has(value)) state[key] = value; }
    else if (key === "q") state.q = value;
  }
}
function writeAddress() {
  const {a, b, color, q, sort} = state;
  history.replaceState(null, "", "#" + new URLSearchParams({a, b, color, sort, q, row: D.ids[state.row]}));
}

// Map
const canvas = $("canvas"), css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const mix = (c, d, t) => "#" + [1, 3, 5].map(i => Math.round(parseInt(c.slice(i, i + 2), 16) * (1 - t) + parseInt(d.slice(i, i + 2), 16) * t).toString(16).padStart(2, "0")).join("");
const scale = t => t < 0.5 ? mix("#2395F8", "#8492AA", 2 * t) : mix("#8492AA", "#D01875", 2 * t - 1);
const extent = get => { const v = range(N).map(get).filter(Number.isFinite).sort((p, q) => p - q); return v.length ? [v[0], v[v.length - 1]] : [0, 1]; };
let clickMode = null; // a kind's own use of a click on the map: (x, y) => …
function painter() {
  const field = fields.get(state.color);
  if (!field) return {color: () => D.colors[0], text: ""};
  if (field.kind === "class") return {color: i => D.colors[field.get(i) % D.colors.length], glyph: i => Math.floor(field.get(i) / D.colors.length), text: field.names.slice(0, 30).map((n, k) => [n, D.colors[k % D.colors.length]])};
  const [low, high] = extent(field.get), get = field.get;
  return {color: i => field.kind === "sd" && !trusted(i) ? css("--untrusted") : Number.isFinite(get(i)) ? scale((get(i) - low) / (high - low || 1)) : css("--untrusted"), text: [[show(low), scale(0)], [show((low + high) / 2), scale(0.5)], [show(high), scale(1)]]};
}
const pad = 34;
function place() {
  const w = canvas.clientWidth, hh = canvas.clientHeight;
  return {w, hh, px: v => pad + (v - view[0]) / (view[1] - view[0]) * (w - pad - 8), py: v => hh - pad - (v - view[2]) / (view[3] - view[2]) * (hh - pad - 8),
    ix: p => view[0] + (p - pad) / (w - pad - 8) * (view[1] - view[0]), iy: p => view[2] + (hh - pad - p) / (hh - pad - 8) * (view[3] - view[2])};
}
function resetView() {
  const [a, b] = [extent(fields.get(state.a).get), extent(fields.get(state.b).get)];
  view = [a, b].flatMap(([l, u]) => { const m = 0.05 * (u - l || 1); return [l - m, u + m]; });
}
function drawMap() {
  const ratio = devicePixelRatio || 1, c = canvas.getContext("2d"), {w, hh, px, py} = place();
  canvas.width = w * ratio; canvas.height = hh * ratio; c.scale(ratio, ratio);
  c.fillStyle = css("--page"); c.fillRect(0, 0, w, hh);
  c.fillStyle = css("--dim"); c.font = "11px system-ui";
  for (const t of [0, 0.5, 1]) {
    const u = view[0] + t * (view[1] - view[0]), v = view[2] + t * (view[3] - view[2]);
    c.textAlign = t === 0 ? "left" : t === 1 ? "right" : "center"; c.fillText(show(u), px(u), hh - 18);
    c.textAlign = "left"; c.fillText(show(v), 2, Math.max(10, py(v)));
  }
  c.textAlign = "center"; c.fillText(state.a, w / 2, hh - 4); c.textAlign = "left"; c.fillText(state.b, pad + 4, 12);
  if ($("prior") && $("prior").checked) {
    c.strokeStyle = css("--dim");
    for (const r of [1, 2]) { c.beginPath(); c.ellipse(px(0), py(0), Math.abs(px(r) - px(0)), Math.abs(py(r) - py(0)), 0, 0, 7); c.stroke(); }
  }
  const paint = painter(), ga = fields.get(state.a).get, gb = fields.get(state.b).get;
  for (let i = 0; i < N; i++) {
    const u = px(ga(i)), v = py(gb(i));
    if (!(u >= pad - 4 && u <= w && v >= 0 && v <= hh - pad + 4)) continue;
    c.globalAlpha = lasso.size && !lasso.has(i) ? 0.15 : 0.85; c.fillStyle = paint.color(i);
    const g = paint.glyph ? paint.glyph(i) : 0;
    c.beginPath();
    if (g === 0) c.arc(u, v, 3, 0, 7); else if (g === 1) c.rect(u - 3, v - 3, 6, 6); else { c.moveTo(u, v - 4); c.lineTo(u + 4, v + 3); c.lineTo(u - 4, v + 3); }
    c.fill();
  }
  c.globalAlpha = 1; c.strokeStyle = css("--mark"); c.lineWidth = 2; c.beginPath();
  c.arc(px(ga(state.row)), py(gb(state.row)), 7, 0, 7); c.stroke(); c.lineWidth = 1;
  if (drag && drag.path) { c.beginPath(); drag.path.forEach(([u, v]) => c.lineTo(u, v)); c.stroke(); }
  $("legend").replaceChildren(...(paint.text || []).map(([name, color]) => h("span", {}, h("span", {style: `color:${color}`}, "● "), name + "  ")));
}
let drag = null;
function nearest(u, v, accept = () => true) {
  const {px, py} = place(), ga = fields.get(state.a).get, gb = fields.get(state.b).get;
  let best = -1, least = Infinity;
  for (let i = 0; i < N; i++) { const d = (px(ga(i)) - u) ** 2 + (py(gb(i)) - v) ** 2; if (d < least && accept(i)) { least = d; best = i; } }
  return best;
}
canvas.addEventListener("pointerdown", e => { canvas.setPointerCapture(e.pointerId); drag = {u: e.offsetX, v: e.offsetY, from: view.slice(), moved: false, path: state.mode === "lasso" ? [[e.offsetX, e.offsetY]] : null}; });
canvas.addEventListener("pointermove", e => {
  if (!drag) return;
  if (Math.hypot(e.offsetX - drag.u, e.offsetY - drag.v) > 4) drag.moved = true;
  if (drag.path) drag.path.push([e.offsetX, e.offsetY]);
  else if (drag.moved) {
    const {w, hh} = place(), du = (e.offsetX - drag.u) / (w - pad - 8) * (drag.from[1] - drag.from[0]), dv = (e.offsetY - drag.v) / (hh - pad - 8) * (drag.from[3] - drag.from[2]);
    view = [drag.from[0] - du, drag.from[1] - du, drag.from[2] + dv, drag.from[3] + dv];
  }
  drawMap();
});
canvas.addEventListener("pointerup", e => {
  const done = drag; drag = null;
  if (!done) return;
  if (!done.moved) {
    const {ix, iy} = place();
    if (clickMode && state.mode === "decode") clickMode(ix(e.offsetX), iy(e.offsetY)); else select(nearest(e.offsetX, e.offsetY));
  } else if (done.path) {
    const {px, py} = place(), ga = fields.get(state.a).get, gb = fields.get(state.b).get;
    lasso = new Set(range(N).filter(i => inside(px(ga(i)), py(gb(i)), done.path))); refresh();
  }
  drawMap();
});
function inside(u, v, path) {
  let odd = false;
  for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
    const [ui, vi] = path[i], [uj, vj] = path[j];
    if ((vi > v) !== (vj > v) && u < (uj - ui) * (v - vi) / (vj - vi) + ui) odd = !odd;
  }
  return odd;
}
function zoom(factor, u = 0.5, v = 0.5) {
  const [l, r, b, t] = view, cu = l + u * (r - l), cv = b + v * (t - b);
  view = [cu + (l - cu) * factor, cu + (r - cu) * factor, cv + (b - cv) * factor, cv + (t - cv) * factor]; drawMap();
}
canvas.addEventListener("wheel", e => { e.preventDefault(); zoom(e.deltaY > 0 ? 1.15 : 0.87, e.offsetX / canvas.clientWidth, 1 - e.offsetY / canvas.clientHeight); }, {passive: false});
canvas.addEventListener("keydown", e => {
  const move = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1]}[e.key];
  if (move) { const du = move[0] * (view[1] - view[0]) / 10, dv = move[1] * (view[3] - view[2]) / 10; view = [view[0] + du, view[1] + du, view[2] + dv, view[3] + dv]; drawMap(); }
  else if (e.key === "+" || e.key === "=") zoom(0.8);
  else if (e.key === "-") zoom(1.25);
  else if (e.key === "0") { resetView(); drawMap(); }
  else if (e.key === "n" || e.key === "p") step(e.key === "n" ? 1 : -1);
  else if (e.key === "Enter") select(nearest(canvas.clientWidth / 2, canvas.clientHeight / 2));
  else if (e.key === "Escape") { lasso = new Set(); refresh(); }
  else return;
  e.preventDefault();
});

// Selected row
function image(values, from, small) {
  const [H, W] = D.image, c = h("canvas", {class: small ? "px small" : "px", width: W, height: H, role: "img", "aria-label": "picture of a row"});
  const all = x.subarray(0, Math.min(x.length, 64 * P)); let low = Infinity, high = -Infinity;
  for (const v of all) { if (v < low) low = v; if (v > high) high = v; }
  const context = c.getContext("2d"), pixels = context.createImageData(W, H);
  for (let p = 0; p < H * W; p++) { const g = 255 - 255 * Math.min(1, Math.max(0, (values[from + p] - low) / (high - low || 1))); pixels.data.set([g, g, g, 255], 4 * p); }
  context.putImageData(pixels, 0, 0);
  return c;
}
const columnScale = range(P).map(p => spread(range(Math.min(N, 2000)).map(i => x[i * P + p])));
const latentScale = latents.map(l => spread(l.mean));
function neighbors(distance, count = 6) {
  return range(N).filter(i => i !== state.row).map(i => [distance(i), i]).sort((p, q) => p[0] - q[0]).slice(0, count).map(p => p[1]);
}
const chips = rows => h("div", {class: "chips"}, rows.map(i => h("button", {onclick: () => select(i)}, D.image ? image(x, i * P, true) : "", `${D.ids[i]}${D.labels ? " " + D.labels[i] : ""}`)));
function copyButton(code) {
  const button = h("button", {title: code, "data-code": code, onclick: async () => { try { await navigator.clipboard.writeText(code); button.textContent = "copied"; } catch { prompt("Python", code); } }}, "Copy Python");
  return button;
}
const python = line => `from ppl_lvm import load_run\n\nrun = ${D.load}\nrows = run.data()[0]\n${line}\n`;
function drawDetail() {
  const i = state.row, parts = [];
  parts.push(h("h2", {}, `Row ${D.ids[i]}`, D.labels ? ` (${D.labels[i]})` : ""));
  const facts = [];
  if (logP) facts.push(`log p(x) ${show(logP[i], 4)} nats`);
  if (kHat) facts.push(`k̂ ${show(kHat[i])}${trusted(i) ? "" : ": its posterior is not to be trusted"}`);
  for (const c of classes) facts.push(`${c.name} = ${c.likely[i]} with ${show(100 * c.p[i * c.count + c.likely[i]])}%`);
  parts.push(h("p", {class: trusted(i) ? "" : "untrusted"}, facts.join(", ")));
  if (D.image) parts.push(h("div", {}, image(x, i * P), back ? image(back, i * P) : null, h("div", {class: "dim"}, back ? "data, and the mean of the model at its code" : "data")));
  else if (P <= 60) parts.push(h("table", {}, h("thead", {}, h("tr", {}, ["column", "data", back ? "model" : null, back ? "difference, sd" : null].filter(Boolean).map(t => h("th", {scope: "col"}, t)))),
    h("tbody", {}, range(P).map(p => h("tr", {}, h("td", {}, D.columns[p]), h("td", {}, show(x[i * P + p], 4)), back ? h("td", {}, show(back[i * P + p], 4)) : null, back ? h("td", {}, show((x[i * P + p] - back[i * P + p]) / columnScale[p].sd, 2)) : null)))));
  if (latents.length) {
    parts.push(h("h3", {}, "Latents, mean ± sd"), h("table", {class: trusted(i) ? "" : "untrusted"}, h("tbody", {}, latents.slice(0, 40).map((l, d) => h("tr", {}, h("td", {}, l.name), h("td", {}, `${show(l.mean[i])} ± ${show(l.sd[i], 2)}`), h("td", {}, h("meter", {min: -3, max: 3, value: (l.mean[i] - latentScale[d].mean) / latentScale[d].sd}, "")))))));
    parts.push(h("h3", {}, "Neighbors in codes"), chips(neighbors(j => latents.reduce((s, l, d) => s + ((l.mean[i] - l.mean[j]) / latentScale[d].sd) ** 2, 0))));
  }
  parts.push(h("h3", {}, "Neighbors in data"), chips(neighbors(j => { let s = 0; for (let p = 0; p < P; p++) { const d = (x[i * P + p] - x[j * P + p]) / columnScale[p].sd; if (Number.isFinite(d)) s += d * d; } return s; })));
  parts.push(copyButton(python(`codes = run.encode(rows)  # row ${D.ids[i]} is codes[site][${D.ids[i]}]\nprint({site: code[${D.ids[i]}] for site, code in codes.items()})`)));
  $("detail").replaceChildren(...parts);
  for (const listener of onSelect) listener(i);
}
const onSelect = [];
function select(i) { if (i < 0) return; state.row = i; drawDetail(); drawMap(); markRow(); writeAddress(); }
function step(by) { const at = order.indexOf(state.row); if (order.length) select(order[(at + by + order.length) % order.length]); }

// Table
let order = [];
function matches() {
  const tests = state.q.trim().split(/\s*&\s*/).filter(Boolean).map(term => {
    const parts = term.match(/^(.+?)\s*(<=|>=|=|<|>)\s*(.+)$/);
    const field = parts && (fields.get(parts[1]) || [...fields.values()].find(f => f.name.toLowerCase().startsWith(parts[1].toLowerCase())));
    if (field) {
      const value = parts[3], v = +value;
      if (field.kind === "class" && parts[2] === "=") return i => String(field.names[field.get(i)]).toLowerCase() === value.toLowerCase();
      return {"<": i => field.get(i) < v, ">": i => field.get(i) > v, "=": i => Math.abs(field.get(i) - v) < 1e-9 * (1 + Math.abs(v)), "<=": i => field.get(i) <= v, ">=": i => field.get(i) >= v}[parts[2]];
    }
    const text = term.toLowerCase();
    return i => String(D.ids[i]) === text || (D.labels && D.labels[i].toLowerCase().includes(text));
  });
  return i => tests.every(t => t(i)) && (!lasso.size || lasso.has(i));
}
const shownColumns = () => [...new Set([state.a, state.b, ...["log p(x)", "k̂"].filter(n => fields.has(n)), ...numeric.filter(f => f.kind === "column").slice(0, D.image ? 0 : 8).map(f => f.name)])];
const SHOWN = 200;
function refresh() {
  order = range(N).filter(matches());
  const field = fields.get(state.sort);
  if (field) order.sort((i, j) => { const u = field.get(i), v = field.get(j); return (state.up ? 1 : -1) * ((Number.isNaN(u) ? Infinity : u) - (Number.isNaN(v) ? Infinity : v)) || i - j; });
  const names = shownColumns();
  const head = name => h("th", {scope: "col", "aria-sort": state.sort === name ? (state.up ? "ascending" : "descending") : "none"}, h("button", {onclick: () => { state.up = state.sort === name ? !state.up : true; state.sort = name; refresh(); }}, name));
  document.querySelector("#table thead").replaceChildren(h("tr", {}, h("th", {scope: "col"}, "row"), D.labels ? h("th", {scope: "col"}, "label") : null, names.map(head)));
  document.querySelector("#table tbody").replaceChildren(...order.slice(0, SHOWN).map(i => h("tr", {tabindex: 0, "data-row": i, onclick: () => select(i), onkeydown: e => { if (e.key === "Enter") select(i); const next = {ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling"}[e.key]; if (next && e.currentTarget[next]) { e.preventDefault(); e.currentTarget[next].focus(); select(+e.currentTarget[next].dataset.row); } }},
    h("td", {}, String(D.ids[i])), D.labels ? h("td", {}, D.labels[i]) : null, names.map(n => h("td", {class: n.startsWith("sd of") && !trusted(i) ? "untrusted" : null}, show(fields.get(n).get(i), 4))))));
  $("count").textContent = `${order.length} of ${N} rows` + (order.length > SHOWN ? `, the first ${SHOWN} shown` : "");
  markRow(); drawMap(); writeAddress();
}
function markRow() { for (const tr of document.querySelectorAll("#table tbody tr")) tr.setAttribute("aria-selected", +tr.dataset.row === state.row); }
function download(name, text) { h("a", {download: name, href: "data:text/csv;charset=utf-8," + encodeURIComponent(text)}).click(); }

// Controls
function choice(text, id, names, change) {
  return h("label", {}, text + " ", h("select", {id, onchange: e => { change(e.target.value); refresh(); drawDetail(); }}, names.map(n => h("option", {value: n, selected: state[id] === n}, n || "none"))));
}
function start() {
  readAddress();
  $("note").textContent = `${N.toLocaleString("en")} of ${D.total.toLocaleString("en")} rows` + (N < D.total ? ", evenly spaced" : "");
  const names = numeric.map(f => f.name), mode = name => h("button", {id: `mode-${name}`, "aria-pressed": state.mode === name, onclick: () => { state.mode = name; for (const b of document.querySelectorAll("[id^=mode-]")) b.setAttribute("aria-pressed", b.id === `mode-${name}`); }}, name);
  $("map-bar").append(choice("across", "a", names, v => { state.a = v; resetView(); }), choice("up", "b", names, v => { state.b = v; resetView(); }),
    choice("color", "color", ["", ...fields.keys()], v => { state.color = v; }), mode("pan"), mode("lasso"), D.plane ? mode("decode") : "",
    h("button", {onclick: () => { lasso = new Set(); resetView(); refresh(); }}, "reset"), D.standard ? h("label", {}, h("input", {type: "checkbox", id: "prior", onchange: drawMap}), " prior (1 and 2 sd)") : "", copyButton(python("codes = run.encode(rows)")));
  $("rows-bar").append(h("label", {}, "search ", h("input", {id: "search", type: "search", size: 28, placeholder: "column > 3 & label = a", value: state.q, oninput: e => { state.q = e.target.value; refresh(); }})),
    logP ? h("button", {id: "worst", onclick: () => { state.sort = "log p(x)"; state.up = true; refresh(); select(order[0]); }}, "worst explained") : "",
    h("button", {id: "export", onclick: () => download("rows.csv", "row\n" + order.map(i => D.ids[i]).join("\n") + "\n")}, "export ids"), h("span", {id: "count", class: "dim"}));
  resetView(); refresh(); drawDetail();
  addEventListener("resize", drawMap);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawMap);
  addEventListener("hashchange", () => { readAddress(); for (const id of ["a", "b", "color"]) $(id).value = state[id]; $("search").value = state.q; resetView(); refresh(); drawDetail(); });
}
start();
