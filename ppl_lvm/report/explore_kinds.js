// Panels by kind of model: decoding, mixtures, sequences, topics, global latents, factors.
const panels = h("div", {class: "panels"});
$("kinds").append(panels);
const panel = (title, ...children) => { const element = h("div", {class: "panel"}, h("h2", {}, title), ...children); panels.append(element); return element; };
const svg = (w, height, ...children) => { const s = document.createElementNS("http://www.w3.org/2000/svg", "svg"); s.setAttribute("viewBox", `0 0 ${w} ${height}`); s.setAttribute("role", "img"); s.append(...children); return s; };
function shape(tag, attributes, text = "") { const e = document.createElementNS("http://www.w3.org/2000/svg", tag); for (const [k, v] of Object.entries(attributes)) e.setAttribute(k, v); e.textContent = text; return e; }
const mean = values => values.reduce((s, v) => s + v, 0) / values.length;
function quantile(values, q) { const sorted = [...values].sort((a, b) => a - b), at = q * (sorted.length - 1), i = Math.floor(at); return sorted[i] + (at - i) * ((sorted[i + 1] ?? sorted[i]) - sorted[i]); }
// A decoded row: a picture, or the columns that differ most from the mean row.
function decodedRow(values, from = 0) {
  if (D.image) return image(values, from);
  const order = range(P).map(p => [Math.abs(values[from + p] - columnScale[p].mean) / columnScale[p].sd, p]).sort((a, b) => b[0] - a[0]).slice(0, 8);
  return h("table", {}, h("tbody", {}, order.map(([, p]) => h("tr", {}, h("td", {}, D.columns[p]), h("td", {}, show(values[from + p]))))));
}

// Decoding: a click on the plane, a slider per latent, a path between two points.
if (D.sliders.length) {
  const out = h("div", {id: "decoded"}), title = h("p", {class: "dim", id: "decoded-of"}), sliders = D.sliders.map(s => ({name: s.name, at: unpack(s.at), decoded: unpack(s.decoded)}));
  const setTo = (values, text) => { out.replaceChildren(decodedRow(values)); title.textContent = text; };
  const blend = (u, v, t) => Float32Array.from(u, (a, p) => a * (1 - t) + v[p] * t);
  const along = (s, t) => { const k = Math.min(s.at.length - 2, Math.floor(t)); return blend(s.decoded.subarray(k * P, (k + 1) * P), s.decoded.subarray((k + 1) * P, (k + 2) * P), t - k); };
  const controls = sliders.map(s => h("div", {}, h("label", {}, s.name + " ", h("input", {type: "range", "data-latent": s.name, min: 0, max: s.at.length - 1, step: 0.1, value: (s.at.length - 1) / 2,
    oninput: e => { const t = +e.target.value, k = Math.min(s.at.length - 2, Math.floor(t)); for (const other of document.querySelectorAll("[data-latent]")) if (other !== e.target) other.value = (s.at.length - 1) / 2; setTo(along(s, t), `${s.name} = ${show(s.at[k] + (t - k) * (s.at[k + 1] - s.at[k]))}, the other latents at their mean`); }}))));
  const element = panel("Decode", h("p", {class: "dim"}, "A slider moves one latent, the others stay at their mean. " + (D.plane ? `In the mode "decode" a click on the map of ${D.plane.names.join(" and ")} decodes there, and a second click draws the path between the two.` : "")), title, out, ...controls, copyButton(python("code = run.encode(rows)\nprint(run.decode({site: c[:1] for site, c in code.items()}))")));
  setTo(along(sliders[0], (sliders[0].at.length - 1) / 2), "all latents at their mean");
  if (D.plane) {
    const [at0, at1] = D.plane.at.map(unpack), grid = unpack(D.plane.decoded), G = at0.length;
    const cell = (at, v) => { const t = Math.min(G - 1.001, Math.max(0, (v - at[0]) / (at[G - 1] - at[0]) * (G - 1))); return [Math.floor(t), t - Math.floor(t)]; };
    const node = (i, j) => grid.subarray((i * G + j) * P, (i * G + j + 1) * P);
    const decodeAt = (u, v) => { const [i, s] = cell(at0, u), [j, t] = cell(at1, v); return blend(blend(node(i, j), node(i + 1, j), s), blend(node(i, j + 1), node(i + 1, j + 1), s), t); };
    let last = null;
    const path = h("div", {id: "path"});
    element.append(path);
    clickMode = (u, v) => {
      if (state.a !== D.plane.names[0] || state.b !== D.plane.names[1]) { title.textContent = `Choose ${D.plane.names.join(" and ")} as the axes of the map to decode a point.`; return; }
      setTo(decodeAt(u, v), `${state.a} = ${show(u)}, ${state.b} = ${show(v)}, the others at their mean; interpolated between ${G} × ${G} decoded points`);
      if (last) path.replaceChildren(h("h3", {}, "Path between the last two points"), ...range(7).map(k => decodedRow(decodeAt(last[0] + (u - last[0]) * k / 6, last[1] + (v - last[1]) * k / 6))));
      last = [u, v];
    };
  }
}

