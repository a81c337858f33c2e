"use strict";
// What stands beside an image that is open: its prompt, setting, measures, score and nearest training image; of
// several, only what differs.
(function (ob) {
  const { element, visible } = ob;

  // Copies a text, and says so on the button. From file:// the clipboard may be refused; then the old way.
  ob.copyButton = function (words, textOf) {
    const button = element("button", { type: "button" }, words);
    button.addEventListener("click", async () => {
      const text = textOf();
      let isCopied = false;
      try {
        await navigator.clipboard.writeText(text);
        isCopied = true;
      } catch (error) {
        const field = element("textarea", { class: "hidden", "aria-hidden": "true" });
        field.value = text;
        button.after(field);
        field.select();
        isCopied = document.execCommand("copy");
        field.remove();
        button.focus();
      }
      button.textContent = isCopied ? "copied" : "not copied: the browser refused";
      setTimeout(() => { button.textContent = words; }, 1500);
    });
    return button;
  };

  // The settings that not all runs share, spelled like their overrides.
  function settingsText(cell) {
    return Object.entries(cell.run.own || {}).map(([name, value]) => (/[\s'",()[\]{}]/.test(value) ? `'${name}=${value}'` : `${name}=${value}`)).join(" ");
  }

  // As A1111 reads it in its prompt field.
  function imageText(cell, model) {
    const prompt = model.prompt(cell), { seed } = cell.shot;
    const lines = [prompt ? prompt.text : "", prompt && prompt.negative ? `Negative prompt: ${prompt.negative}` : "",
      [cell.run.render, `Seed: ${seed}`, `Size: ${model.sizeOf(cell.shot)}`].filter(Boolean).join(", ")];
    return lines.filter(Boolean).join("\n");
  }

  function row(name, ...values) {
    return element("tr", {}, element("th", { scope: "row" }, name), values.map((value) => element("td", {}, element("bdi", {}, value))));
  }

  ob.measureRows = function (model, cell, pinned) {
    const reference = pinned && pinned.epoch > 0 && model.idOf(pinned) !== model.idOf(cell) ? pinned : null;
    const rows = model.data.numbers.map((number) => [number, model.number(number, cell)]).filter(([, value]) => value !== null).map(([number, value]) => {
      const other = reference ? model.number(number, reference) : null;
      const change = other === null ? [] : [`${value > other ? "+" : ""}${ob.measureText(value - other, number.unit)}`];
      const made = row(number.title, ob.measureText(value, number.unit), ...change);
      const better = number.better ? `${number.better} is better` : "";
      if (number.meaning) { made.setAttribute("title", visible([number.meaning, better].filter(Boolean).join("; "))); }
      return made;
    });
    if (reference && rows.length) { rows.unshift(row("", "here", "minus reference")); }
    return rows;
  };

  ob.largeInfo = function (cell, app) {
    const { model, scores } = app, { run } = cell, prompt = model.prompt(cell), pinned = app.state.value.pin ? model.cellById(app.state.value.pin) : null;
    const nearest = model.nearest(cell), own = Object.entries(run.own || {});
    const number = element("input", { type: "number", min: 0, max: 100, step: 1, id: "large-score", placeholder: "-" });
    const given = scores.get(scores.idOf(scores.cellEntry(cell, false)));
    number.value = given && given.score !== null ? given.score : "";
    number.addEventListener("change", () => {
      const value = Number(number.value), score = number.value.trim() === "" || !Number.isFinite(value) ? null : Math.min(100, Math.max(0, value));
      scores.set(scores.cellEntry(cell, false), { score });
      app.render();
    });
    const copies = [prompt ? ob.copyButton("copy prompt", () => prompt.text) : null, ob.copyButton("copy for A1111", () => imageText(cell, model)),
      cell.epoch > 0 && own.length ? ob.copyButton("copy settings", () => settingsText(cell)) : null, ob.copyButton("copy link", () => location.href)];
    const parts = [element("h3", {}, cell.epoch > 0 ? app.swatch(run) : "", " ", element("bdi", {}, model.runLabel(cell))),
      element("p", { class: "vl-place" }, `${cell.epoch === 0 ? "the base alone" : `epoch ${cell.epoch}`}, prompt ${cell.shot.prompt}, seed ${cell.shot.seed}, ${model.sizeOf(cell.shot)}`)];
    if (prompt) { parts.push(element("p", { class: "vp-prompt" }, element("bdi", {}, prompt.text))); }
    if (prompt && prompt.negative) { parts.push(element("p", { class: "text vp-prompt negative" }, element("b", {}, "negative: "), element("bdi", {}, prompt.negative))); }
    parts.push(element("div", { class: "vs-line" }, copies));
    if (cell.letter === "1") {
      parts.push(element("div", { class: "vs-line" }, element("label", { for: "large-score" }, "Your score, 0 to 100 "), number));
    }
    if (nearest) {
      parts.push(element("h4", {}, "Nearest training image"), element("img", { class: "vl-nearest", src: nearest.address, alt: `the nearest training image, ${nearest.name}` }),
        element("p", { class: "hint" }, nearest.name));
    }
    const measures = cell.epoch > 0 ? ob.measureRows(model, cell, pinned) : [];
    if (measures.length) { parts.push(element("h4", {}, "Measures"), element("table", { class: "facts" }, element("tbody", {}, measures))); }
    if (cell.epoch > 0 && own.length) {
      parts.push(element("h4", {}, "Settings that not all runs share"), element("table", { class: "facts" }, element("tbody", {}, own.map(([name, value]) => row(name, value)))));
    }
    return [...parts, ob.cellLinks(cell, model)];
  };

  // A table of only what differs between several images: settings first, then measures.
  ob.differences = function (cells, app) {
    const { model } = app, names = [...new Set(cells.flatMap((cell) => Object.keys(cell.run.own || {})))];
    const places = [["epoch", (cell) => String(cell.epoch)], ["prompt", (cell) => cell.shot.prompt], ["image seed", (cell) => String(cell.shot.seed)], ["image size", (cell) => model.sizeOf(cell.shot)],
      ...names.map((name) => [name, (cell) => (cell.epoch === 0 ? "-" : (cell.run.own || {})[name] || "-")]),
      ...model.data.numbers.map((number) => [number.title, (cell) => ob.measureText(cell.epoch > 0 ? model.number(number, cell) : null, number.unit)])];
    const rows = places.map(([name, of]) => [name, cells.map(of)]).filter(([, values]) => new Set(values).size > 1);
    if (rows.length === 0) { return [element("p", { class: "hint" }, "Nothing that is known differs.")]; }
    return [element("h3", {}, "Only what differs"), element("div", { class: "wide" }, element("table", { class: "facts vl-differences" },
      element("thead", {}, element("tr", {}, element("td", {}), cells.map((cell, index) => element("th", { scope: "col" }, String(index + 1))))),
      element("tbody", {}, rows.map(([name, values]) => row(name, ...values)))))];
  };
}(window.optbench));
