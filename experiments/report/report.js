"use strict";
// The report's page. All data stand in the script element "data". They reach the document through
// textContent, and plotly, which takes some HTML in labels, through safe().

const data = JSON.parse(document.getElementById("data").textContent);
const ROWS = 1000; // of a table that are shown
const BARS = 40; // of a figure
const GL_FROM = 5000; // points from which on WebGL draws
const CHOICES = 40; // values of a column that get a checkbox each

// ---------------------------------------------------------------- elements

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children); // strings become text nodes
  return made;
}

const place = (id) => document.getElementById(id);

function safe(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function shorter(text, most = 40) {
  return text.length > most ? text.slice(0, most - 1) + "\u2026" : text;
}

function shown(value) {
  if (value === null || value === undefined) return "";
  if (typeof value !== "number") return String(value);
  return Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(6));
}

function chooser(name, options, chosen, changed) {
  const select = element("select", { id: `choose-${name}` });
  for (const option of options) select.append(element("option", { value: option }, option));
  select.value = chosen;
  select.addEventListener("change", changed);
  return [select, element("label", {}, name + " ", select)];
}

function tick(name, changed, checked = false) {
  const box = element("input", { type: "checkbox", checked });
  box.addEventListener("change", changed);
  return [box, element("label", {}, box, " " + name)];
}

function list(host, pairs) {
  host.replaceChildren(
    ...pairs.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, shown(value))]),
  );
}

// ---------------------------------------------------------------- points

const columns = new Map(data.columns.map((column) => [column.name, column]));
const everyone = Array.from({ length: data.count }, (_, place) => place);

function value(name, point) {
  const column = columns.get(name);
  if (!column) return data.shared[name] ?? null;
  const found = column.data[point];
  return column.values && found !== null ? column.values[found] : found;
}

const numeric = data.columns.filter((column) => !column.values).map((column) => column.name);
const texts = data.columns.filter((column) => column.values).map((column) => column.name);
const known = (point, x, y) => value(x, point) !== null && value(y, point) !== null;

// Points that no other beats in x and y, the best in x first; of equal ones the first.
function front(points, x, y) {
  const sign = (name) => (data.more.includes(name) ? -1 : 1);
  const ordered = points
    .map((point) => [sign(x) * value(x, point), sign(y) * value(y, point), point])
    .sort((a, b) => a[0] - b[0] || a[1] - b[1] || a[2] - b[2]);
  let least = Infinity;
  const best = [];
  for (const [, height, point] of ordered) {
    if (height < least) {
      least = height;
      best.push(point);
    }
  }
  return best;
}

// ---------------------------------------------------------------- tables

