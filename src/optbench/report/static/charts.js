"use strict";
// Charts of the page, drawn by Bokeh. The library and the data of a chart are files beside the page,
// loaded once the chart comes near, so that a page opens at once however much was recorded.
window.optbenchCharts = (function () {
  const SCHEMA = 1, FOLDER = "./charts/", LIBRARY = ["bokeh.min.js", "bokeh-api.min.js"];
  const MOST_AT_FIRST = 12;  // settings that are drawn before anybody chose
  const OUTLIERS = 0.02, ROOM = 0.4;  // a curve leaves the chart beyond so much of the range of the others
  const COLUMN = 112;  // pixels of a column of costs
  const REACH = 30;  // pixels from a line that still mean it
  const DASHES = { "": [] };
  const X = { step: 0, epoch: 1, seconds: 2 };
  const AXES = { step: "step", epoch: "epoch" };
  const UNITS = [[5400, 3600, "hours"], [120, 60, "minutes"], [0, 1, "seconds"]];

  const data = new Map(), waiting = new Map(), loading = new Map(), scripts = new Map();
  const drawn = new Map();  // figure -> how to redraw it, show and hide a setting, take it away
  const state = { x: "epoch", log: false, raw: false, each: false, hidden: new Set() };
  let sweep = null, queue = Promise.resolve();

  // Files

  function script(address) {
    if (!scripts.has(address)) {
      scripts.set(address, new Promise((resolve, reject) => {
        const made = document.createElement("script");
        made.src = address;
        made.addEventListener("load", resolve);
        made.addEventListener("error", () => reject(new Error(`${address} was not found beside this page: copy the whole folder, or rebuild the report.`)));
        document.head.append(made);
      }));
    }
    return scripts.get(address);
  }

  // A data file calls this.
  function add(name, value) {
    data.set(name, value);
    if (waiting.has(name)) { waiting.get(name)(value); }
  }

  function load(name) {
    if (!loading.has(name)) {
      loading.set(name, data.has(name) ? Promise.resolve(data.get(name)) : new Promise((resolve, reject) => {
        waiting.set(name, resolve);
        script(`${FOLDER}${name}.js`).catch(reject);
      }));
    }
    return loading.get(name);
  }

  async function library() {
    for (const name of LIBRARY) {
      if (!window.Bokeh || (name === LIBRARY[1] && !window.Bokeh.Plotting)) { await script(FOLDER + name); }
    }
    window.Bokeh.set_log_level("error");
  }

  async function loadSweep() {
    if (sweep !== null) { return; }
    const read = await load("sweep");
    if (read.schema !== SCHEMA) { throw new Error(`charts/sweep.js has schema ${read.schema} and this page reads ${SCHEMA}: rebuild the report.`); }
    if (sweep !== null) { return; }
    sweep = read;
    sweep.keyOf = new Map(sweep.settings.flatMap((setting, index) => setting.runs.map((run) => [run, index])));
    if (sweep.settings.length > MOST_AT_FIRST) {
      sweep.settings.forEach((_, index) => { if (index >= MOST_AT_FIRST) { state.hidden.add(index); } });
    }
  }

  // Words and numbers

  const HIDDEN = /[\u0000-\u001f\u007f]/g;
  // As it is written: Bokeh would take some of it for a formula, and control characters for nothing.
  function plain(text) {
    return String(text).replace(HIDDEN, " ").replace(/\$\$/g, "$\u200b$").replace(/\\([[(])/g, "\\\u200b$1");
  }

  function numberText(value) {
    if (value === null || value === undefined || Number.isNaN(value)) { return "-"; }
    const size = Math.abs(value);
    if (size >= 1e5 || (size > 0 && size < 1e-3)) { return value.toExponential(2); }
    return String(Number(value.toPrecision(4)));
  }

  function bytesText(value) {
    let size = value;
    for (const unit of ["B", "KiB", "MiB"]) {
      if (size < 1024) { return `${Number(size.toPrecision(3))} ${unit}`; }
      size /= 1024;
    }
    return `${Number(size.toPrecision(3))} GiB`;
  }

  function secondsText(value) {
    if (value < 60) { return `${Number(value.toPrecision(3))} s`; }
    if (value < 6000) { return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`; }
    return `${Math.floor(value / 3600)} h ${Math.round(value % 3600 / 60)} min`;
  }

  const written = (value, unit) => unit === "bytes" ? bytesText(value) : unit === "seconds" ? secondsText(value) : numberText(value);

  // From steps, epochs or seconds to another of them, along the ends of a run's epochs.
  function moved(value, from, to, ends) {
    if (from === to) { return value; }
    const [a, b] = [X[from], X[to]];
    let at = ends.findIndex((end) => end[a] >= value);
    if (at < 0) { at = ends.length - 1; }
    if (at === 0) { return ends[0] ? ends[0][b] : NaN; }
    const [low, high] = [ends[at - 1], ends[at]];
    if (low[b] === null || high[b] === null) { return NaN; }
    return low[b] + (high[b] - low[b]) * (value - low[a]) / ((high[a] - low[a]) || 1);
  }

  function meanEnds(runs) {
    const all = runs.map((run) => sweep.runs[run].ends), shortest = Math.min(...all.map((ends) => ends.length));
    return all[0].slice(0, shortest).map((_, at) => [0, 1, 2].map((column) => {
      const values = all.map((ends) => ends[at][column]);
      return values.includes(null) ? null : values.reduce((sum, one) => sum + one, 0) / values.length;
    }));
  }

  // What to draw of a chart of curves: a line each, with or without a band.
  function linesOf(chart, wants) {
    const from = chart.x, to = from === "fixed" ? "fixed" : wants.x, lines = [], inBands = new Set();
    const own = new Map(chart.keys.map((key) => [key.label, key]));
    const place = (values, ends) => from === "fixed" ? values : values.map((x) => moved(x, from, to, ends));
    const where = (values, ends) => values.map((x) => from === "fixed" ? `${chart.xAxis.title.replace(/ \(.*/, "")} ${numberText(x)}` :
      [`epoch ${numberText(moved(x, from, "epoch", ends))}`, `step ${Math.round(moved(x, from, "step", ends))}`,
        ...(Number.isFinite(moved(x, from, "seconds", ends)) ? [secondsText(moved(x, from, "seconds", ends))] : [])].join(", "));
    if (!wants.each) {
      for (const [label, runs, xs, mean, low, high] of chart.bands) {
        const index = sweep.settings.findIndex((setting) => setting.label === label);
        if (index < 0) { continue; }
        runs.forEach((run) => inBands.add(run));
        const ends = meanEnds(runs), style = sweep.settings[index];
        lines.push({ index, label, runs, ends, from, recorded: xs, colour: style.colour, dash: style.dash, marker: style.marker, x: place(xs, ends), y: mean, low, high, at: where(xs, ends),
          text: mean.map((value, i) => `${written(value, chart.y.unit)} (${written(low[i], chart.y.unit)} to ${written(high[i], chart.y.unit)}, ${runs.length} seeds)`) });
      }
    }
    for (const [name, xs, ys, raw] of chart.lines) {
      const run = sweep.runs[name], key = own.get(name);
      if (inBands.has(name) || (!run && !key)) { continue; }
      const index = key ? chart.keys.indexOf(key) : sweep.keyOf.get(name);
      const style = key || sweep.settings[index], ends = run ? run.ends : [];
      lines.push({ index: key ? -1 - index : index, label: key ? key.label : run.label, runs: key ? [] : [name], ends, from, recorded: xs, colour: style.colour, dash: style.dash, marker: style.marker,
        x: place(xs, ends), y: ys, raw, at: where(xs, ends), ended: run && run.ended, text: ys.map((value) => written(value, chart.y.unit)) });
    }
    return lines.filter((line) => line.x.some(Number.isFinite));
  }

  // The ends of the y axis; one run that explodes must not flatten all others.
  function yRange(lines, levels, isLog) {
    const scale = isLog ? Math.log10 : (value) => value;
    const values = lines.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])])
      .filter((value) => Number.isFinite(value) && value !== null && (value > 0 || !isLog)).map(scale).sort((one, other) => one - other);
    if (!values.length) { return null; }
    const out = Math.floor(values.length * OUTLIERS), last = values.length - 1;
    const usual = [values[out], values[last - out]], room = (usual[1] - usual[0]) * ROOM;
    let [low, high] = room > 0 ? [Math.max(values[0], usual[0] - room), Math.min(values[last], usual[1] + room)] : [values[0], values[last]];
    for (const level of levels) {
      if (level.value > 0 || !isLog) { low = Math.min(low, scale(level.value)); high = Math.max(high, scale(level.value)); }
    }
    const margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 0.5;
    return isLog ? [10 ** (low - margin), 10 ** (high + margin)] : [low - margin, high + margin];
  }

  // Looks

  function theme() {
    const style = getComputedStyle(document.documentElement);
    const colour = (name, other) => style.getPropertyValue(name).trim() || other;
    return { ink: colour("--ink", "#16181d"), faint: colour("--faint", "#5b6270"), rule: colour("--rule", "#dfe3ea"), paper: colour("--paper", "#ffffff"), focus: colour("--focus", "#e08a00") };
  }

  const isTouch = () => window.matchMedia("(pointer: coarse)").matches;
  const dashes = (dash) => DASHES[dash] || (DASHES[dash] = dash.split(" ").map(Number));

  function figureOf(options) {
    const look = theme(), { Plotting, Range1d } = window.Bokeh;
    const made = Plotting.figure({
      title: null, height: options.height, sizing_mode: "stretch_width", min_width: 200,
      tools: options.tools, toolbar_location: options.tools ? "above" : null, toolbar_inner: false,
      x_axis_type: options.isLogX ? "log" : "linear", y_axis_type: options.isLogY ? "log" : "auto",
      ...(options.yRange ? { y_range: options.yRange } : {}), ...(options.xRange ? { x_range: new Range1d({ start: options.xRange[0], end: options.xRange[1] }) } : {}),
      x_axis_label: plain(options.xTitle), y_axis_label: plain(options.yTitle),
      background_fill_color: null, border_fill_color: null, outline_line_color: null });
    made.toolbar.logo = null;
    made.toolbar.active_drag = isTouch() ? null : made.toolbar.tools.find((tool) => tool.type === "BoxZoomTool") || null;
    for (const axis of [...made.below, ...made.left]) {
      axis.setv({ axis_label_text_color: look.ink, axis_label_text_font_style: "normal", axis_label_text_font_size: "13px", axis_label_text_font: "system-ui, sans-serif",
        major_label_text_color: look.faint, major_label_text_font_size: "12px", major_label_text_font: "system-ui, sans-serif", axis_line_color: look.rule, major_tick_line_color: look.rule, minor_tick_line_color: null });
    }
    if (window.innerWidth < 600) {  // numbers must not run into one another
      for (const axis of made.below) { if (axis.ticker.desired_num_ticks) { axis.ticker.desired_num_ticks = 3; } }
    }
    for (const grid of made.center) { if (grid.grid_line_color !== undefined) { grid.grid_line_color = look.rule; } }
    return made;
  }

  function unitTicks(axis, unit) {
    const { AdaptiveTicker, NumeralTickFormatter, PrintfTickFormatter } = window.Bokeh;
    if (unit === "bytes") { axis.ticker = new AdaptiveTicker({ base: 1024, mantissas: [1, 2, 5, 10, 20, 50, 100, 200, 512], desired_num_ticks: 5 }); }
    axis.formatter = unit === "bytes" ? new NumeralTickFormatter({ format: "0.[0] ib" }) : new PrintfTickFormatter({ format: "%.5g" });
  }

  function levelLines(made, levels, end, isVertical = false) {
    const look = theme(), { Span, Label } = window.Bokeh;
    for (const level of levels) {
      made.add_layout(new Span({ location: level.value, dimension: isVertical ? "height" : "width", line_color: look.focus, line_dash: [6, 4], line_width: 1.5 }));
      const text = { text: plain(level.text), text_color: look.faint, text_font_size: "12px", text_font: "system-ui, sans-serif", background_fill_color: look.paper, background_fill_alpha: 0.75 };
      made.add_layout(new Label(isVertical ? { ...text, x: level.value, y: 4, y_units: "screen", x_offset: 4 } : { ...text, x: end, text_align: "right", y: level.value, y_offset: 2 }));
    }
  }

  function hoverTool(renderers, rows) {
    return new window.Bokeh.HoverTool({ renderers, tooltips: rows, line_policy: "nearest", point_policy: "follow_mouse", mode: "mouse" });
  }

  // Charts

  function drawCurves(place, chart, figure) {
    const { ColumnDataSource, Range1d } = window.Bokeh;
    const isLogY = chart.y.log || (state.log && chart.lines.every(([, , ys]) => ys.every((value) => value === null || value > 0)));
    const isLogX = chart.x === "fixed" && chart.xAxis.log;
    let lines = linesOf(chart, { x: state.x, each: state.each });
    let xTitle = chart.x === "fixed" ? chart.xAxis.title : AXES[state.x];
    if (chart.x !== "fixed" && state.x === "seconds") {
      const most = Math.max(...lines.flatMap((line) => line.x.filter(Number.isFinite)));
      const [, size, word] = UNITS.find(([from]) => most >= from);
      lines = lines.map((line) => ({ ...line, x: line.x.map((x) => x / size) }));
      xTitle = `training time, ${word}`;
    }
    const shown = (line) => line.index < 0 || !state.hidden.has(line.index);
    const range = yRange(lines.filter(shown), chart.levels, isLogY) || yRange(lines, chart.levels, isLogY);
    if (range === null) { return null; }
    const yAxis = new Range1d({ start: range[0], end: range[1] });
    const made = figureOf({ height: chart.height, tools: "box_zoom,xwheel_zoom,pan,reset,save", isLogX, isLogY, yRange: yAxis, xTitle, yTitle: chart.y.title });
    unitTicks(made.left[0], chart.y.unit);
    levelLines(made, chart.levels, Math.max(...lines.flatMap((line) => line.x.filter(Number.isFinite))));
    const parts = new Map();
    const keep = (line, ...renderers) => renderers.forEach((one) => {
      one.visible = shown(line);
      if (!parts.has(line.index)) { parts.set(line.index, []); }
      parts.get(line.index).push(one);
    });
    for (const line of lines) {
      const columns = { x: line.x, y: line.y };
      if (line.low) { columns.low = line.low; columns.high = line.high; }
      if (state.raw && line.raw) { columns.raw = line.raw; }
      const source = new ColumnDataSource({ data: columns }), x = { field: "x" }, y = { field: "y" }, line_color = line.colour;
      if (line.low) { keep(line, made.varea(x, { field: "low" }, { field: "high" }, { source, fill_color: line_color, fill_alpha: 0.16 })); }
      if (columns.raw) { keep(line, made.line(x, { field: "raw" }, { source, line_color, line_width: 0.7, line_alpha: 0.45 })); }
      keep(line, made.line(x, y, { source, line_color, line_width: 2, line_dash: dashes(line.dash), line_join: "round" }));
      if (line.x.length <= 40) { keep(line, made.scatter(x, y, { source, marker: line.marker, size: 6, fill_color: line_color, line_color })); }
      if (line.ended) {
        const last = line.x.length - 1;
        const end = new ColumnDataSource({ data: { x: [line.x[last]], y: [line.y[last]] } });
        keep(line, made.scatter(x, y, { source: end, marker: "x", size: 12, line_color, line_width: 3 }));
      }
    }
    const under = (event) => nearest(made, lines.filter(shown), event, isLogX, isLogY);
    tell(made, place, under, (line, at) => [line.label, `${chart.y.title}: ${line.text[at]}`, line.at[at]]);
    if (chart.x !== "fixed") {
      made.on_event("tap", (event) => {
        const near = under(event);
        if (near && near.line.runs.length) { openImages(near.line.runs[0], epochOf(near)); }
      });
    }
    const restyle = () => {
      for (const [index, renderers] of parts) { renderers.forEach((one) => { one.visible = index < 0 || !state.hidden.has(index); }); }
      const now = yRange(lines.filter(shown), chart.levels, isLogY);
      if (now) { yAxis.setv({ start: now[0], end: now[1] }); }
      figure.setAttribute("data-lines", lines.filter(shown).length);
    };
    figure.setAttribute("data-lines", lines.filter(shown).length);
    return { model: made, hide: restyle, lines };
  }

  // The line and its point under the pointer, within a finger's width.
  function nearest(made, lines, event, isLogX, isLogY) {
    const { x_range: across, y_range: up, inner_width: width, inner_height: height } = made;
    const [xScale, yScale] = [isLogX, isLogY].map((isLog) => isLog ? Math.log10 : (value) => value);
    const [xPixels, yPixels] = [width / (xScale(across.end) - xScale(across.start)), height / (yScale(up.end) - yScale(up.start))];
    const [x, y] = [xScale(event.x) * xPixels, yScale(event.y) * yPixels];
    let best = null;
    for (const line of lines) {
      let before = null;
      for (let index = 0; index < line.x.length; index += 1) {
        const point = line.y[index] === null ? null : [xScale(line.x[index]) * xPixels - x, yScale(line.y[index]) * yPixels - y];
        if (point === null || !point.every(Number.isFinite)) { before = null; continue; }
        // How far along the piece of line from the point before: 1 is this point.
        const [dx, dy] = before === null ? [0, 0] : [point[0] - before[0], point[1] - before[1]];
        const back = dx * dx + dy * dy === 0 ? 0 : Math.min(1, Math.max(0, (point[0] * dx + point[1] * dy) / (dx * dx + dy * dy)));
        const distance = Math.hypot(point[0] - back * dx, point[1] - back * dy);
        if (best === null || distance < best.distance) { best = { line, index: back > 0.5 ? index - 1 : index, distance }; }
        before = point;
      }
    }
    return best !== null && best.distance <= REACH ? best : null;
  }

  // Images are of the ends of epochs.
  const epochOf = (near) => Math.round(moved(near.line.recorded[near.index], near.line.from, "epoch", near.line.ends));

  // Says what is under the pointer, and marks the point that it means.
  function tell(made, place, under, words) {
    const mark = new window.Bokeh.ColumnDataSource({ data: { x: [], y: [] } }), look = theme();
    made.scatter({ field: "x" }, { field: "y" }, { source: mark, size: 11, fill_color: null, line_color: look.ink, line_width: 2 });
    const tip = document.createElement("div");
    tip.className = "chart-tip";
    tip.hidden = true;
    place.append(tip);
    const away = () => { if (!tip.hidden) { tip.hidden = true; mark.data = { x: [], y: [] }; } };
    made.on_event("mouseleave", away);
    made.on_event("mousemove", (event) => {
      const near = under(event);
      if (!near) { away(); return; }
      const { line, index } = near, [name, ...rest] = words(line, index);
      if (line.x[index] !== mark.data.x[0] || line.y[index] !== mark.data.y[0]) { mark.data = { x: [line.x[index]], y: [line.y[index]] }; }
      tip.replaceChildren(...[name + (line.ended && index === line.x.length - 1 ? `: ${line.ended}` : ""), ...rest].map((text) => {
        const part = document.createElement("div");
        part.textContent = plain(text);
        return part;
      }));
      tip.style.borderLeftColor = line.colour;
      tip.hidden = false;
      const left = event.sx + 16 + tip.offsetWidth > place.clientWidth ? event.sx - 16 - tip.offsetWidth : event.sx + 16;
      tip.style.left = `${Math.max(0, left)}px`;
      tip.style.top = `${Math.max(0, event.sy - 12)}px`;
    });
  }

  // The viewer shows that run after that epoch.
  function openImages(name, epoch) {
    const app = window.optbench && window.optbench.app, section = document.getElementById("viewer");
    const run = app && app.model.runByName.get(name);
    if (!run || !section) { return; }
    app.goTo(run, epoch);
    section.scrollIntoView({ behavior: "instant", block: "start" });
  }

  function drawRows(place, chart, figure) {
    const { ColumnDataSource, FactorRange, Label, LabelSet } = window.Bokeh, look = theme();
    const labels = chart.rows.map((row) => plain(row.label));
    const ends = chart.rows.flatMap((row) => [row.value, row.low, row.high]).concat(chart.levels.map((level) => level.value), chart.bars ? [0] : []).filter((value) => value !== null);
    const low = Math.min(...ends), high = Math.max(...ends), margin = (high - low) * 0.06 || Math.abs(high) * 0.06 || 0.5;
    const factors = new FactorRange({ factors: [...labels].reverse(), range_padding: 1, range_padding_units: "absolute" });
    const start = chart.bars && low >= 0 ? 0 : low - margin;
    // The plot's width in pixels, and what of it is for the columns.
    const frame = place.clientWidth - 45 - 7 * Math.max(...labels.map((label) => label.length));
    const room = chart.columns.length && place.clientWidth >= 700 ? COLUMN * chart.columns.length : 0;
    const made = figureOf({ height: chart.height, tools: "xwheel_zoom,xpan,reset,save", yRange: factors, xRange: [start, start + (high + margin - start) * frame / (frame - room)],
      xTitle: chart.axis.title, yTitle: "" });
    made.left[0].setv({ axis_label: null, major_label_text_color: look.ink });
    unitTicks(made.below[0], chart.axis.unit);
    levelLines(made, chart.levels, 0, true);
    const text = chart.rows.map((row) => written(row.value, chart.axis.unit) + (row.low === null || row.high === null ? "" : ` (${written(row.low, chart.axis.unit)} to ${written(row.high, chart.axis.unit)})`));
    const notes = Object.fromEntries(chart.columns.map((_, at) => [`note${at}`, chart.rows.map((row) => plain(row.notes[at]))]));
    const columns = { y: labels, x: chart.rows.map((row) => row.value), c: chart.rows.map((row) => row.colour), m: chart.rows.map((row) => row.marker), t: text, zero: chart.rows.map(() => 0), ...notes };
    const source = new ColumnDataSource({ data: columns }), x = { field: "x" }, y = { field: "y" }, colour = { field: "c" };
    const whiskers = chart.rows.filter((row) => row.low !== null && row.high !== null);
    if (whiskers.length) {
      const lines = new ColumnDataSource({ data: { y0: whiskers.map((row) => plain(row.label)), x0: whiskers.map((row) => row.low), x1: whiskers.map((row) => row.high), c: whiskers.map((row) => row.colour) } });
      made.segment({ field: "x0" }, { field: "y0" }, { field: "x1" }, { field: "y0" }, { source: lines, line_color: colour, line_width: 2.5 });
    }
    const dots = chart.bars ? made.hbar({ y, left: { field: "zero" }, right: x, height: 0.6, source, fill_color: colour, line_color: null }) :
      made.scatter(x, y, { source, marker: { field: "m" }, size: 10, fill_color: colour, line_color: look.paper });
    made.add_tools(hoverTool([dots], [["", "@y"], [chart.axis.title.replace(/,.*/, ""), "@t"], ...chart.columns.map((title, at) => [title, `@note${at}`])]));
    figure.setAttribute("data-lines", chart.rows.length);
    if (!room) { return { model: made }; }
    // Costs as columns beside it. Where there is no room, pointing says them.
    chart.columns.forEach((title, at) => {
      const look_ = { text_font: "system-ui, sans-serif", text_font_size: "12px", text_align: "center", background_fill_color: look.paper };
      const column = frame - room + (at + 0.5) * COLUMN;
      made.add_layout(new Label({ ...look_, text: plain(title), text_color: look.faint, x: column, x_units: "screen", y: chart.height - 104, y_units: "screen" }));
      const cells = new ColumnDataSource({ data: { y: labels, x: labels.map(() => column), text: notes[`note${at}`] } });
      made.add_layout(new LabelSet({ ...look_, source: cells, x: { field: "x" }, x_units: "screen", y, text: { field: "text" }, text_color: look.ink, text_baseline: "middle" }));
    });
    return { model: made };
  }

  function drawPoints(place, chart, figure) {
    const { ColumnDataSource, Range1d } = window.Bokeh, listed = chart.points;
    const range = yRange([{ y: listed.map((point) => point.y) }], chart.levels, chart.y.log);
    const made = figureOf({ height: chart.height, tools: "box_zoom,xwheel_zoom,pan,reset,save", isLogX: chart.xAxis.log, isLogY: chart.y.log, yRange: new Range1d({ start: range[0], end: range[1] }), xTitle: chart.xAxis.title, yTitle: chart.y.title });
    unitTicks(made.below[0], chart.xAxis.unit);
    levelLines(made, chart.levels, Math.max(...listed.map((one) => one.x)));
    const source = new ColumnDataSource({ data: { x: listed.map((one) => one.x), y: listed.map((one) => one.y), n: listed.map((one) => plain(one.label)), c: listed.map((one) => one.colour), m: listed.map((one) => one.marker),
      t: listed.map((one) => written(one.y, chart.y.unit)), u: listed.map((one) => written(one.x, chart.xAxis.unit)) } });
    const dots = made.scatter({ field: "x" }, { field: "y" }, { source, marker: { field: "m" }, size: 11, fill_color: { field: "c" }, line_color: theme().paper });
    made.add_tools(hoverTool([dots], [["", "@n"], [chart.y.title.replace(/,.*/, ""), "@t"], [chart.xAxis.title.replace(/,.*/, ""), "@u"]]));
    figure.setAttribute("data-lines", listed.length);
    return { model: made };
  }

  function drawMap(place, chart, figure) {
    const { ColumnDataSource, FixedTicker, Range1d } = window.Bokeh, look = theme(), rows = chart.rows.length;
    const made = figureOf({ height: chart.height, tools: "reset,save", yRange: new Range1d({ start: rows, end: 0 }), xRange: [0, chart.columns.length], xTitle: chart.xAxis.title, yTitle: chart.y.title });
    const columns = { left: [], right: [], top: [], bottom: [], alpha: [], n: [], f: [], t: [] };
    chart.values.forEach((values, column) => values.forEach((value, row) => {
      if (value === null) { return; }
      columns.left.push(column + 0.02); columns.right.push(column + 0.98); columns.top.push(row); columns.bottom.push(row + 1);
      columns.alpha.push(chart.alphas ? chart.alphas[column][row] : value); columns.n.push(plain(chart.rows[row])); columns.f.push(plain(chart.columns[column])); columns.t.push(plain(chart.texts[column][row]));
    }));
    const cells = made.quad({ field: "left" }, { field: "right" }, { field: "top" }, { field: "bottom" }, { source: new ColumnDataSource({ data: columns }), fill_color: "#d9541e", fill_alpha: { field: "alpha" }, line_color: null });
    const heads = new Map(chart.columns.map((title, at) => [at + 0.5, plain(title)]));
    made.below[0].setv({ ticker: new FixedTicker({ ticks: [...heads.keys()] }), major_label_overrides: heads, major_label_text_color: look.ink });
    made.left[0].setv({ ticker: new FixedTicker({ ticks: chart.blocks.map(([row]) => row) }), major_label_overrides: new Map(chart.blocks.map(([row, name]) => [row, plain(name)])) });
    made.add_tools(hoverTool([cells], [["", "@n"], ["file", "@f"], [chart.y.title, "@t"]]));
    figure.setAttribute("data-lines", columns.n.length);
    return { model: made };
  }

  const KINDS = { curves: drawCurves, rows: drawRows, points: drawPoints, map: drawMap };

  async function draw(figure) {
    const place = figure.querySelector(".chart-place"), name = figure.getAttribute("data-chart");
    try {
      await Promise.all([library(), loadSweep(), load(name)]);
      if (!figure.isConnected) { return; }
      clear(figure);
      const chart = data.get(name), made = KINDS[chart.kind](place, chart, figure);
      legendOf(figure, chart);
      if (made === null) { place.textContent = "Nothing to draw."; return; }
      made.view = await window.Bokeh.Plotting.show(made.model, place);
      drawn.set(figure, made);
      figure.setAttribute("data-drawn", "");
    } catch (error) {
      place.textContent = error.message;
      place.classList.add("note");
    }
  }

  function clear(figure) {
    const before = drawn.get(figure);
    if (before && before.view) { (Array.isArray(before.view) ? before.view : [before.view]).forEach((view) => view.model.document ? view.model.document.clear() : view.remove()); }
    drawn.delete(figure);
    figure.querySelector(".chart-place").replaceChildren();
  }

  // One after the other, and never in the way of what the reader does.
  function enqueue(figure) {
    figure.removeAttribute("data-drawn");
    queue = queue.then(() => new Promise((resolve) => requestAnimationFrame(resolve))).then(() => draw(figure));
    return queue;
  }

  function redrawAll() { for (const figure of [...drawn.keys()]) { enqueue(figure); } }

  // Legends and switches

  const SVG = "http://www.w3.org/2000/svg";
  const SHAPES = { circle: "M4 0a4 4 0 1 0-8 0a4 4 0 1 0 8 0", square: "M-3.5-3.5h7v7h-7z", triangle: "M0-4.5L4.2 3.5H-4.2z", diamond: "M0-5L4 0L0 5L-4 0z", inverted_triangle: "M0 4.5L4.2-3.5H-4.2z",
    star: "M0-5L1.3-1.6L5-1.5L2.1.7L3.1 4.2L0 2.1L-3.1 4.2L-2.1.7L-5-1.5L-1.3-1.6z" };

  function svg(tag, attributes, ...children) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) { made.setAttribute(name, value); }
    made.append(...children);
    return made;
  }

  function swatch(key) {
    return svg("svg", { class: "swatch", width: 34, height: 12, viewBox: "0 0 34 12", "aria-hidden": "true" },
      svg("line", { x1: 1, x2: 33, y1: 6, y2: 6, stroke: key.colour, "stroke-width": 2.5, "stroke-dasharray": key.dash }),
      svg("path", { d: SHAPES[key.marker] || SHAPES.circle, transform: "translate(17 6)", fill: key.colour }));
  }

  function legendOf(figure, chart) {
    const place = figure.querySelector(".chart-legend");
    if (!place) { return; }
    place.replaceChildren(...chart.keys.map((key) => {
      const made = document.createElement("span");
      made.append(swatch(key), ` ${plain(key.label)}`);
      return made;
    }));
  }

  function fillLegend(bar) {
    const place = bar.querySelector("[data-legend]");
    if (!place || place.childElementCount) { return; }
    for (const [index, setting] of sweep.settings.entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "chart-key";
      button.dataset.index = index;
      button.append(swatch(setting), ` ${plain(setting.label)}`);
      button.title = "Click to hide or show. Double click: this one alone.";
      button.addEventListener("click", () => {
        if (state.hidden.has(index)) { state.hidden.delete(index); } else { state.hidden.add(index); }
        hidden();
      });
      button.addEventListener("dblclick", () => {
        state.hidden = new Set(sweep.settings.keys());
        state.hidden.delete(index);
        hidden();
      });
      place.append(button);
    }
    if (sweep.settings.length > 2) {
      const all = document.createElement("button");
      all.type = "button";
      all.className = "chart-all";
      all.textContent = "show all";
      all.addEventListener("click", () => { state.hidden.clear(); hidden(); });
      place.append(all);
    }
    hidden();
  }

  function hidden() {
    document.querySelectorAll(".chart-key").forEach((button) => button.setAttribute("aria-pressed", String(!state.hidden.has(Number(button.dataset.index)))));
    document.querySelectorAll(".chart-all").forEach((button) => { button.hidden = state.hidden.size === 0; });
    for (const made of drawn.values()) { if (made.hide) { made.hide(); } }
  }

  // The viewer's small charts: the chosen run's lines in front of the others, and the epoch shown.
  class Side {
    constructor(place, name, pick) {
      this.place = place;
      this.name = name;
      this.pick = pick;
      this.ready = this.make();
    }

    async make() {
      await Promise.all([library(), loadSweep(), load(this.name)]);
      const { ColumnDataSource, Range1d, Span } = window.Bokeh;
      this.chart = data.get(this.name);
      this.lines = new Map(linesOf(this.chart, { x: "step", each: true }).map((line) => [line.runs[0], line]));
      this.range = new Range1d({ start: 0, end: 1 });
      this.model = figureOf({ height: 170, tools: "", yRange: this.range, isLogY: this.chart.y.log, xTitle: "step", yTitle: this.chart.y.title });
      this.others = new ColumnDataSource({ data: { x: [], y: [], c: [] } });
      this.chosen = new ColumnDataSource({ data: { x: [], y: [], c: [] } });
      const x = { field: "x" }, y = { field: "y" }, line_color = { field: "c" };
      this.model.multi_line(x, y, { source: this.others, line_color, line_width: 1, line_alpha: 0.4 });
      this.model.multi_line(x, y, { source: this.chosen, line_color, line_width: 2.5 });
      this.here = new Span({ location: 0, dimension: "height", line_color: theme().focus, line_width: 1.5, visible: false });
      this.model.add_layout(this.here);
      this.model.on_event("tap", (event) => {
        const near = nearest(this.model, this.visible, event, false, this.chart.y.log);
        if (near) { this.pick(near.line.runs[0], epochOf(near)); }
      });
      await window.Bokeh.Plotting.show(this.model, this.place);
    }

    // Returns whether there is anything to see.
    async show(chosen, others, epoch) {
      await this.ready;
      const known = (names) => names.map((name) => this.lines.get(name)).filter(Boolean);
      const front = known(chosen), back = known(others.filter((name) => !chosen.includes(name)));
      this.visible = [...front, ...back];
      const range = yRange(this.visible, [], this.chart.y.log);
      if (range) { this.range.setv({ start: range[0], end: range[1] }); }
      const columns = (lines) => ({ x: lines.map((line) => line.x), y: lines.map((line) => line.y), c: lines.map((line) => line.colour) });
      this.others.data = columns(back);
      this.chosen.data = columns(front);
      const run = front[0];
      this.here.setv({ visible: Boolean(run) && epoch > 0, location: run ? moved(epoch, "epoch", "step", run.ends) : 0 });
      return front.length > 0;
    }
  }

  // Start

  function watch() {
    const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
      if (!entry.isIntersecting) { return; }
      seen.unobserve(entry.target);
      if (entry.target.matches("figure")) { enqueue(entry.target); } else { loadSweep().then(() => fillLegend(entry.target), (error) => { entry.target.textContent = error.message; }); }
    }), { rootMargin: "400px" });
    document.querySelectorAll("figure[data-chart], .chart-bar").forEach((part) => seen.observe(part));
    document.addEventListener("change", (event) => {
      const control = event.target.closest("[data-charts]");
      if (!control) { return; }
      const name = control.getAttribute("data-charts");
      state[name] = control.type === "checkbox" ? control.checked : control.value;
      document.querySelectorAll(`[data-charts="${name}"]`).forEach((other) => { if (other.type === "checkbox") { other.checked = state[name]; } else { other.value = state[name]; } });
      redrawAll();
    });
    let timer = 0, width = window.innerWidth;
    window.addEventListener("resize", () => {
      clearTimeout(timer);
      // Columns of costs stand at places in pixels.
      timer = setTimeout(() => {
        if (window.innerWidth === width) { return; }
        width = window.innerWidth;
        for (const figure of [...drawn.keys()]) { if (data.get(figure.getAttribute("data-chart")).kind === "rows") { enqueue(figure); } }
      }, 300);
    });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);
    new MutationObserver(redrawAll).observe(document.documentElement, { attributes: true, attributeFilter: ["class", "data-theme", "style"] });
  }
  if (document.readyState === "loading") { document.addEventListener("DOMContentLoaded", watch); } else { watch(); }

  return { add, load, draw: enqueue, Side, openImages };
}());
