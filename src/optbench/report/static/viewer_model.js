"use strict";
window.optbench = {};
// What can be chosen, and which image a choice means. Knows nothing of the page.
(function (ob) {
  const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f]/g;

  // Text as people see it: control characters as their symbols, never as nothing.
  ob.visible = function (value) {
    return String(value).replace(HIDDEN, (letter) =>
      String.fromCharCode(letter === "\u007f" ? 0x2421 : 0x2400 + letter.charCodeAt(0)));
  };

  // An element; strings among the children become text, so that no word of anyone is ever HTML.
  ob.element = function (tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value === null || value === undefined || value === false) { continue; }
      made.setAttribute(name, value === true ? "" : ob.visible(value));
    }
    for (const child of children.flat()) {
      if (child === null || child === undefined) { continue; }
      made.append(typeof child === "object" ? child : ob.visible(child));
    }
    return made;
  };

  // A label that may end a line behind the marks between the words of a name.
  ob.seamed = function (label) {
    return label.split(/(?<=[a-z][._/-])/i).flatMap((piece) => [piece, ob.element("wbr")]);
  };

  ob.numberText = function (value) {
    if (value === null || value === undefined) { return "-"; }
    const size = Math.abs(value);
    if (size >= 1e5 || (size > 0 && size < 1e-3)) { return value.toExponential(2); }
    return String(Number(value.toPrecision(4)));
  };

  // A number with its unit, as people read it.
  ob.measureText = function (value, unit) {
    if (value === null || value === undefined) { return "-"; }
    if (unit === "B") {
      const units = ["B", "KiB", "MiB", "GiB", "TiB"], step = Math.min(units.length - 1, Math.floor(Math.log2(Math.max(1, Math.abs(value))) / 10));
      return `${Number((value / 1024 ** step).toPrecision(3))} ${units[step]}`;
    }
    if (unit === "s") {
      const size = Math.abs(value);
      if (size >= 100) { return `${Math.floor(size / 3600) ? `${value < 0 ? "-" : ""}${Math.floor(size / 3600)} h ` : value < 0 ? "-" : ""}${Math.round(size % 3600 / 60)} min`; }
      return size < 1 && size > 0 ? `${Number((1000 * value).toPrecision(3))} ms` : `${Number(value.toPrecision(3))} s`;
    }
    return `${ob.numberText(value)}${unit ? ` ${unit}` : ""}`;
  };

  ob.Model = class {
    constructor(data) {
      this.data = data;
      this.runs = data.runs;
      this.runByName = new Map(data.runs.map((run) => [run.name, run]));
      data.runs.forEach((run, index) => { run.index = index; });
      this.axes = new Map();
      this.addRunAxes();
      this.addAxis("epoch", "epoch", "epoch", data.epochs.map((epoch) =>
        [String(epoch), epoch === 0 ? "base, no LoRA" : `epoch ${epoch}`]));
      const shots = (of) => [...new Set(data.shots.map(of))].map((key) => [key, key]);
      this.addAxis("shot", "prompt and seed", "shot", data.shots.map((shot) => [this.nameOf(shot), `${shot.prompt}, seed ${shot.seed}`]));
      this.addAxis("prompt", "prompt", "shot", shots((shot) => shot.prompt));
      this.addAxis("seed", "image seed", "shot", shots((shot) => String(shot.seed)), "seed ");
      this.addAxis("size", "image size", "shot", shots(this.sizeOf));
      if (this.axes.get("size").values.length < 2) { this.axes.delete("size"); }
    }

    addRunAxes() {
      this.addAxis("run", "run", "run", this.runs.map((run) => [run.name, run.label]));
      const settings = [...new Set(this.runs.map((run) => run.setting))].filter((setting) => setting !== null);
      if (settings.length < this.runs.length) {  // several seeds of one setting
        this.addAxis("setting", "setting", "run", settings.map((setting) => [String(setting), this.data.settings[setting]]));
      }
      this.data.factors.forEach((factor, index) => {
        const found = this.runs.map((run) => run.values[index]);
        const values = [...new Set([...factor.values, ...found])].filter((value) => found.includes(value));
        const axis = this.addAxis(`set.${factor.name}`, factor.name, "run", values.map((value) => [value, value]));
        axis.factor = index;
      });
    }

    addAxis(id, title, kind, values, prefix) {
      const axis = { id, title, kind, values: values.map(([key, label]) => ({ key, label: (prefix || "") + label })) };
      this.axes.set(id, axis);
      return axis;
    }

    sizeOf(shot) { return `${shot.width}x${shot.height}`; }

    nameOf(shot) { return `${shot.prompt} ${this.sizeOf(shot)} ${shot.seed}`; }

    runHas(run, axis, key) {
      if (axis.id === "setting") { return String(run.setting) === key; }
      return axis.id === "run" ? run.name === key : run.values[axis.factor] === key;
    }

    shotHas(shot, axis, key) {
      if (axis.id === "shot") { return this.nameOf(shot) === key; }
      if (axis.id === "prompt") { return shot.prompt === key; }
      return axis.id === "seed" ? String(shot.seed) === key : this.sizeOf(shot) === key;
    }

    // The values of every axis that the filters {axis id: [hidden keys]} leave, given the runs that pass them. An axis that
    // is made of others, or made of what others take away, has the filters of those too.
    visible(hide, runs) {
      const shots = this.data.shots.filter((shot) => Object.entries(hide).every(([id, keys]) =>
        this.axes.get(id).kind !== "shot" || !keys.some((key) => this.shotHas(shot, this.axes.get(id), key))));
      const left = new Map();
      for (const [id, axis] of this.axes) {
        const hidden = hide[id] || [];
        const isLeft = { run: (key) => runs.some((run) => this.runHas(run, axis, key)), shot: (key) => shots.some((shot) => this.shotHas(shot, axis, key)),
          epoch: () => true }[axis.kind];
        left.set(id, axis.values.filter((one) => !hidden.includes(one.key) && isLeft(one.key)));
      }
      return left;
    }

    // Runs and shots that fit {axis id: key}; an axis that is absent or "" fits all.
    runsFor(choice, runs) {
      const wanted = Object.entries(choice).filter(([id, key]) => key !== "" && this.axes.get(id).kind === "run");
      return (runs || this.runs).filter((run) =>
        wanted.every(([id, key]) => this.runHas(run, this.axes.get(id), key)));
    }

    shotsFor(choice) {
      const wanted = Object.entries(choice).filter(([id, key]) => key !== "" && this.axes.get(id).kind === "shot");
      return this.data.shots.map((shot, index) => index).filter((index) =>
        wanted.every(([id, key]) => this.shotHas(this.data.shots[index], this.axes.get(id), key)));
    }

    letter(run, epoch, shotIndex) {
      const letters = run.pictures[String(epoch)];
      return letters ? letters[shotIndex] : "0";
    }

    // The cell that a choice means: the first of the runs and shots that has its image.
    cellFor(choice, runs, isShown) {
      const base = choice.base;
      const plain = { ...choice };
      delete plain.base;
      const epoch = base === undefined ? Number(choice.epoch) : 0;
      const found = base === undefined ? this.runsFor(plain, runs) : this.runs.filter((run) => run.base === base);
      const shots = this.shotsFor(plain).filter((index) => !isShown || isShown(this.data.shots[index]));
      if (found.length === 0 || shots.length === 0) { return null; }
      const wanted = (letter) => {
        for (const run of found) {
          for (const shot of shots) {
            if (this.letter(run, epoch, shot) === letter) { return this.cell(run, epoch, shot); }
          }
        }
        return null;
      };
      const cell = wanted("1") || wanted("x") || this.cell(found[0], epoch, shots[0]);
      cell.others = base === undefined ? found.length * shots.length - 1 : 0;
      return cell;
    }

    cell(run, epoch, shotIndex) {
      return { run, epoch, shotIndex, shot: this.data.shots[shotIndex], letter: this.letter(run, epoch, shotIndex), others: 0 };
    }

    // A cell as the text that addresses and scores know it by.
    idOf(cell) {
      const { prompt, width, height, seed } = cell.shot;
      return JSON.stringify([cell.run.name, cell.epoch, prompt, seed, width, height]);
    }

    cellById(id) {
      try {
        const [name, epoch, prompt, seed, width, height] = JSON.parse(id);
        const run = this.runByName.get(name);
        const shot = this.data.shots.findIndex((one) =>
          one.prompt === prompt && one.seed === seed && one.width === width && one.height === height);
        return run && shot >= 0 && this.data.epochs.includes(epoch) ? this.cell(run, epoch, shot) : null;
      } catch (error) {
        return null;
      }
    }

    baseLabel(base) {
      const { bases } = this.data;
      return bases.length > 1 ? `${bases[base]}, no LoRA` : "base, no LoRA";
    }

    runLabel(cell) { return cell.epoch === 0 ? this.baseLabel(cell.run.base) : cell.run.label; }

    describe(cell) {
      const when = cell.epoch === 0 ? "" : `, epoch ${cell.epoch}`;
      const size = this.axes.has("size") ? `, ${this.sizeOf(cell.shot)}` : "";
      return `${this.runLabel(cell)}${when}, prompt ${cell.shot.prompt}, seed ${cell.shot.seed}${size}`;
    }

    // Why there is no image, as [a symbol, a word, the rest].
    absence(cell) {
      if (cell === null) { return ["-", "no such run", "no run has these settings"]; }
      if (cell.letter === "x") { return ["!", "damaged", "the image cannot be read"]; }
      if (cell.epoch === 0) { return ["-", "not rendered", "no image of the base alone"]; }
      const words = { done: ["-", "not rendered"], running: ["...", "pending"], pending: ["...", "pending"],
        diverged: ["!", "diverged"], out_of_memory: ["!", "out of memory"], failed: ["!", "failed"],
        skipped: ["/", "skipped"], interrupted: ["||", "interrupted"] };
      const [symbol, word] = words[cell.run.status] || ["?", cell.run.status];
      return [symbol, word, cell.run.reason.split("\n")[0]];
    }

    address(cell, isSmall) {
      const { prompt, width, height, seed } = cell.shot;
      const name = encodeURIComponent(`${prompt}-${width}x${height}-s${seed}`);
      const epoch = `epoch-${String(cell.epoch).padStart(4, "0")}`;
      return `${cell.run.folder}/${isSmall ? "thumbs" : "images"}/${epoch}/${name}.${isSmall ? "webp" : "png"}`;
    }

    prompt(cell) {
      const place = cell.run.prompts.find((index) => this.data.prompts[index].name === cell.shot.prompt);
      return place === undefined ? null : this.data.prompts[place];
    }

    // The training image that is nearest by copy distance, or null where that is not known or not shown.
    nearest(cell) {
      const { nearest } = this.data, ofRun = nearest ? nearest.of[cell.run.index] : undefined, ofEpoch = ofRun && ofRun[String(cell.epoch)];
      const place = ofEpoch ? ofEpoch[cell.shotIndex] : null;
      return place === null || place === undefined ? null : nearest.images[place];
    }

    numberOf(name) { return this.data.numbers.find((number) => number.name === name) || null; }

    // A number of the data for a cell, or null where it is not known.
    number(number, cell) {
      const value = number.values[cell.run.index];
      if (value === null || value === undefined || number.scope === "run") { return value === undefined ? null : value; }
      const ofEpoch = value[String(cell.epoch)];
      if (ofEpoch === undefined || number.scope === "epoch") { return ofEpoch === undefined ? null : ofEpoch; }
      return ofEpoch[cell.shotIndex];
    }
  };
}(window.optbench));
