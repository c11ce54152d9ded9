// Plotly figures, drawn as SVG: lines, markers, bars, histograms, heat maps (confusion matrices) and tables.
// What is not known is said, and offered as JSON.
const NS = "http://www.w3.org/2000/svg";
const COLORS = ["#2f7d6b", "#d1603d", "#3f6fc4", "#a3456f", "#8a7a1f", "#5b4fb0"];
const W = 640, H = 420, LEFT = 70, RIGHT = 16, TOP = 14, BOTTOM = 46;

function svg(tag, attributes, text) {
  const made = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

const shown = (value) => (typeof value === "number" ? String(Number(value.toPrecision(4))) : String(value));
const titleOf = (axis) => (typeof axis?.title === "object" ? axis.title?.text : axis?.title) ?? "";

/** plotly's typed arrays: {dtype, bdata (base64), shape}. */
function list(value) {
  if (Array.isArray(value)) return value;
  if (!value || typeof value.bdata !== "string") return [];
  const types = { f8: Float64Array, f4: Float32Array, i1: Int8Array, u1: Uint8Array, i2: Int16Array, u2: Uint16Array, i4: Int32Array, u4: Uint32Array };
  const bytes = Uint8Array.from(atob(value.bdata), (c) => c.charCodeAt(0));
  const flat = types[value.dtype] ? [...new types[value.dtype](bytes.buffer)] : [];
  const shape = String(value.shape ?? "").split(",").map(Number);
  if (shape.length !== 2 || !shape[1]) return flat;
  return Array.from({ length: shape[0] }, (_, row) => flat.slice(row * shape[1], (row + 1) * shape[1]));
}

function heatmap(trace, layout) {
  const z = list(trace.z).map(list);
  const rows = z.length, cols = z[0]?.length ?? 0;
  const xs = list(trace.x).length ? list(trace.x) : [...Array(cols).keys()];
  const ys = list(trace.y).length ? list(trace.y) : [...Array(rows).keys()];
  const flat = z.flat().filter(Number.isFinite);
  const low = Math.min(...flat), high = Math.max(...flat);
  const cell = Math.min((W - LEFT - RIGHT) / cols, (520 - TOP - BOTTOM) / rows);
  const height = TOP + BOTTOM + cell * rows;
  const picture = svg("svg", { viewBox: `0 0 ${W} ${height}`, role: "img" });
  const down = layout.yaxis?.autorange === "reversed";
  z.forEach((line, i) => line.forEach((value, j) => {
    const share = high > low ? (value - low) / (high - low) : 0;
    const y = TOP + (down ? i : rows - 1 - i) * cell, x = LEFT + j * cell;
    const box = svg("rect", { x, y, width: cell - 1, height: cell - 1, rx: 2, fill: `hsl(166 45% ${94 - 62 * share}%)` });
    box.append(svg("title", {}, `${ys[i]} / ${xs[j]}: ${shown(value)}`));
    picture.append(box);
    if (cell > 22) {
      const label = svg("text", { x: x + cell / 2, y: y + cell / 2 + 4, "text-anchor": "middle" }, shown(value));
      label.style.fill = share > 0.5 ? "#fff" : "#1c2328";
      picture.append(label);
    }
  }));
  const every = (count) => Math.ceil(count / 24);
  xs.forEach((name, j) => j % every(cols) || picture.append(svg("text", { x: LEFT + (j + 0.5) * cell, y: TOP + rows * cell + 16, "text-anchor": "middle" }, shown(name))));
  ys.forEach((name, i) => i % every(rows) || picture.append(svg("text", { x: LEFT - 8, y: TOP + ((down ? i : rows - 1 - i) + 0.5) * cell + 4, "text-anchor": "end" }, shown(name))));
  picture.append(svg("text", { x: LEFT + (cols * cell) / 2, y: height - 8, "text-anchor": "middle", class: "soft" }, titleOf(layout.xaxis)));
  picture.append(svg("text", { x: 14, y: TOP + (rows * cell) / 2, "text-anchor": "middle", class: "soft", transform: `rotate(-90 14 ${TOP + (rows * cell) / 2})` }, titleOf(layout.yaxis)));
  return picture;
}

function ticks(low, high) {
  const step = 10 ** Math.floor(Math.log10((high - low) / 5 || 1));
  const width = [1, 2, 5, 10].map((m) => m * step).find((s) => (high - low) / s <= 6) ?? step;
  const found = [];
  // Counted: beside a large number a small step is lost, and `at` would stay where it is.
  for (let at = Math.ceil(low / width) * width; at <= high + 1e-9 * width && found.length < 20; at += width) found.push(at);
  return found;
}

function cartesian(traces, layout) {
  const names = [...new Set(traces.flatMap((t) => list(t.x)).filter((x) => typeof x === "string"))];
  const place = (x) => (typeof x === "string" ? names.indexOf(x) : x);
  const series = traces.map((t) => {
    const y = list(t.y);
    return { t, y, x: (list(t.x).length ? list(t.x) : y.map((_, i) => i)).map(place) };
  });
  const bars = traces.some((t) => t.type === "bar");
  const allX = series.flatMap((s) => s.x).filter(Number.isFinite), allY = series.flatMap((s) => s.y).filter(Number.isFinite);
  if (!allX.length || !allY.length) return null;
  let [x0, x1, y0, y1] = [Math.min(...allX), Math.max(...allX), Math.min(...allY), Math.max(...allY)];
  if (bars) { x0 -= 0.6; x1 += 0.6; y0 = Math.min(0, y0); y1 = Math.max(0, y1); }
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
  if (y0 === y1) { y0 -= 0.5; y1 += 0.5; }
  const X = (x) => LEFT + ((x - x0) / (x1 - x0)) * (W - LEFT - RIGHT), Y = (y) => H - BOTTOM - ((y - y0) / (y1 - y0)) * (H - TOP - BOTTOM);
  const picture = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img" });
  for (const at of ticks(y0, y1)) {
    picture.append(svg("line", { x1: LEFT, x2: W - RIGHT, y1: Y(at), y2: Y(at), class: "axis" }), svg("text", { x: LEFT - 8, y: Y(at) + 4, "text-anchor": "end" }, shown(at)));
  }
  if (names.length) names.forEach((name, i) => i % Math.ceil(names.length / 14) || picture.append(svg("text", { x: X(i), y: H - BOTTOM + 16, "text-anchor": "middle" }, name)));
  else for (const at of ticks(x0, x1)) picture.append(svg("text", { x: X(at), y: H - BOTTOM + 16, "text-anchor": "middle" }, shown(at)));
  const barCount = traces.filter((t) => t.type === "bar").length;
  let bar = 0;
  series.forEach(({ t, x, y }, i) => {
    const color = COLORS[i % COLORS.length];
    const drawn = ([a, b]) => Number.isFinite(a) && Number.isFinite(b);
    const pairs = x.map((v, k) => [v, y[k]]), points = pairs.filter(drawn);
    if (t.type === "bar") {
      const width = (0.8 * (X(1) - X(0))) / barCount;
      for (const [a, b] of points) picture.append(svg("rect", { x: X(a) - (barCount * width) / 2 + bar * width, y: Math.min(Y(b), Y(0)), width: Math.max(1, width - 1), height: Math.abs(Y(b) - Y(0)), fill: color }));
      bar += 1;
      return;
    }
    const mode = t.mode ?? (points.length < 20 ? "lines+markers" : "lines");
    // What is no number is a gap, as plotly draws it.
    const pieces = pairs.reduce((all, pair) => (drawn(pair) ? all.at(-1).push(pair) : all.push([]), all), [[]]).filter((piece) => piece.length > 1);
    if (mode.includes("lines")) for (const piece of pieces) picture.append(svg("polyline", { points: piece.map(([a, b]) => `${X(a)},${Y(b)}`).join(" "), fill: "none", stroke: color, "stroke-width": 2 }));
    if (mode.includes("markers")) for (const [a, b] of points) picture.append(svg("circle", { cx: X(a), cy: Y(b), r: 3, fill: color }));
  });
  const named = series.filter(({ t }) => t.name);
  named.forEach(({ t }, i) => picture.append(svg("text", { x: W - RIGHT - 4, y: TOP + 12 + 15 * i, "text-anchor": "end", style: "" }, t.name)));
  picture.append(svg("text", { x: (W + LEFT) / 2, y: H - 8, "text-anchor": "middle", class: "soft" }, titleOf(layout.xaxis)));
  picture.append(svg("text", { x: 14, y: H / 2, "text-anchor": "middle", class: "soft", transform: `rotate(-90 14 ${H / 2})` }, titleOf(layout.yaxis)));
  return picture;
}

function table(trace) {
  const head = list(trace.header?.values).map((v) => (Array.isArray(v) ? v.join(" ") : v));
  const cells = list(trace.cells?.values).map(list);
  const made = document.createElement("table");
  const top = made.createTHead().insertRow();
  for (const name of head) top.append(Object.assign(document.createElement("th"), { textContent: String(name).replace(/<[^>]*>/g, "") }));
  const body = made.createTBody();
  for (let row = 0; row < Math.min(1000, cells[0]?.length ?? 0); row += 1) {
    const line = body.insertRow();
    for (const column of cells) line.insertCell().textContent = shown(column[row] ?? "");
  }
  return made;
}

/** Draw one plot; one that cannot be drawn is a note in its own place, and leaves the others alone. */
export function drawPlot(place) {
  try {
    draw(place, JSON.parse(place.dataset.plot));
  } catch (error) {
    place.textContent = `This plot cannot be drawn: ${error.message}`;
  }
}

function draw(place, figure) {
  const traces = (Array.isArray(figure?.data) ? figure.data : []).filter((t) => t !== null && typeof t === "object");
  const layout = figure?.layout ?? {};
  const kinds = new Set(traces.map((t) => t.type ?? "scatter"));
  let drawn = null;
  if (kinds.has("heatmap")) drawn = heatmap(traces.find((t) => t.type === "heatmap"), layout);
  else if (kinds.has("table")) drawn = table(traces.find((t) => t.type === "table"));
  else if ([...kinds].every((k) => ["scatter", "scattergl", "bar"].includes(k))) drawn = cartesian(traces, layout);
  else if (layout.images?.[0]?.source?.startsWith("data:image/")) drawn = Object.assign(new Image(), { src: layout.images[0].source, alt: "plot" });
  if (drawn) {
    place.append(drawn);
    return;
  }
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(figure)], { type: "application/json" }));
  link.download = "plot.json";
  link.textContent = "Download it as JSON (plotly)";
  place.append(`This page does not draw plots of the kind ${[...kinds].join(", ")}. `, link);
}