// Classes: sizes, what sets each apart, and the most ambiguous rows.
for (const c of classes) {
  const sizes = range(c.count).map(k => { let s = 0; for (let i = 0; i < N; i++) s += c.p[i * c.count + k]; return s; });
  const apart = range(c.count).map(k => range(P).map(p => {
    let inside = 0, rest = 0, w = 0, r = 0;
    for (let i = 0; i < N; i++) { const v = x[i * P + p], q = c.p[i * c.count + k]; if (Number.isFinite(v)) { inside += q * v; w += q; rest += (1 - q) * v; r += 1 - q; } }
    return [(inside / (w || 1) - rest / (r || 1)) / columnScale[p].sd, p];
  }).sort((a, b) => Math.abs(b[0]) - Math.abs(a[0])).slice(0, 3));
  panel(`Classes ${c.name}`, h("table", {}, h("thead", {}, h("tr", {}, ["class", "rows", "against the rest, in sd"].map(t => h("th", {scope: "col"}, t)))),
    h("tbody", {}, range(c.count).map(k => h("tr", {}, h("td", {}, h("span", {style: `color:${D.colors[k % D.colors.length]}`}, "● "), String(k)), h("td", {}, `${show(sizes[k])} (${show(100 * sizes[k] / N, 2)}%)`), h("td", {}, apart[k].map(([d, p]) => `${D.columns[p]} ${d > 0 ? "+" : ""}${show(d, 2)}`).join(", ")))))),
    h("button", {onclick: () => { state.sort = `ambiguity of ${c.name}`; state.up = false; refresh(); }}, "most ambiguous rows"), " ", copyButton(python(`print(run.encode(rows)[${JSON.stringify(c.name)}])`)));
}

