"use strict";
// What is shown, kept in the page's address, so that links, reload and the back button bring it back.
(function (ob) {
  const WORDS = ["rows", "cols", "blocks", "slider", "q", "num", "min", "max", "sel", "pin", "mode", "sort", "down", "show", "heat", "minus"];
  const LISTS = ["marks", "open", "status"];
  const MOST_COLUMNS = 12;
  const MODES = ["side", "wipe", "flicker", "difference"];

  ob.State = class {
    constructor(model, render) {
      this.model = model;
      this.render = render;
      this.stored = `optbench view ${model.data.id}`;
      // A link to another part of the page takes the address away, and not what is shown.
      this.value = this.read(this.isOurs(location.hash) ? location.hash : this.remembered());
      this.remember();
      this.settled = location.hash;
      window.addEventListener("popstate", () => {
        if (this.isOurs(location.hash) || location.hash === "") {
          this.value = this.read(location.hash);
          this.settled = location.hash;
          this.remember();
          this.render();
        }
      });
    }

    isOurs(hash) { return hash.startsWith("#v=1"); }

    remembered() {
      try { return sessionStorage.getItem(this.stored) || ""; } catch (error) { return ""; }
    }

    remember() {
      try { sessionStorage.setItem(this.stored, this.hash()); } catch (error) { /* storage is switched off */ }
    }

    defaults() {
      const { axes, data } = this.model;
      // The last epoch of which there is anything to see: of a running sweep not the last that was asked for.
      const at = { epoch: String(Math.max(0, ...data.runs.flatMap((run) => Object.keys(run.pictures).map(Number)))) };
      for (const axis of axes.values()) {
        if (axis.kind === "shot" && !["shot", "size"].includes(axis.id)) { at[axis.id] = axis.values[0].key; }
      }
      // All images of a run in one row, where they fit; else those of one prompt.
      const cols = data.shots.length <= MOST_COLUMNS && axes.get("prompt").values.length > 1 ? "shot" : "seed";
      return { rows: "run", cols, blocks: "", slider: "epoch", at, hide: {}, status: [], q: "", num: "",
        min: "", max: "", sort: "", down: "", show: "", heat: "", minus: "", size: 0, base: true, sel: "", pin: "", marks: [], open: [], mode: "side" };
    }

    read(hash) {
      const value = this.defaults();
      if (!this.isOurs(hash)) { return value; }
      const said = new URLSearchParams(hash.slice(1));
      for (const word of WORDS) { if (said.has(word)) { value[word] = said.get(word); } }
      for (const list of LISTS) { if (said.has(list)) { value[list] = said.getAll(list).slice(0, 8); } }
      for (const [id, axis] of this.model.axes) {
        const known = new Set(axis.values.map((one) => one.key));
        const at = said.get(`at.${id}`);
        if (at !== null && (at === "" || known.has(at))) { value.at[id] = at; }
        const hidden = said.getAll(`hide.${id}`).filter((key) => known.has(key));
        if (hidden.length) { value.hide[id] = hidden; }
      }
      const size = Number(said.get("size"));
      if (size >= 48 && size <= 600) { value.size = size; }
      value.base = said.get("base") !== "0";
      return this.repaired(value);
    }

    // An address may say anything, and names of an older report: what does not fit is left out.
    repaired(value) {
      const { axes } = this.model, first = this.defaults();
      for (const place of ["rows", "cols", "slider"]) { if (!axes.has(value[place])) { value[place] = first[place]; } }
      if (!axes.has(value.blocks)) { value.blocks = ""; }
      if (value.rows === value.cols) { value.cols = ["seed", "epoch", "run"].find((id) => id !== value.rows); }
      if ([value.rows, value.cols].includes(value.blocks)) { value.blocks = ""; }
      if ([value.rows, value.cols, value.blocks].includes(value.slider)) {
        value.slider = ["epoch", "prompt", "seed", "run"].find((id) => ![value.rows, value.cols, value.blocks].includes(id));
      }
      for (const place of ["num", "sort", "show"]) { if (!this.model.numberOf(value[place])) { value[place] = ""; } }
      if (!MODES.includes(value.mode)) { value.mode = "side"; }
      const isCell = (id) => this.model.cellById(id) !== null;
      value.marks = value.marks.filter(isCell).slice(0, 4);
      value.open = value.open.filter(isCell).slice(0, 4);
      if (!isCell(value.pin)) { value.pin = ""; }
      return value;
    }

    hash() {
      const first = this.defaults(), said = new URLSearchParams({ v: "1" });
      for (const word of WORDS) { if (this.value[word] !== first[word]) { said.set(word, this.value[word]); } }
      for (const list of LISTS) { this.value[list].forEach((one) => said.append(list, one)); }
      for (const [id, key] of Object.entries(this.value.at)) {
        if (key !== (first.at[id] === undefined ? "" : first.at[id])) { said.set(`at.${id}`, key); }
      }
      for (const [id, keys] of Object.entries(this.value.hide)) { keys.forEach((key) => said.append(`hide.${id}`, key)); }
      if (this.value.size !== first.size) { said.set("size", this.value.size); }
      if (!this.value.base) { said.set("base", "0"); }
      return `#${said}`;
    }

    // A change that is still going on (dragging, playing, moving about) leaves no step to go back to.
    change(patch, isPassing) {
      Object.assign(this.value, patch);
      this.value = this.repaired(this.value);
      this.render();
      this.remember();
      clearTimeout(this.timer);
      const hash = this.hash();
      if (isPassing) {
        // Browsers refuse more than a few hundred changes in half a minute.
        this.timer = setTimeout(() => this.write(hash, false), 150);
      } else if (hash !== this.settled) {
        this.write(this.settled, false);
        this.write(hash, true);
        this.settled = hash;
      }
    }

    write(hash, isStep) {
      if (hash === location.hash && !isStep) { return; }
      const address = hash || location.pathname + location.search;
      try {
        if (isStep) { history.pushState(null, "", address); } else { history.replaceState(null, "", address); }
      } catch (error) {
        console.warn("the address could not be kept", error);
      }
    }
  };
}(window.optbench));
