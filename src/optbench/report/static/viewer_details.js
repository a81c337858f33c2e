"use strict";
// What is known of the selected cell, beside the table; and the curves of its run.
(function (ob) {
  const { element, visible, numberText } = ob;
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 340, HEIGHT = 118, LEFT = 46, BOTTOM = 18, TOP = 8;
  const MOST_LINES = 40;  // of other runs behind the selected one

  function svg(tag, attributes) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) { made.setAttribute(name, value); }
    return made;
  }

  ob.showDetails = function (place, cell, app) {
    const { model } = app, state = app.state.value;
    if (cell === null) {
      place.replaceChildren(element("p", { class: "hint" }, "No cell is selected."));
      return;
    }
    const { run } = cell, prompt = model.prompt(cell);
    const pinned = state.pin ? model.cellById(state.pin) : null;
    const facts = [["epoch", cell.epoch === 0 ? "0, the base alone" : String(cell.epoch)],
      ["prompt", `${cell.shot.prompt}, ${model.sizeOf(cell.shot)}`], ["seed", String(cell.shot.seed)]];
    model.data.factors.forEach((factor, index) => { if (cell.epoch > 0) { facts.push([factor.name, run.values[index]]); } });
    const lines = facts.map(([name, value]) => line(name, value));
    if (cell.epoch > 0) { lines.push(...ob.measureRows(model, cell, pinned)); }
    const [symbol, word, reason] = cell.letter === "1" ? ["", "", ""] : model.absence(cell);
    place.replaceChildren(
      element("h3", {}, cell.epoch > 0 ? app.swatch(run) : "", " ", element("bdi", {}, model.runLabel(cell))),
      cell.epoch > 0 ? element("p", {}, element("span", { class: `status ${run.status}` }, run.status.replaceAll("_", " "))) : "",
      word ? element("p", { class: "note" }, `${symbol} ${word}`, reason ? ": " : "", element("bdi", {}, reason)) : "",
      element("table", { class: "facts" }, element("tbody", {}, lines)),
      actions(cell, app), ob.cellLinks(cell, model),
      prompt ? element("p", { class: "text vp-prompt" }, element("bdi", {}, prompt.text)) : "",
      prompt && prompt.negative ? element("p", { class: "text vp-prompt negative" }, element("b", {}, "negative: "), element("bdi", {}, prompt.negative)) : "");
  };

  function line(name, value, other) {
    return element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, element("bdi", {}, value)),
      other === undefined ? null : element("td", { class: "hint" }, other));
  }

  function actions(cell, app) {
    const { value } = app.state, id = app.model.idOf(cell);
    const made = (words, act, title, isOn) => {
      const button = element("button", { type: "button", title, "aria-pressed": isOn === undefined ? null : String(isOn) }, words);
      button.addEventListener("click", act);
      return button;
    };
    const isPinned = value.pin === id;
    return element("div", { class: "vs-line" }, made("open", () => app.openLarge(), "key Enter"), made("mark", () => app.mark(), "mark for comparing, up to four; key x", value.marks.includes(id)),
      made("reference", () => app.pin(), "compare the others with this image; key p", isPinned),
      value.pin && !isPinned ? made("compare with reference", () => app.openWithReference(), "key c") : null);
  }

  ob.cellLinks = function (cell, model) {
    const list = element("ul", { class: "vp-links" }), { run } = cell;
    const add = (href, text) => list.append(element("li", {}, element("a", { href }, text)));
    if (cell.letter === "1") { add(model.address(cell, false), "image at full size (PNG)"); }
    const file = `${run.name}-${String(cell.epoch).padStart(6, "0")}.safetensors`;
    if (cell.epoch > 0 && run.lora.includes(file)) { add(`${run.folder}/lora/${encodeURIComponent(file)}`, "LoRA file of this epoch"); }
    if (cell.epoch > 0) { add(`#${run.anchor}`, "all settings of this run"); }
    return list;
  };

  ob.Curves = class {
    constructor(place, app) {
      this.place = place;
      this.app = app;
      this.readout = element("p", { class: "hint vp-readout", "aria-live": "polite" }, "");
    }

    show(cell, layout) {
      const { model } = this.app, { curves } = model.data;
      const epoch = cell === null ? 0 : cell.epoch;
      const chosen = cell === null ? [] : [cell.run];
      const pinned = this.app.state.value.pin ? model.cellById(this.app.state.value.pin) : null;
      if (pinned && !chosen.includes(pinned.run)) { chosen.push(pinned.run); }
      const key = JSON.stringify([epoch, chosen.map((run) => run.index), layout.runs.map((run) => run.index)]);
      if (key === this.key || curves.length === 0) { return; }
      this.key = key;
      const others = layout.runs.filter((run) => !chosen.includes(run)).slice(0, MOST_LINES);
      this.place.replaceChildren(element("h3", {}, "Curves of this run"),
        ...curves.map((curve) => this.chart(curve, chosen, others, epoch)), this.readout);
    }

    chart(curve, chosen, others, epoch) {
      const drawn = [...others, ...[...chosen].reverse()].filter((run) => curve.points[run.index][0].length > 0);
      const figure = element("figure", { class: "vp-curve" }, element("figcaption", {}, curve.title));
      if (drawn.length === 0) { figure.append(element("p", { class: "hint" }, "nothing recorded")); return figure; }
      const axes = this.axes(curve, drawn);
      const picture = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "vp-svg" });
      picture.setAttribute("aria-label", visible(`${curve.title}: a line for each run; click a point to go to its epoch`));
      this.frame(picture, axes);
      for (const run of drawn) {
        const [xs, ys] = curve.points[run.index];
        const isChosen = chosen.includes(run);
        picture.append(svg("polyline", { points: xs.map((x, index) => `${axes.x(x).toFixed(1)},${axes.y(ys[index]).toFixed(1)}`).join(" "),
          fill: "none", stroke: run.colour, "stroke-dasharray": run.dash, "stroke-width": isChosen ? 2.2 : 1, class: isChosen ? "chosen" : "other" }));
      }
      const at = epoch > 0 ? this.lastStep(curve, chosen[0], epoch) : null;
      if (at !== null) { picture.append(svg("line", { x1: axes.x(at), x2: axes.x(at), y1: TOP, y2: HEIGHT - BOTTOM, class: "here" })); }
      const dot = svg("circle", { r: 4, class: "dot", visibility: "hidden" });
      picture.append(dot);
      picture.addEventListener("pointermove", (event) => this.hover(event, picture, curve, drawn, axes, dot));
      picture.addEventListener("pointerleave", () => { dot.setAttribute("visibility", "hidden"); this.readout.textContent = ""; });
      picture.addEventListener("click", (event) => {
        const near = this.nearest(event, picture, curve, drawn, axes);
        if (near) { this.app.goTo(near.run, this.epochAt(near.run, near.x)); }
      });
      figure.append(picture);
      return figure;
    }

    axes(curve, drawn) {
      let low = Infinity, high = -Infinity, last = 1;
      const values = [];
      for (const run of drawn) {
        const [xs, ys] = curve.points[run.index];
        last = Math.max(last, xs[xs.length - 1]);
        values.push(...ys.slice(Math.floor(ys.length / 50)));
      }
      values.sort((one, other) => one - other);
      low = values[0];
      // One run that explodes must not flatten the others.
      high = Math.min(values[values.length - 1], Math.max(values[Math.floor(values.length * 0.97)] * (curve.log ? 10 : 1.5), low));
      if (high <= low) { high = low + (Math.abs(low) || 1) * 0.1; }
      const scale = curve.log ? (value) => Math.log10(Math.max(value, low)) : (value) => value;
      const [bottom, top] = [scale(low), scale(high)];
      return { low, high, last, x: (x) => LEFT + (WIDTH - LEFT - 8) * x / last,
        y: (y) => Math.max(TOP, HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * (scale(y) - bottom) / (top - bottom)) };
    }

    frame(picture, axes) {
      const text = (x, y, words, anchor) => {
        const made = svg("text", { x, y, "text-anchor": anchor });
        made.textContent = words;
        picture.append(made);
      };
      picture.append(svg("rect", { x: LEFT, y: TOP, width: WIDTH - LEFT - 8, height: HEIGHT - BOTTOM - TOP, class: "area" }));
      text(LEFT - 4, TOP + 9, Number(axes.high.toPrecision(2)), "end");
      text(LEFT - 4, HEIGHT - BOTTOM, Number(axes.low.toPrecision(2)), "end");
      text(WIDTH - 8, HEIGHT - 4, `step ${axes.last}`, "end");
      text(LEFT, HEIGHT - 4, "0", "start");
    }

    nearest(event, picture, curve, drawn, axes) {
      const box = picture.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width * WIDTH, y = (event.clientY - box.top) / box.height * HEIGHT;
      let best = null;
      for (const run of drawn) {
        const [xs, ys] = curve.points[run.index];
        xs.forEach((one, index) => {
          const distance = Math.hypot(axes.x(one) - x, axes.y(ys[index]) - y);
          if (best === null || distance < best.distance) { best = { run, x: one, y: ys[index], distance }; }
        });
      }
      return best;
    }

    hover(event, picture, curve, drawn, axes, dot) {
      const near = this.nearest(event, picture, curve, drawn, axes);
      dot.setAttribute("cx", axes.x(near.x));
      dot.setAttribute("cy", axes.y(near.y));
      dot.setAttribute("fill", near.run.colour);
      dot.setAttribute("visibility", "visible");
      this.readout.textContent = visible(`${near.run.label}: ${numberText(near.y)} at step ${near.x}, epoch ${this.epochAt(near.run, near.x)}`);
    }

    epochAt(run, step) {
      const found = run.epochSteps.find(([, last]) => step <= last);
      return found ? found[0] : (run.epochSteps.length ? run.epochSteps[run.epochSteps.length - 1][0] : 0);
    }

    lastStep(curve, run, epoch) {
      const found = run ? run.epochSteps.find(([number]) => number === epoch) : null;
      return found ? found[1] : null;
    }
  };
}(window.optbench));