// Sequences: the selected row over time, states, transitions, dwell times.
if (D.steps > 1) {
  const T = D.steps, C = P / T, S = D.states ? D.states.count : 0, p = S ? unpack(D.states.p) : null;
  const line = h("canvas", {class: "wide", id: "sequence", tabindex: 0, "aria-label": "selected sequence; drag to look at a part of the time"}), from = h("input", {type: "range", id: "from", min: 0, max: T - 1, value: 0}), to = h("input", {type: "range", id: "to", min: 0, max: T - 1, value: T - 1});
  const draw = () => {
    const ratio = devicePixelRatio || 1, w = line.clientWidth, hh = line.clientHeight, c = line.getContext("2d"), i = state.row;
    line.width = w * ratio; line.height = hh * ratio; c.scale(ratio, ratio);
    const [t0, t1] = [Math.min(+from.value, +to.value - 1), Math.max(+to.value, +from.value + 1)], px = t => 4 + (t - t0) / (t1 - t0) * (w - 8);
    if (S) for (let t = Math.max(0, t0); t <= Math.min(T - 1, t1); t++) { let at = hh; for (let s = 0; s < S; s++) { const q = p[(i * T + t) * S + s] * hh; c.fillStyle = D.colors[s % D.colors.length]; c.globalAlpha = 0.35; c.fillRect(px(t - 0.5), at - q, px(t + 0.5) - px(t - 0.5) + 0.5, q); at -= q; } }
    c.globalAlpha = 1;
    for (let k = 0; k < Math.min(C, 4); k++) {
      const values = range(T).map(t => x[i * P + t * C + k]), [low, high] = [Math.min(...values.filter(Number.isFinite)), Math.max(...values.filter(Number.isFinite))];
      c.strokeStyle = C === 1 ? css("--text") : D.colors[k % D.colors.length]; c.beginPath();
      let open = false;
      values.forEach((v, t) => { if (!Number.isFinite(v)) { open = false; return; } const y = hh - 6 - (v - low) / (high - low || 1) * (hh - 12); if (open) c.lineTo(px(t), y); else c.moveTo(px(t), y); open = true; }); c.stroke();
    }
  };
  let brush = null;
  line.addEventListener("pointerdown", e => { brush = e.offsetX; line.setPointerCapture(e.pointerId); });
  line.addEventListener("pointerup", e => { if (brush === null) return; const [t0, t1] = [+from.value, +to.value], ends = [brush, e.offsetX].map(u => Math.round(t0 + u / line.clientWidth * (t1 - t0))).sort((a, b) => a - b); brush = null; if (ends[1] - ends[0] > 1) { from.value = ends[0]; to.value = ends[1]; } draw(); });
  for (const end of [from, to]) end.addEventListener("input", draw);
  const element = panel("Sequence of the selected row", line, h("div", {class: "bar"}, h("label", {}, "from ", from), h("label", {}, "to ", to), h("button", {onclick: () => { from.value = 0; to.value = T - 1; draw(); }}, "all steps")));
  if (S) {
    const counts = range(S).map(() => new Array(S).fill(0)), dwell = range(S).map(() => []);
    for (let i = 0; i < N; i++) {
      let run = 0, before = -1;
      for (let t = 0; t < T; t++) { let s = 0; for (let k = 1; k < S; k++) if (p[(i * T + t) * S + k] > p[(i * T + t) * S + s]) s = k; if (before >= 0) counts[before][s]++; if (s === before) run++; else { if (before >= 0) dwell[before].push(run); run = 1; before = s; } }
      if (before >= 0) dwell[before].push(run);
    }
    element.append(h("h3", {}, "Changes of the likeliest state, and its stays"), h("table", {id: "transitions"}, h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "from"), range(S).map(s => h("th", {scope: "col"}, `to ${s}`)), h("th", {scope: "col"}, "median stay, steps"))),
      h("tbody", {}, counts.map((row, s) => { const total = row.reduce((a, b) => a + b, 0) || 1; return h("tr", {}, h("td", {}, h("span", {style: `color:${D.colors[s % D.colors.length]}`}, "● "), String(s)), row.map(v => h("td", {}, show(v / total, 2))), h("td", {}, dwell[s].length ? show(quantile(dwell[s], 0.5)) : "–")); }))), copyButton(python("print(run.model.marginals(run.batch(rows)[0]))")));
  }
  onSelect.push(draw); requestAnimationFrame(draw); addEventListener("resize", draw);
}

