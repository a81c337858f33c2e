"use strict";
// The viewer as a whole: its controls, its keys, and what happens after every change.
(function (ob) {
  const { element, visible } = ob;
  const SECONDS_A_PICTURE = 0.8;
  const HELP = [["arrow keys, Page Up and Down, Home, End", "go through the table"], ["Enter, or click", "open the image large"], ["c", "compare with the reference"],
    ["x, or Shift and click", "mark for comparing, up to four"], ["v", "compare the marked images"], ["w, f, d, s while comparing", "wipe, flicker, difference, side by side"], ["left and right arrow, 1, 0 in a large image", "next image, 1:1, fit"],
    ["p", "set or clear the reference"], [", and .", "slider back and forward"], ["l", "play and stop"], ["+ and -", "larger and smaller images"], ["/", "go to the filter"],
    ["r and n", "go to the score and to the note"], ["b", "vote for two minutes"], ["Esc", "close what is open"], ["?", "this list"]];

  ob.App = class {
    constructor(data, root) {
      this.model = new ob.Model(data);
      this.root = root;
      this.part = (name) => root.querySelector(`[data-part="${name}"]`);
      this.scores = new ob.Scores(this.model, () => this.render());
      this.state = new ob.State(this.model, () => this.render());
      root.hidden = false;
      this.grid = new ob.Grid(this.part("grid"), this);
      this.curves = new ob.Curves(this.part("curves"), this);
      this.form = new ob.ScoreForm(this.part("scores"), this);
      this.compare = new ob.Compare(this.part("compare"), this);
      this.voting = new ob.VoteView(this.part("vote"), { model: this.model, scores: this.scores, afterwards: ob.AFTERWARDS, save: () => this.form.save(true),
        closed: () => { this.render(); this.grid.focus(); } });
      this.controls = new ob.Controls(this);
      this.makeHelp();
      root.addEventListener("keydown", (event) => this.onKey(event));
      document.addEventListener("keydown", (event) => {
        if (event.key === "?" && !event.target.closest("input, textarea, select, dialog")) { this.part("help").showModal(); }
      });
      window.addEventListener("beforeprint", () => this.forPrint(true));
      window.addEventListener("afterprint", () => this.forPrint(false));
      window.addEventListener("resize", () => this.render());
      this.render();
    }

    render() {
      this.layout = new ob.Layout(this.model, this.state.value);
      const place = this.layout.find(this.state.value.sel);
      this.grid.show(this.layout, place);
      this.cell = this.layout.cellAt(...place);
      ob.showDetails(this.part("details"), this.cell, this);
      this.curves.show(this.cell, this.layout);
      this.form.show(this.cell);
      this.controls.show();
      this.compare.show();
    }

    select(row, col) {
      this.state.change({ sel: this.layout.keyOf(row, col) }, true);
      this.grid.focus();
    }

    walk(rows, cols) {
      const row = this.grid.rowIndex + rows, col = this.grid.colIndex + cols;
      const cell = this.layout.cellAt(row, col);
      if (cell) { this.state.change({ sel: this.layout.keyOf(row, col), open: [this.model.idOf(cell)] }, true); }
    }

    // The next image in reading order, over what has none.
    walkAlong(step) {
      const { rows, cols } = this.layout, all = rows.length * cols.length;
      for (let at = this.grid.rowIndex * cols.length + this.grid.colIndex + step; at >= 0 && at < all; at += step) {
        const row = Math.floor(at / cols.length), col = at % cols.length, cell = this.layout.cellAt(row, col);
        if (cell && cell.letter === "1" && !this.layout.isFiltered(cell)) {
          this.state.change({ sel: this.layout.keyOf(row, col), open: [this.model.idOf(cell)] }, true);
          this.grid.reveal();
          return;
        }
      }
    }

    // Which image of the table it is that one has before oneself.
    placeText() {
      const { rows, cols } = this.layout;
      return `Image ${this.grid.rowIndex * cols.length + this.grid.colIndex + 1} of ${rows.length * cols.length}`;
    }

    // From a curve: the cell of that run after that epoch, with the shot of the selected one.
    goTo(run, epoch) {
      const { value } = this.state, { model } = this, at = { ...value.at, epoch: String(epoch) };
      const placed = [value.rows, value.cols, value.blocks];
      if (!placed.some((id) => id && this.kindOf(id) === "run")) { at.run = run.name; }
      const shot = this.cell ? this.cell.shot : model.data.shots[0];
      const fits = (choice) => Object.entries(choice).every(([id, key]) => {
        if (id === "base") { return false; }
        const axis = model.axes.get(id);
        if (axis.kind === "run") { return model.runHas(run, axis, key); }
        return axis.kind === "epoch" ? key === String(epoch) : model.shotHas(shot, axis, key);
      });
      const row = this.layout.rows.findIndex((one) => fits({ ...one.block.choice, ...one.choice }));
      const col = this.layout.cols.findIndex((one) => fits(one.choice));
      this.state.change({ at, sel: this.layout.keyOf(Math.max(0, row), Math.max(0, col)) });
      this.grid.reveal();
    }

    kindOf(id) { return this.model.axes.get(id).kind; }

    here() { return this.cell && this.model.idOf(this.cell); }

    mark() {
      const id = this.here(), { marks } = this.state.value;
      if (!id) { return; }
      this.state.change({ marks: marks.includes(id) ? marks.filter((one) => one !== id) : [...marks, id].slice(-4) });
    }

    pin() { if (this.here()) { this.state.change({ pin: this.state.value.pin === this.here() ? "" : this.here() }); } }

    openLarge() {
      const id = this.here(), { pin } = this.state.value;
      if (id) { this.state.change({ open: [id] }); }
    }

    openWithReference() {
      const { pin } = this.state.value, id = this.here();
      if (id && pin && pin !== id) { this.state.change({ open: [pin, id] }); }
    }

    openMarked() {
      const { marks } = this.state.value;
      if (marks.length > 1) { this.state.change({ open: marks }); } else { this.openLarge(); }
    }

    // The epoch that is shown; of the last one, or the base, which all share, each run's own last.
    startVote() {
      this.stop();
      const at = Number(this.layout.rest.epoch || this.state.value.at.epoch), last = this.model.data.epochs[this.model.data.epochs.length - 1];
      this.voting.start(this.layout.runs, at > 0 && at < last ? at : 0);
    }

    // One value on or back; stays at the ends unless it plays.
    slide(step, isRound) {
      const { slider, at } = this.state.value, keys = this.layout.visible.get(slider).map((one) => one.key);
      if (keys.length === 0) { return; }
      const now = keys.indexOf(this.layout.rest[slider]);
      const then = isRound ? (now + step + keys.length) % keys.length : Math.min(keys.length - 1, Math.max(0, now + step));
      this.state.change({ at: { ...at, [slider]: keys[then] } }, true);
    }

    play() {
      if (this.timer) { this.stop(); return; }
      this.timer = setInterval(() => this.slide(1, true), SECONDS_A_PICTURE * 1000);
      this.controls.show();
    }

    stop() {
      clearInterval(this.timer);
      this.timer = 0;
      this.controls.show();
    }

    resize(factor) { this.state.change({ size: Math.min(600, Math.max(48, Math.round(this.grid.size.height * factor))) }, true); }

    onKey(event) {
      const { target, key } = event;
      if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input:not([type=range]):not([type=checkbox]):not([type=radio]), textarea, select, dialog")) { return; }
      const isInTable = target.closest(".vg-cell") !== null;
      const acts = { ",": () => this.slide(-1), ".": () => this.slide(1), l: () => this.play(), x: () => this.mark(), v: () => this.openMarked(),
        p: () => this.pin(), c: () => this.openWithReference(), b: () => this.startVote(), "/": () => this.controls.goToFilter(), r: () => this.form.number.focus(), n: () => this.form.note.focus(),
        "+": () => this.resize(1.2), "=": () => this.resize(1.2), "-": () => this.resize(1 / 1.2) };
      if (isInTable) { acts.Enter = acts[" "] = () => this.openLarge(); }
      if (acts[key]) {
        event.preventDefault();
        acts[key]();
      }
    }

    swatch(run) {
      const NAMES = "http://www.w3.org/2000/svg";
      const picture = document.createElementNS(NAMES, "svg"), line = document.createElementNS(NAMES, "line");
      for (const [name, value] of Object.entries({ width: 26, height: 10, class: "swatch", "aria-hidden": "true" })) { picture.setAttribute(name, value); }
      for (const [name, value] of Object.entries({ x1: 1, x2: 25, y1: 5, y2: 5, stroke: run.colour, "stroke-width": 3, "stroke-dasharray": run.dash })) { line.setAttribute(name, value); }
      picture.append(line);
      return picture;
    }

    makeHelp() {
      const dialog = this.part("help"), close = element("button", { type: "button" }, "close");
      close.addEventListener("click", () => dialog.close());
      dialog.append(element("h2", {}, "Keys"), element("p", { class: "hint" }, "They work while the table or a control of the viewer has the focus."),
        element("table", {}, element("tbody", {}, HELP.map(([keys, words]) => element("tr", {}, element("th", { scope: "row" }, element("kbd", {}, keys)), element("td", {}, words))))), close);
    }

    forPrint(isPrinting) {
      this.grid.isPrinting = isPrinting;
      this.grid.structure = "";
      this.render();
    }
  };

  function start() {
    const root = document.getElementById("viewer"), data = window.optbenchReport;
    if (!root) { return; }
    const problem = !data ? "The file data.js was not found beside this page, so there are no images to choose from: copy the whole folder, or rebuild the report."
      : data.schema !== 2 ? `data.js has schema ${data.schema} and this page reads 2: rebuild the report.` : "";
    if (problem) {
      root.before(element("p", { class: "note" }, problem));
    } else if (data.shots.length && data.epochs.length) {
      ob.app = new ob.App(data, root);
      // A link to a view arrives at it, wherever on the page that is.
      const [arrival] = performance.getEntriesByType("navigation");
      if (ob.app.state.isOurs(location.hash) && !(arrival && arrival.type === "reload")) {
        const arrive = () => root.scrollIntoView({ behavior: "instant" });
        arrive();
        window.addEventListener("load", arrive);
      }
    }
  }
  start();
}(window.optbench));
