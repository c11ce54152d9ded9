// The living parts of an experiment's page: console, charts, plots.
import { drawPlot } from "./plots.js";

const root = document.getElementById("task");
const { task, tab } = root.dataset;
const RUNNING = new Set(["queued", "in_progress", "created"]);
const POLL_MS = 2000;
const CONSOLE_LINES = 20000; // older lines leave the page, not the server

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

async function fetchData(part, query = "") {
  const answer = await fetch(`/data/tasks/${encodeURIComponent(task)}/${part}${query}`);
  if (answer.status === 401) location.reload();
  if (!answer.ok) throw new Error((await answer.json()).error ?? answer.statusText);
  return answer.json();
}

function showStatus(status) {
  const badge = document.getElementById("status");
  if (!status || root.dataset.status === status) return;
  root.dataset.status = status;
  badge.className = `status ${status}`;
  badge.textContent = status.replaceAll("_", " ");
}

/** Run `step` now, and again while the experiment may change; a failure is shown and tried again. */
async function poll(step, note) {
  for (;;) {
    let more = true;
    try {
      more = await step();
      if (note) note.textContent = "";
    } catch (error) {
      if (note) note.textContent = `The server does not answer (${error.message}); trying again.`;
    }
    if (!more && !RUNNING.has(root.dataset.status)) return;
    if (!more) await new Promise((done) => setTimeout(done, POLL_MS));
  }
}

function followConsole() {
  const box = document.getElementById("console");
  const follow = document.getElementById("follow");
  const note = document.getElementById("logstate");
  let last = 0;
  box.addEventListener("scroll", () => {
    follow.checked = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  });
  follow.addEventListener("change", () => {
    if (follow.checked) box.scrollTop = box.scrollHeight;
  });
  poll(async () => {
    const data = await fetchData("log", `?from=${last}`);
    const lines = document.createDocumentFragment();
    for (const line of data.lines) {
      const row = element("div", undefined, line.level);
      row.append(element("time", line.time), element("span", line.text));
      lines.append(row);
    }
    box.append(lines);
    while (box.childElementCount > CONSOLE_LINES) box.firstElementChild.remove();
    if (data.lines.length && follow.checked) box.scrollTop = box.scrollHeight;
    if (data.last !== null) last = data.last;
    showStatus(data.status);
    return data.lines.length > 0;
  }, note);
}

const COLORS = ["#2f7d6b", "#d1603d", "#3f6fc4", "#a3456f", "#8a7a1f", "#5b4fb0", "#2b93a8", "#77706a"];

/** The first iteration of each gap: where a series with even steps leaves some out, as for a loss that was NaN. */
function gaps(x) {
  const steps = x.slice(1).map((at, i) => at - x[i]), counts = new Map();
  for (const step of steps) counts.set(step, (counts.get(step) ?? 0) + 1);
  const [even, count] = [...counts].reduce((a, b) => (b[1] > a[1] ? b : a), [0, 0]);
  if (even <= 0 || count < 0.8 * steps.length) return [];
  return steps.flatMap((step, i) => (step >= 2 * even && step % even === 0 ? [x[i] + even] : []));
}

/** Join series with points of their own into uPlot's columns: one x for all. It draws null as a gap, undefined not. */
function columns(variants) {
  const found = variants.map((v) => new Set(gaps(v.x)));
  const xs = [...new Set([...variants.flatMap((v) => v.x), ...found.flatMap((gap) => [...gap])])].sort((a, b) => a - b);
  return [xs, ...variants.map((v, i) => {
    const at = new Map(v.x.map((x, k) => [x, v.y[k]]));
    return xs.map((x) => at.get(x) ?? (found[i].has(x) ? null : undefined));
  })];
}

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function drawScalars() {
  const box = document.getElementById("charts");
  const charts = new Map();
  const singles = new Map();
  const axis = { stroke: css("--soft"), grid: { stroke: css("--line"), width: 1 }, ticks: { stroke: css("--line") } };
  poll(async () => {
    const data = await fetchData("scalars");
    showStatus(data.status);
    const titles = Object.keys(data.metrics).sort((a, b) => a.startsWith(":") - b.startsWith(":") || a.localeCompare(b));
    for (const value of data.single) {
      const key = `${value.metric}/${value.variant}`;
      if (!singles.has(key)) {
        const card = element("section", undefined, "card");
        card.append(element("h2", value.variant), element("div", "", "single"));
        document.getElementById("singles").append(card);
        singles.set(key, card.lastElementChild);
      }
      singles.get(key).textContent = Number(value.value).toPrecision(4);
    }
    for (const title of titles) try {
      const names = Object.keys(data.metrics[title]).sort();
      const values = columns(names.map((name) => data.metrics[title][name]));
      const shape = names.join("\n");
      let chart = charts.get(title);
      if (chart && chart.shape !== shape) {
        chart.card.replaceChildren(element("h2", title));
        chart.plot = null;
      }
      if (!chart) {
        const card = element("section", undefined, "card");
        card.append(element("h2", title));
        box.append(card);
        chart = { card };
        charts.set(title, chart);
      }
      if (chart.plot) {
        chart.plot.setData(values);
      } else {
        chart.shape = shape;
        chart.plot = new uPlot({
          width: Math.max(240, chart.card.clientWidth - 36),
          height: 230,
          scales: { x: { time: false } },
          axes: [axis, { ...axis, size: 60 }],
          cursor: { sync: { key: "iteration" } },
          series: [{ label: "iteration" }, ...names.map((label, i) => ({
            label, stroke: COLORS[i % COLORS.length], width: 2, spanGaps: false, points: { show: values[0].length < 2 },
            value: (_, v) => (v === null || v === undefined ? "–" : Number(v).toPrecision(5)),
          }))],
        }, values, chart.card);
        chart.card.dataset.points = String(values[0].length);
      }
    } catch (error) {
      charts.get(title)?.card.replaceChildren(element("h2", title), element("p", `This chart cannot be drawn: ${error.message}`, "hint"));
    }
    document.getElementById("nocharts").hidden = charts.size + singles.size > 0;
    return false;
  });
  addEventListener("resize", () => {
    for (const { plot, card } of charts.values()) plot?.setSize({ width: Math.max(240, card.clientWidth - 36), height: 230 });
  });
}

if (tab === "console") followConsole();
if (tab === "scalars") addEventListener("DOMContentLoaded", drawScalars);
if (tab === "plots") document.querySelectorAll("[data-plot]").forEach(drawPlot);
