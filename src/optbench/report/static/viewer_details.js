"use strict";
// What is known of the selected cell, beside the table; and the curves of its run.
(function (ob) {
  const { element, visible, numberText } = ob;
  const MOST_LINES = 40;  // of other runs behind the selected one

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

  // The charts of the selected run, drawn by charts.js once they are seen.
  ob.Curves = class {
    constructor(place, app) {
      this.app = app;
      this.charts = app.model.data.curves.map(({ name, title }) => {
        const area = element("div", { class: "vp-area", role: "img", "aria-label": title });
        const figure = element("figure", { class: "vp-curve" }, element("figcaption", {}, title), area);
        return { name, figure, area };
      });
      if (!this.charts.length) { return; }
      const hint = element("p", { class: "hint" }, "The selected run's line is bold. Click a point to see the images of that epoch.");
      place.replaceChildren(element("h3", {}, "Curves of this run"), ...this.charts.map((chart) => chart.figure), hint);
      const seen = new IntersectionObserver((entries) => {
        if (!entries.some((entry) => entry.isIntersecting)) { return; }
        seen.disconnect();
        for (const chart of this.charts) {
          chart.side = new window.optbenchCharts.Side(chart.area, chart.name, (run, epoch) => app.goTo(app.model.runByName.get(run), epoch));
        }
        this.update();
      }, { rootMargin: "200px" });
      seen.observe(place);
    }

    show(cell, layout) {
      const { model } = this.app, { pin } = this.app.state.value;
      const chosen = cell === null ? [] : [cell.run], pinned = pin ? model.cellById(pin) : null;
      if (pinned && !chosen.includes(pinned.run)) { chosen.push(pinned.run); }
      const names = (runs) => runs.map((run) => run.name);
      this.wanted = [names(chosen), names(layout.runs.slice(0, MOST_LINES)), cell === null ? 0 : cell.epoch];
      if (!this.waiting) { this.waiting = requestAnimationFrame(() => this.update()); }
    }

    // Whoever walks through the table waits for no chart.
    update() {
      this.waiting = 0;
      const key = JSON.stringify(this.wanted);
      for (const chart of this.charts) {
        if (!chart.side || !this.wanted || chart.key === key) { continue; }
        chart.key = key;
        chart.side.show(...this.wanted).then((isKnown) => { chart.figure.hidden = !isKnown; }, (error) => { chart.area.textContent = error.message; });
      }
    }
  };
}(window.optbench));