// Topics: bubbles by share, words by relevance, the selected document.
if (D.topics) {
  const words = unpack(D.topics.words), [K, V] = words.shape, shares = unpack(D.topics.shares), total = range(V).map(v => { let s = 0; for (let i = 0; i < N; i++) s += x[i * P + v]; return s + 1e-9; }), all = total.reduce((a, b) => a + b, 0);
  const share = range(K).map(k => shares ? mean(range(N).map(i => shares[i * K + k])) : 1 / K);
  // Classical scaling of the square roots of the word probabilities, whose distance is Hellinger's.
  const root = range(K).map(k => range(V).map(v => Math.sqrt(words[k * V + v]))), center = range(V).map(v => mean(root.map(r => r[v])));
  const gram = root.map(r => root.map(q => r.reduce((s, a, v) => s + (a - center[v]) * (q[v] - center[v]), 0)));
  const eigen = () => { let u = range(K).map(k => Math.sin(k + 1)); for (let n = 0; n < 200; n++) { const w = gram.map(row => row.reduce((s, g, k) => s + g * u[k], 0)), l = Math.hypot(...w) || 1; u = w.map(v => v / l); } const value = gram.map(row => row.reduce((s, g, k) => s + g * u[k], 0)).reduce((s, v, k) => s + v * u[k], 0); gram.forEach((row, i) => row.forEach((g, k) => { row[k] = g - value * u[i] * u[k]; })); return u.map(v => v * Math.sqrt(Math.max(value, 0))); };
  const [ex, ey] = [eigen(), eigen()], reach = Math.max(...ex.map(Math.abs), ...ey.map(Math.abs)) || 1;
  let topic = 0, lambda = 0.6;
  const map = svg(320, 240), list = h("ol", {id: "words"}), slider = h("input", {type: "range", id: "lambda", min: 0, max: 1, step: 0.05, value: lambda, oninput: e => { lambda = +e.target.value; draw(); }}), text = h("p", {id: "document"}), heading = h("h3");
  const draw = () => {
    map.replaceChildren(...range(K).flatMap(k => { const g = shape("circle", {cx: 160 + 110 * ex[k] / reach, cy: 120 + 80 * ey[k] / reach, r: 8 + 40 * Math.sqrt(share[k] / Math.max(...share)) / 2, fill: D.colors[k % D.colors.length], "fill-opacity": k === topic ? 0.9 : 0.45, tabindex: 0, role: "button", "aria-label": `topic ${k}`}); g.addEventListener("click", () => { topic = k; draw(); }); g.addEventListener("keydown", e => { if (e.key === "Enter") { topic = k; draw(); } }); return [g, shape("text", {x: 160 + 110 * ex[k] / reach, y: 124 + 80 * ey[k] / reach, "text-anchor": "middle", "pointer-events": "none"}, String(k))]; }));
    heading.textContent = `Topic ${topic}: ${show(100 * share[topic])}% of the documents`;
    const relevance = range(V).map(v => { const q = Math.max(words[topic * V + v], 1e-12); return [lambda * Math.log(q) + (1 - lambda) * Math.log(q / (total[v] / all)), v]; }).sort((a, b) => b[0] - a[0]).slice(0, 12);
    list.replaceChildren(...relevance.map(([, v]) => h("li", {}, `${D.columns[v]} ${show(words[topic * V + v], 2)}`)));
    const i = state.row;
    text.replaceChildren(...range(V).filter(v => x[i * P + v] > 0).sort((a, b) => x[i * P + b] - x[i * P + a]).slice(0, 60).map(v => { let best = 0, most = -1; for (let k = 0; k < K; k++) { const q = words[k * V + v] * (shares ? shares[i * K + k] : share[k]); if (q > most) { most = q; best = k; } } return h("span", {style: `color:${D.colors[best % D.colors.length]}`, title: `topic ${best}`}, `${D.columns[v]}×${x[i * P + v]} `); }));
  };
  panel("Topics", map, heading, h("label", {}, "relevance λ (1: probable words, 0: words of this topic alone) ", slider), list, h("h3", {}, "Words of the selected row, by topic"), text, copyButton(python("from ppl_lvm.posterior.topics import topic_table\n# topics: (K, V), the word probabilities of the model\n")));
  onSelect.push(draw); draw();
}

