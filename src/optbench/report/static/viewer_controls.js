"use strict";
// Everything above the table: what is rows, columns, blocks and slider, the filters, the buttons.
(function (ob) {
  const { element, visible } = ob;
  const PLACES = [["rows", "Rows"], ["cols", "Columns"], ["blocks", "Blocks"], ["slider", "Slider"]];

  ob.Controls = class {
    constructor(app) {
      this.app = app;
      this.makeAxes();
      this.makeSlider();
      this.makeView();
      this.makeMeasures();
      this.makeFilters();
      this.makeMenus();
      this.makeActions();
    }

    get value() { return this.app.state.value; }

    change(patch, isPassing) { this.app.state.change(patch, isPassing); }

    button(words, act, title) {
      const made = element("button", { type: "button", title }, words);
      made.addEventListener("click", act);
      return made;
    }

    select(words, options, act) {
      const select = element("select", {}, options.map(([value, text]) => element("option", { value }, text)));
      select.addEventListener("change", () => act(select.value));
      return { select, label: element("label", {}, element("span", {}, words), select) };
    }

    makeAxes() {
      const titles = [...this.app.model.axes.values()].map((axis) => [axis.id, axis.title]);
      this.places = PLACES.map(([place, words]) => {
        const made = this.select(words, place === "blocks" ? [["", "none"], ...titles] : titles, (id) => this.put(place, id));
        this.app.part(["rows", "cols"].includes(place) ? "axes" : "view").append(made.label);
        return [place, made.select];
      });
      this.rest = element("span", { class: "vw-rest" });
      this.app.part("axes").append(this.rest);
    }

    // Ready-made views, and how the table looks.
    makeView() {
      const place = this.app.part("view"), presets = element("div", { class: "vw-presets", role: "group", "aria-label": "ready-made views" });
      this.presets().forEach(([words, patch]) => presets.append(this.button(words, () => this.change({ ...patch, sel: "" }))));
      this.fit = element("input", { type: "checkbox" });
      this.fit.addEventListener("change", () => this.change({ size: this.fit.checked ? 0 : this.app.grid.size.height }));
      this.size = element("input", { type: "range", min: 48, max: 600, step: 2, "aria-label": "image height" });
      this.size.addEventListener("input", () => this.change({ size: Number(this.size.value) }, true));
      this.base = element("input", { type: "checkbox" });
      this.base.addEventListener("change", () => this.change({ base: this.base.checked }));
      place.prepend(presets);
      place.append(element("label", {}, this.fit, " fit to the window"), element("label", {}, element("span", {}, "Image height"), this.size),
        element("label", {}, this.base, " base without LoRA"));
    }

    // What is known in numbers: rows in its order, on the cells, as a colour, against the reference.
    makeMeasures() {
      const place = this.app.part("measures"), { numbers } = this.app.model.data;
      const options = numbers.map((number) => [number.name, number.title]);
      const check = (name, words) => {
        const input = element("input", { type: "checkbox" });
        input.addEventListener("change", () => this.change({ [name]: input.checked ? "1" : "" }));
        return [input, element("label", {}, input, ` ${words}`)];
      };
      this.sort = this.select("Sort by", [["", "the sweep's order"], ...options], (name) => {
        const number = this.app.model.numberOf(name);
        this.change({ sort: name, down: number && number.better === "higher" ? "1" : "" });
      });
      this.show_ = this.select("On the cells", [["", "nothing"], ...options], (show) => this.change({ show }));
      let heat = null, minus = null, down = null;
      [this.down, down] = check("down", "highest first");
      [this.heat, heat] = check("heat", "as a colour too");
      [this.minus, minus] = check("minus", "minus the reference");
      place.append(element("div", { class: "vw-line" }, this.sort.label, down), element("div", { class: "vw-line" }, this.show_.label, heat, minus));
      this.app.part("measures-box").hidden = numbers.length === 0;
    }

    // One menu is open at a time; a click elsewhere and Esc close it.
    makeMenus() {
      const menus = [...this.app.part("bar").querySelectorAll(".vw-menu")];
      document.addEventListener("click", (event) => menus.forEach((menu) => { if (!menu.contains(event.target) && event.target.isConnected) { menu.open = false; } }));
      menus.forEach((menu) => menu.addEventListener("keydown", (event) => {
        if (event.key === "Escape" && menu.open) {
          menu.open = false;
          menu.querySelector("summary").focus();
          event.stopPropagation();
        }
      }));
    }

    // Put an axis into a place; what it drives out takes the place it came from.
    put(place, id) {
      const patch = { [place]: id, sel: "" };
      const other = PLACES.map(([one]) => one).find((one) => one !== place && this.value[one] === id && id !== "");
      if (other) { patch[other] = this.value[place]; }
      this.change(patch);
    }

    presets() {
      const { data } = this.app.model, found = [["all images", { rows: "run", cols: "shot", blocks: "", slider: "epoch" }], ["runs x seeds", { rows: "run", cols: "seed", blocks: "", slider: "epoch" }],
        ["runs x epochs", { rows: "run", cols: "epoch", blocks: "", slider: "prompt" }],
        ["epochs x seeds for each run", { rows: "epoch", cols: "seed", blocks: "run", slider: "prompt" }]];
      if (this.app.model.axes.has("setting")) { found.push(["seeds under their setting", { rows: "run", cols: "shot", blocks: "setting", slider: "epoch" }]); }
      const varied = data.factors.map((factor) => `set.${factor.name}`);
      if (varied.length > 1) {
        found.push([`${data.factors[0].name} x ${data.factors[1].name}`, { rows: varied[0], cols: varied[1], blocks: "", slider: "epoch" }]);
      }
      return found;
    }

    makeSlider() {
      const place = this.app.part("slider");
      this.slider = element("input", { type: "range", min: 0, step: 1 });
      this.now = element("output", { class: "vw-now" });
      this.playing = this.button("play", () => this.app.play(), "play the slider, key l");
      place.append(this.button("\u25c0", () => this.app.slide(-1), "back, key ,"), this.slider, this.button("\u25b6", () => this.app.slide(1), "on, key ."), this.playing, this.now);
      place.querySelectorAll("button").forEach((button) => { if (button !== this.playing) { button.setAttribute("aria-label", button.title); } });
      const move = (isPassing) => {
        const { slider, at } = this.value, { key } = this.app.layout.visible.get(slider)[Number(this.slider.value)];
        this.change({ at: { ...at, [slider]: key } }, isPassing);
      };
      this.slider.addEventListener("input", () => move(true));
      this.slider.addEventListener("change", () => move(false));
    }

    makeFilters() {
      const place = this.app.part("filters");
      this.text = element("input", { type: "search", placeholder: "words of a run's name or settings" });
      this.text.addEventListener("input", () => this.change({ q: this.text.value }, true));
      this.text.addEventListener("change", () => this.change({ q: this.text.value }));
      const numbers = this.app.model.data.numbers.map((number) => [number.name, number.title]);
      this.number = this.select("Number", [["", "any"], ...numbers], (num) => this.change({ num }));
      const bound = (name, words) => {
        const input = element("input", { type: "number", step: "any", "aria-label": words, placeholder: words });
        input.addEventListener("change", () => this.change({ [name]: input.value }));
        return input;
      };
      this.min = bound("min", "at least");
      this.max = bound("max", "at most");
      this.range = element("span", { class: "hint" });
      this.chips = element("div", { class: "vw-chips" });
      place.append(element("div", { class: "vw-line" }, element("label", {}, element("span", {}, "Text"), this.text), this.number.label, this.min, this.max, this.range,
        this.button("show all", () => this.change({ q: "", num: "", min: "", max: "", status: [], hide: {} }))), this.chips);
      this.fillChips();
    }

    // A switch for every value of every axis, and for every status.
    fillChips() {
      const { axes, runs } = this.app.model, shown = [...axes.values()].filter((axis) => axis.id !== "shot" && axis.values.length > 1 && axis.values.length <= 60);
      const statuses = [...new Set(runs.map((run) => run.status))];
      this.switches = [];
      const group = (title, chips) => this.chips.append(element("fieldset", {}, element("legend", {}, title), chips));
      const chip = (words, isOn, flip) => {
        const made = this.button(words, () => this.change(flip()));
        made.className = "vw-chip";
        this.switches.push([made, isOn]);
        return made;
      };
      const without = (list, one) => (list.includes(one) ? list.filter((other) => other !== one) : [...list, one]);
      if (statuses.length > 1) {
        group("status", statuses.map((status) => chip(status.replaceAll("_", " "), () => !this.value.status.includes(status),
          () => ({ status: without(this.value.status, status) }))));
      }
      for (const axis of shown) {
        const hidden = () => this.value.hide[axis.id] || [];
        group(axis.title, axis.values.map(({ key, label }) => chip(label, () => !hidden().includes(key),
          () => ({ hide: { ...this.value.hide, [axis.id]: without(hidden(), key) } }))));
      }
    }

    makeActions() {
      const { app } = this, place = app.part("actions");
      this.compare = this.button("", () => app.openMarked(), "key v");
      this.count = element("span", { class: "hint", role: "status" });
      place.append(this.compare, this.button("Vote for two minutes", () => app.startVote(), "which of two is better, without their names; key b"), this.count);
      app.part("view").append(ob.copyButton("copy link", () => location.href), this.button("PNG", () => ob.savePng(app), "save the table as it is shown as a PNG"), this.button("keys", () => app.part("help").showModal(), "key ?"));
    }

    goToFilter() {
      this.app.part("filter-box").open = true;
      this.text.focus();
    }

    show() {
      const { app, value } = this;
      this.places.forEach(([place, select]) => { select.value = value[place]; });
      this.showRest();
      const axis = app.model.axes.get(value.slider), left = app.layout.visible.get(value.slider), key = app.layout.rest[value.slider];
      const at = Math.max(0, left.findIndex((one) => one.key === key)), { label } = left[at] || axis.values.find((one) => one.key === key);
      this.slider.max = Math.max(0, left.length - 1);
      this.slider.value = at;
      this.slider.disabled = left.length < 2;
      this.slider.setAttribute("aria-label", axis.title);
      this.slider.setAttribute("aria-valuetext", visible(label));
      this.now.replaceChildren(axis.kind === "run" || axis.kind === "shot" ? `${axis.title}: ` : "", element("bdi", {}, label));
      this.playing.textContent = app.timer ? "stop" : "play";
      for (const [field, name] of [[this.text, "q"], [this.min, "min"], [this.max, "max"]]) {
        if (document.activeElement !== field) { field.value = value[name]; }
      }
      this.number.select.value = value.num;
      this.min.disabled = this.max.disabled = value.num === "";
      this.showRange();
      this.switches.forEach(([chip, isOn]) => chip.setAttribute("aria-pressed", String(isOn())));
      this.base.checked = value.base;
      this.fit.checked = value.size === 0;
      this.size.value = app.grid.size.height;
      [[this.sort, "sort"], [this.show_, "show"]].forEach(([made, name]) => { made.select.value = value[name]; });
      [[this.down, "down"], [this.heat, "heat"], [this.minus, "minus"]].forEach(([input, name]) => { input.checked = value[name] === "1"; });
      this.down.disabled = value.sort === "";
      this.heat.disabled = value.show === "";
      this.minus.disabled = value.show === "" || value.pin === "";
      const isUsed = { "view-box": value.blocks !== "" || !value.base, "measures-box": value.sort !== "" || value.show !== "",
        "filter-box": value.q !== "" || value.num !== "" || value.status.length > 0 || Object.keys(value.hide).some((id) => value.hide[id].length) };
      Object.entries(isUsed).forEach(([part, isOn]) => app.part(part).classList.toggle("is-used", isOn));
      this.compare.textContent = `compare ${value.marks.length}`;
      this.compare.hidden = value.marks.length < 2;
      const { runs } = app.layout, all = app.model.runs.length;
      this.count.textContent = runs.length === all ? "" : `${runs.length} of ${all} runs pass the filters`;
      app.part("empty").hidden = app.layout.rows.length > 0 && app.layout.cols.length > 0;
    }

    // One choice for every axis that has no place of its own; "any" shows the first that fits.
    showRest() {
      const { app, value } = this, { model } = app;
      const placed = PLACES.map(([place]) => value[place]);
      const isRunPlaced = placed.includes("run");
      const free = [...model.axes.values()].filter((axis) => !placed.includes(axis.id) && axis.values.length > 1 &&
        axis.id !== "shot" && !(axis.kind === "run" && isRunPlaced) && !(axis.kind === "shot" && placed.includes("shot")));
      const key = JSON.stringify(free.map((axis) => axis.id));
      if (key !== this.restKey) {
        this.restKey = key;
        this.choices = free.map((axis) => {
          const made = this.select(axis.title, [...(axis.kind === "epoch" ? [] : [["", "any"]]), ...axis.values.map((one) => [one.key, one.label])],
            (chosen) => this.change({ at: { ...this.value.at, [axis.id]: chosen } }));
          return [axis.id, made];
        });
        this.rest.replaceChildren(...this.choices.map(([, made]) => made.label));
      }
      this.choices.forEach(([id, made]) => { made.select.value = value.at[id] || ""; });
    }

    showRange() {
      const number = this.app.model.data.numbers.find((one) => one.name === this.value.num);
      if (!number) { this.range.textContent = ""; return; }
      let low = Infinity, high = -Infinity;
      const see = (value) => {
        if (typeof value === "number") { low = Math.min(low, value); high = Math.max(high, value); }
        else if (value && typeof value === "object") { Object.values(value).forEach(see); }
      };
      number.values.forEach(see);
      this.range.textContent = `here from ${ob.numberText(low)} to ${ob.numberText(high)}`;
    }
  };
}(window.optbench));