// A table that sorts by the column clicked on. `cell(row, place)` gives a value; the answer is a
// function that shows other rows.
function table(host, heads, cell) {
  const note = element("p", { className: "note" });
  const body = element("tbody");
  let rows = [];
  let [by, down] = [null, false];
  const cells = heads.map((head, number) => {
    const button = element("button", { type: "button" }, head);
    button.addEventListener("click", () => {
      [by, down] = [number, by === number && !down];
      draw();
    });
    return element("th", { scope: "col" }, button);
  });
  host.append(note, element("div", { className: "scroll" },
    element("table", {}, element("thead", {}, element("tr", {}, ...cells)), body)));

  function compare(a, b) {
    const [left, right] = [cell(a, by), cell(b, by)];
    if (left === null || right === null) return (left === null) - (right === null);
    const order = typeof left === "number" && typeof right === "number"
      ? left - right : String(left).localeCompare(String(right), "en", { numeric: true });
    return down ? -order : order;
  }

  function draw() {
    cells.forEach((head, number) => {
      if (number === by) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    const ordered = by === null ? rows : [...rows].sort(compare);
    body.replaceChildren(...ordered.slice(0, ROWS).map((row) => element("tr", {},
      ...heads.map((_, number) => {
        const found = cell(row, number);
        const className = typeof found === "number" ? "number" : "";
        return element("td", { className }, shown(found));
      }))));
    const all = rows.length.toLocaleString("en");
    note.textContent = rows.length > ROWS
      ? `The first ${ROWS.toLocaleString("en")} of ${all} rows, as sorted; results files have all.`
      : `${all} rows`;
  }

  return (others) => { rows = others; draw(); };
}

// ---------------------------------------------------------------- figures

const CONFIG = { displaylogo: false, responsive: true };

function layout(more) {
  return { font: { size: 13 }, margin: { l: 80, r: 20, t: 30, b: 60 }, hovermode: "closest", ...more };
}

function axis(name, log) {
  return { title: { text: safe(name) }, type: log ? "log" : "linear", automargin: true };
}

function drawn(host, traces, more) {
  Plotly.react(host, traces, layout(more), CONFIG);
}

function figure(host) {
  const made = element("div", { className: "figure" });
  host.append(made);
  return made;
}

const missing = (host, why) => host.append(element("p", { className: "none" }, why));

// A bar per point, stacked; the answer draws other points.
function bars(host, stack) {
  const note = element("p", { className: "note" });
  host.append(note);
  const drawing = figure(host);
  return (points) => {
    const some = points.slice(0, BARS);
    const places = some.map((_, number) => number);
    const height = (column, point) => {
      const found = value(column, point);
      const times = stack.times === null ? 1 : value(stack.times, point);
      return found === null || times === null ? null : found * times * stack.factor;
    };
    const traces = stack.parts.map(([part, column], number) => {
      const y = some.map((point) => height(column, point));
      return {
        type: "bar", name: safe(part), x: places, y, hoverinfo: "text",
        hovertext: some.map((point, n) =>
          safe(`${value("name", point)}: ${part} ${shown(y[n])} ${stack.unit}`)),
        marker: {
          color: data.parts[number].colour, line: { color: "#111", width: 0.5 },
          pattern: { shape: data.parts[number].pattern, fgcolor: "#111", fillmode: "overlay",
            size: 6 },
        },
      };
    }).filter((trace) => trace.y.some((height) => height));
    const ticktext = some.map((point) => safe(shorter(value("name", point), 28)));
    drawn(drawing, traces, {
      barmode: "stack", title: { text: safe(stack.title), font: { size: 14 } },
      xaxis: { tickvals: places, ticktext, automargin: true, tickangle: -35 },
      yaxis: axis(stack.unit, false), showlegend: true, legend: { traceorder: "normal" },
    });
    note.textContent = points.length > BARS
      ? `The first ${BARS} of ${points.length.toLocaleString("en")} points, front first.` : "";
    const empty = some.filter((point) => stack.parts.some(([, c]) => value(c, point) === null));
    if (empty.length) note.textContent += ` ${empty.length} of the bars lack parts not measured.`;
  };
}

function look(column, text, number) {
  const family = (data.looks[column] ?? {})[text];
  if (family) return data.families[family];
  const names = Object.keys(data.families);
  return data.families[names[number % names.length]];
}

function roofline(host) {
  const names = Object.keys(data.rooflines);
  if (!names.length) {
    return missing(host, "The file has no matrix products by layer, which a roofline is made of.");
  }
  const [select, control] = chooser("design", names, names[0], draw);
  host.append(control);
  const drawing = figure(host);
  const looks = { prefill: ["#0072b2", "circle", "solid"], decode: ["#d55e00", "diamond", "dash"] };

  function draw() {
    const { roofs, products } = data.rooflines[select.value];
    const across = products.map((product) => product.ops_per_byte);
    const [low, high] = [Math.min(...across) / 2, Math.max(...across) * 4];
    const traces = roofs.map((roof) => {
      const rate = roof.dram_bytes_per_s;
      const knee = rate ? roof.peak_ops_per_s / rate : low;
      const x = [low, Math.min(Math.max(knee, low), high), high];
      return {
        type: "scatter", mode: "lines", x,
        y: x.map((ops) => (rate ? Math.min(roof.peak_ops_per_s, ops * rate) : roof.peak_ops_per_s)),
        name: safe(`${roof.phase}: ${shown(roof.peak_ops_per_s * 1e-12)} TOPS` +
          (rate ? `, ${shown(rate * 1e-9)} GB/s` : ", DRAM not known")),
        line: { color: looks[roof.phase][0], dash: looks[roof.phase][2] }, hoverinfo: "skip",
      };
    });
    for (const { phase } of roofs) {
      const some = products.filter((product) => product.phase === phase);
      traces.push({
        type: "scatter", mode: "markers", name: phase, x: some.map((p) => p.ops_per_byte),
        y: some.map((p) => p.ops_per_s), hoverinfo: "text",
        hovertext: some.map((p) => safe(`${phase} ${p.name}: ${shown(p.ops_per_byte)} ops/byte, ` +
          `${shown(p.ops_per_s * 1e-9)} Gop/s`)),
        marker: { size: 10, color: looks[phase][0], symbol: looks[phase][1] },
      });
    }
    drawn(drawing, traces, {
      xaxis: axis("operations per byte over DRAM (a multiply-accumulate is two)", true),
      yaxis: axis("operations per second", true),
    });
  }
  draw();
}

function heatmap(host) {
  const names = Object.keys(data.maps);
  if (!names.length) {
    return missing(host, "The file does not say which format each layer has.");
  }
  const [select, control] = chooser("design", names, data.chosen ?? names[0], draw);
  host.append(control);
  const drawing = figure(host);
  const formats = data.formats;
  const most = formats.length;
  const scale = formats.flatMap(({ colour }, n) => [[n / most, colour], [(n + 1) / most, colour]]);

  function draw() {
    const { layers, rows } = data.maps[select.value];
    const linears = Object.keys(rows);
    const words = (n) => (n === null ? "" : formats[n].name);
    const labels = linears.map((name) => rows[name].map((n) => safe(words(n))));
    drawn(drawing, [{
      type: "heatmap", x: layers, y: linears.map(safe), z: linears.map((name) => rows[name]),
      text: labels, texttemplate: layers.length <= 12 ? "%{text}" : "", textfont: { size: 11 },
      hoverinfo: "text", xgap: 1, ygap: 1,
      hovertext: linears.map((name) => rows[name].map((n, layer) =>
        safe(`layer ${layers[layer]}, ${name}: ${words(n)}`))),
      zmin: -0.5, zmax: most - 0.5, colorscale: scale,
      colorbar: {
        tickvals: formats.map((_, n) => n),
        ticktext: formats.map(({ name, bits }) =>
          safe(bits === null ? name : `${name} (${bits} bit)`)),
      },
    }], {
      xaxis: { title: { text: "layer" }, dtick: layers.length > 20 ? undefined : 1 },
      yaxis: { autorange: "reversed", automargin: true, type: "category" },
    });
  }
  draw();
}

// ---------------------------------------------------------------- the points' figures

function points() {
  const control = place("controls");
  const [x, xLabel] = chooser("x", numeric, data.axes[0], update);
  const [y, yLabel] = chooser("y", numeric, data.axes[1], update);
  const colours = [...texts.filter((name) => name !== "name"), ...numeric];
  const [colour, colourLabel] = chooser("colour", ["none", ...colours],
    colours.includes("family") ? "family" : "none", update);
  const [logX, logXLabel] = tick("x logarithmic", update);
  const [logY, logYLabel] = tick("y logarithmic", update);
  const [only, onlyLabel] = tick("only Pareto", update);
  only.id = "only-pareto";
  control.append(xLabel, yLabel, colourLabel, logXLabel, logYLabel, onlyLabel);
  const passes = filters(update);
  const drawing = place("pareto");
  const energy = data.stacks.filter((stack) => stack.title.startsWith("energy"));
  const latency = data.stacks.filter((stack) => !stack.title.startsWith("energy"));
  const stacked = [["energy", energy], ["latency", latency], ["area", data.area ? [data.area] : []]]
    .flatMap(([id, stacks]) => {
      if (!stacks.length) missing(place(id), `The file has no ${id}.`);
      return stacks.map((stack) => bars(place(id), stack));
    });
  const values = table(place("values"), data.columns.map((column) => column.name),
    (point, number) => value(data.columns[number].name, point));
  const shared = element("dl");
  list(shared, Object.entries(data.shared));
  place("values").append(element("details", {}, element("summary", {},
    "Equal in all points"), shared));

  function hover(point) {
    const lines = [value("name", point)];
    const more = texts.filter((name) => name !== "name" && name !== "error").slice(0, 8);
    for (const name of [x.value, y.value, ...more]) {
      lines.push(`${name}: ${shorter(shown(value(name, point)), 60)}`);
    }
    return lines.map(safe).join("<br>");
  }

  function traces(chosen) {
    const type = chosen.length > GL_FROM ? "scattergl" : "scatter";
    const trace = (some, marker, name) => ({
      type, mode: "markers", name, x: some.map((p) => value(x.value, p)),
      y: some.map((p) => value(y.value, p)), text: some.map(hover), hoverinfo: "text",
      customdata: some, marker: { size: chosen.length > GL_FROM ? 5 : 9, ...marker },
    });
    const by = columns.get(colour.value);
    if (!by) return [trace(chosen, { color: "#0072b2" }, "points")];
    if (!by.values) {
      const bar = { title: { text: safe(by.name) } };
      return [trace(chosen, { color: chosen.map((point) => value(by.name, point)),
        colorscale: "Cividis", showscale: true, colorbar: bar }, "points")];
    }
    const groups = new Map(by.values.map((text) => [text, []]));
    for (const point of chosen) groups.get(value(by.name, point) ?? null)?.push(point);
    return [...groups].map(([text, some], number) => {
      const { colour: color, symbol } = look(by.name, text, number);
      return some.length ? trace(some, { color, symbol, line: { width: 0.5, color: "#111" } },
        safe(shorter(text, 40))) : null;
    }).filter(Boolean);
  }

  function update() {
    const held = everyone.filter(passes);
    const both = held.filter((point) => known(point, x.value, y.value));
    const best = front(both, x.value, y.value);
    const chosen = only.checked ? best : both;
    const line = {
      type: "scatter", mode: "lines", name: "Pareto front", x: best.map((p) => value(x.value, p)),
      y: best.map((p) => value(y.value, p)), line: { shape: "hv", color: "#777", width: 1.5 },
      hoverinfo: "skip",
    };
    drawn(drawing, [line, ...traces(chosen)], {
      xaxis: axis(x.value, logX.checked), yaxis: axis(y.value, logY.checked),
      showlegend: true, height: 520,
    });
    const number = (count) => count.toLocaleString("en");
    place("count").textContent = `${number(chosen.length)} of ${number(data.count)} points drawn, ` +
      `${number(best.length)} on the front` +
      (held.length > both.length
        ? `; ${number(held.length - both.length)} have no value on one of the axes` : "");
    const firsts = new Set(best);
    const rows = only.checked ? best : held;
    values(rows);
    const ordered = rows.length > BARS
      ? [...best, ...rows.filter((point) => !firsts.has(point))] : rows;
    for (const draw of stacked) draw(ordered);
  }

  update();
  drawing.on("plotly_click", (event) => {
    const point = event.points[0]?.customdata;
    if (point === undefined) return;
    list(place("point"), data.columns.map((column) => [column.name, value(column.name, point)]));
    place("point").parentElement.open = true;
  });
}

// Checkboxes for columns of few labels, ranges for numbers; the answer is what a point must pass.
function filters(changed) {
  const host = place("filters").lastElementChild;
  const tests = [];
  for (const name of texts.filter((name) => name !== "name")) {
    const { values } = columns.get(name);
    if (values.length > CHOICES) continue;
    const allowed = new Set([...values, null]);
    const set = element("fieldset", {}, element("legend", {}, name));
    for (const text of values) {
      const [box, label] = tick(text, () => {
        if (box.checked) allowed.add(text);
        else allowed.delete(text);
        changed();
      }, true);
      set.append(label);
    }
    host.append(set);
    tests.push((point) => allowed.size > values.length || allowed.has(value(name, point)));
  }
  const search = element("input", { type: "search", id: "search" });
  search.addEventListener("input", changed);
  host.append(element("label", {}, "name contains ", search));
  tests.push((point) => !search.value || String(value("name", point)).includes(search.value));
  const ranges = element("div", { className: "scroll" });
  for (const name of numeric) {
    const [low, high] = ["at least", "at most"].map((words) => {
      const input = element("input", { type: "number", step: "any", placeholder: words });
      input.setAttribute("aria-label", `${name} ${words}`);
      input.addEventListener("change", changed);
      return input;
    });
    ranges.append(element("div", {}, low, " ", high, " " + name));
    tests.push((point) => {
      const found = value(name, point);
      return (low.value === "" || (found !== null && found >= +low.value)) &&
        (high.value === "" || (found !== null && found <= +high.value));
    });
  }
  host.append(element("details", {}, element("summary", {}, "Ranges of numbers"), ranges));
  return (point) => tests.every((test) => test(point));
}

// ---------------------------------------------------------------- the rest

function cards() {
  const names = Object.keys(data.cards);
  const host = place("cards");
  if (!names.length) return missing(host, "The file has no calibration card; see the sources below.");
  const card = element("dl");
  const show = () => list(card, Object.entries(data.cards[select.value]));
  const [select, control] = chooser("card of", names, names[0], show);
  host.append(control, card);
  show();
}

function provenance() {
  const host = place("provenance");
  if (!data.provenance.length) return missing(host, "The file has no table of sources; see the card.");
  table(host, ["quantity", "source"], (row, number) => row[number])(data.provenance);
}

function commands() {
  const host = place("commands");
  if (data.command === null) missing(host, "The file does not hold the command that made it.");
  else host.append(element("pre", { id: "command" }, data.command));
  const settings = element("dl");
  list(settings, Object.entries(data.settings));
  host.append(element("h3", {}, "Settings of the run"), settings);
  if (data.specification !== null) {
    host.append(element("h3", {}, "The sweep, all defaults filled in"),
      element("pre", {}, data.specification));
  }
}

place("title").textContent = data.title;
place("origin").textContent = data.origin;
points();
roofline(place("roofline"));
heatmap(place("formats"));
cards();
provenance();
commands();
document.body.dataset.ready = "yes";