// Global latents: forest, pairs, P(a > b).
if (D.globals && D.globals.length) {
  const g = D.globals.map(v => ({name: v.name, draws: unpack(v.draws), prior: unpack(v.prior)})), all = g.flatMap(v => [quantile(v.draws, 0.05), quantile(v.draws, 0.95)]), low = Math.min(...all, 0), high = Math.max(...all, 0), px = v => 130 + (Math.min(high, Math.max(low, v)) - low) / (high - low || 1) * 260;
  const forest = svg(400, 24 + 18 * g.length, shape("line", {x1: px(0), x2: px(0), y1: 0, y2: 18 * g.length, class: "grid"}), ...g.flatMap((v, k) => { const y = 12 + 18 * k, q = [0.05, 0.25, 0.5, 0.75, 0.95].map(t => px(quantile(v.draws, t))); return [shape("text", {x: 124, y: y + 4, "text-anchor": "end"}, v.name), ...(v.prior ? [shape("line", {x1: px(quantile(v.prior, 0.05)), x2: px(quantile(v.prior, 0.95)), y1: y + 5, y2: y + 5, stroke: "#8C8C8C", "stroke-dasharray": "3 3"})] : []), shape("line", {x1: q[0], x2: q[4], y1: y, y2: y, stroke: D.colors[0], "stroke-width": 1.5}), shape("line", {x1: q[1], x2: q[3], y1: y, y2: y, stroke: D.colors[0], "stroke-width": 4}), shape("circle", {cx: q[2], cy: y, r: 3.5, fill: D.colors[4]})]; }),
    shape("text", {x: 130, y: 20 + 18 * g.length}, show(low)), shape("text", {x: 390, y: 20 + 18 * g.length, "text-anchor": "end"}, show(high)));
  const pick = [0, Math.min(1, g.length - 1)], out = h("p", {id: "greater"}), plot = svg(240, 200), code = h("span");
  const draw = () => {
    const [a, b] = pick.map(k => g[k]), n = a.draws.length, both = [a, b].map(v => [quantile(v.draws, 0.005), quantile(v.draws, 0.995)]), at = (v, [l, u], s) => 10 + (v - l) / (u - l || 1) * s;
    out.textContent = `P(${a.name} > ${b.name}) = ${show(mean(range(n).map(k => a.draws[k] > b.draws[k] ? 1 : 0)))}, by ${n} draws`;
    plot.replaceChildren(...range(n).map(k => shape("circle", {cx: at(a.draws[k], both[0], 220), cy: 190 - at(b.draws[k], both[1], 170), r: 2, fill: D.colors[0], "fill-opacity": 0.6})), shape("text", {x: 120, y: 198, "text-anchor": "middle"}, a.name), shape("text", {x: 2, y: 10}, b.name));
  };
  const menu = k => h("select", {id: `global-${k}`, "aria-label": "global latent", onchange: e => { pick[k] = +e.target.value; draw(); }}, g.map((v, i) => h("option", {value: i, selected: i === pick[k]}, v.name)));
  panel("Global latents", h("p", {class: "dim"}, "Median, 50% and 90% of the posterior" + (g.some(v => v.prior) ? "; dashed: 90% of the prior, cut at the frame" : "")), forest);
  panel("Pairs", menu(0), " ", menu(1), plot, out, copyButton(python("draws = run.posterior(1000)\nprint({name: d.shape for name, d in draws.items()})")), code);
  draw();
}

// Factors: what one sd of each latent does to each column.
if (D.effects && !D.image && P <= 60) {
  const names = D.effects.names.slice(0, 20), raw = unpack(D.effects.x), L = range(P).map(p => names.map((_, d) => raw[d * P + p] / columnScale[p].sd));
  const table = h("table", {id: "loadings"});
  const varimax = A => {
    const B = A.map(r => r.slice()), K = names.length;
    for (let sweep = 0; sweep < 50; sweep++) for (let i = 0; i < K; i++) for (let j = i + 1; j < K; j++) {
      let u = 0, v = 0, c = 0, d = 0;
      for (const r of B) { const s = r[i] ** 2 - r[j] ** 2, t = 2 * r[i] * r[j]; u += s; v += t; c += s * s - t * t; d += 2 * s * t; }
      const angle = Math.atan2(d - 2 * u * v / P, c - (u * u - v * v) / P) / 4, [cos, sin] = [Math.cos(angle), Math.sin(angle)];
      for (const r of B) [r[i], r[j]] = [cos * r[i] + sin * r[j], cos * r[j] - sin * r[i]];
    }
    return B;
  };
  const draw = rotated => {
    const A = rotated ? varimax(L) : L, most = Math.max(...A.flat().map(Math.abs)) || 1;
    table.replaceChildren(h("thead", {}, h("tr", {}, h("th", {scope: "col"}, "column"), names.map((n, d) => h("th", {scope: "col"}, rotated ? `factor ${d}` : n)))),
      h("tbody", {}, A.map((row, p) => h("tr", {}, h("td", {}, D.columns[p]), row.map(v => h("td", {style: `background:color-mix(in srgb, ${v > 0 ? "#2395f8" : "#d01875"} ${Math.round(60 * Math.abs(v) / most)}%, transparent)`}, show(v, 2)))))));
  };
  panel(D.effects.linear ? "Loadings: sd of a column per sd of a latent" : "Effect of one sd of a latent at the mean code, in sd of a column", D.effects.linear ? h("label", {}, h("input", {type: "checkbox", id: "rotate", onchange: e => draw(e.target.checked)}), " rotate (varimax)") : "", table);
  draw(false);
}
if (!panels.children.length) $("kinds").hidden = true;
