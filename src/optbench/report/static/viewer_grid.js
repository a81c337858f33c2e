"use strict";
// The table of images. Only what can be seen is in the document, whatever the size of the table.
(function (ob) {
  const { element, seamed, visible } = ob;
  const SCROLLBAR = 18, SMALLEST_FIT = 110, LARGEST_FIT = 300;  // px
  const GAP = 6, EDGE = 4, BLOCK_HEIGHT = 36, AROUND = 400;  // px; AROUND: made before it comes into sight

  // From pale to dark blue as a value grows; a difference is orange below 0 and blue above.
  function heatColour(value, [low, high], isDifference) {
    if (isDifference) {
      const reach = Math.max(Math.abs(low), Math.abs(high)) || 1;
      return `hsl(${value < 0 ? 28 : 215} 85% ${Math.round(92 - 52 * Math.abs(value) / reach)}%)`;
    }
    return `hsl(215 75% ${Math.round(92 - 62 * (high > low ? (value - low) / (high - low) : 0.5))}%)`;
  }

  // Which rows, columns and blocks there are, and which runs are left by the filters.
  ob.Layout = class {
    constructor(model, state) {
      this.model = model;
      this.state = state;
      this.runs = model.runs.filter((run) => this.passes(run));
      this.number = model.data.numbers.find((number) => number.name === state.num) || null;
      this.visible = model.visible(state.hide, this.runs);
      const shots = this.visible.get("shot").map((one) => one.key);
      this.isShown = (shot) => shots.includes(model.nameOf(shot));
      const placed = [state.rows, state.cols, state.blocks, state.slider];
      this.rest = {};
      for (const [id, axis] of model.axes) {
        const keys = this.visible.get(id).map((one) => one.key), at = state.at[id];
        if (id === state.slider) {
          this.rest[id] = keys.includes(at) ? at : this.nearest(axis, keys, at);
        } else if (!placed.includes(id) && !(placed.includes("shot") && axis.kind === "shot")) {
          this.rest[id] = !at || keys.includes(at) ? at || "" : this.nearest(axis, keys, at);
        }
      }
      const kindOf = (id) => model.axes.get(id).kind;
      this.cols = this.levels(state.cols, kindOf(state.rows) !== "run", {});
      this.rows = [];
      const blocks = state.blocks ? this.levels(state.blocks, false, {}) : [{ label: "", choice: {} }];
      for (const block of blocks) {
        this.rows.push(...this.sorted(this.levels(state.rows, true, block.choice).map((row) => ({ ...row, block }))));
      }
    }

    // Of a value that the filters took away the one that is left and stands nearest; the last of those before it.
    nearest(axis, keys, key) {
      const all = axis.values.map((one) => one.key), at = all.indexOf(key);
      const left = keys.map((one) => all.indexOf(one)).sort((one, other) => Math.abs(one - at) - Math.abs(other - at));
      return left.length ? all[left[0]] : key || all[0];
    }

    passes(run) {
      const { state, model } = this;
      if (state.status.includes(run.status)) { return false; }
      for (const [id, keys] of Object.entries(state.hide)) {
        const axis = model.axes.get(id);
        if (axis.kind === "run" && keys.some((key) => model.runHas(run, axis, key))) { return false; }
      }
      const number = model.data.numbers.find((one) => one.name === state.num);
      if (number && number.scope === "run" && !this.inRange(number.values[run.index])) { return false; }
      const text = [run.label, run.name, run.reason, ...run.values].join("\n").toLowerCase();
      return state.q.toLowerCase().split(/\s+/).every((word) => text.includes(word));
    }

    inRange(value) {
      const { min, max } = this.state;
      if (min === "" && max === "") { return true; }
      if (value === null || value === undefined) { return false; }
      return (min === "" || value >= Number(min)) && (max === "" || value <= Number(max));
    }

    // The values of an axis as rows or columns; the base alone comes first where runs are compared.
    levels(id, withBase, within) {
      const { model, state } = this, axis = model.axes.get(id), shown = this.visible.get(id);
      if (axis.kind === "epoch") {
        return shown.filter((one) => state.base || one.key !== "0").map((one) => ({ label: one.label, choice: { [id]: one.key } }));
      }
      if (axis.kind !== "run") { return shown.map((one) => ({ label: one.label, choice: { [id]: one.key } })); }
      const levels = shown.map((one) => ({ label: one.label, choice: { [id]: one.key } })).filter((level) =>
        model.runsFor({ ...this.rest, ...within, ...level.choice }, this.runs).length > 0);
      if (levels.length === 1 && id === "run") { levels[0].run = levels[0].choice.run; }
      if (!withBase || !state.base || !this.visible.get("epoch").some((one) => one.key === "0")) { return levels; }
      const bases = [...new Set(this.runs.filter((run) => run.pictures["0"]).map((run) => run.base))].sort();
      return [...bases.map((base) => ({ label: model.baseLabel(base), choice: { base } })), ...levels];
    }

    // Rows by the mean of a measure over their cells; the base stays first, and what has no value comes last.
    sorted(rows) {
      const { state, model } = this, number = model.numberOf(state.sort);
      if (!number) { return rows; }
      const sign = state.down ? -1 : 1;
      const valued = rows.map((row) => {
        const values = this.cols.map((col) => this.cellOf(row, col)).filter((cell) => cell && cell.epoch > 0).map((cell) => model.number(number, cell)).filter((value) => typeof value === "number");
        return { row, isBase: row.choice.base !== undefined, value: values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null };
      });
      const order = (one, other) => other.isBase - one.isBase || (one.value === null) - (other.value === null) || sign * (one.value - other.value);
      return valued.sort(order).map(({ row }) => row);
    }

    // What the table says of a cell: the chosen measure, or its difference to the reference.
    shownValue(cell) {
      const { state, model } = this, number = model.numberOf(state.show);
      if (!number || cell === null || cell.epoch === 0) { return null; }
      const value = model.number(number, cell), pinned = state.minus && state.pin ? model.cellById(state.pin) : null;
      if (!pinned) { return value; }
      const reference = pinned.epoch > 0 ? model.number(number, pinned) : null;
      return value === null || reference === null ? null : value - reference;
    }

    // The range of what is shown, worked out once for a table.
    shownRange() {
      if (!this.range) {
        let low = Infinity, high = -Infinity;
        this.rows.forEach((row) => this.cols.forEach((col) => {
          const value = this.shownValue(this.cellOf(row, col));
          if (typeof value === "number") { low = Math.min(low, value); high = Math.max(high, value); }
        }));
        this.range = [low, high];
      }
      return this.range;
    }

    cellAt(rowIndex, colIndex) {
      const row = this.rows[rowIndex], col = this.cols[colIndex];
      return row && col ? this.cellOf(row, col) : null;
    }

    cellOf(row, col) {
      return this.model.cellFor({ ...this.rest, ...row.block.choice, ...row.choice, ...col.choice }, this.runs, this.isShown);
    }

    isFiltered(cell) {
      return cell !== null && this.number !== null && this.number.scope !== "run" && cell.epoch > 0 &&
        !this.inRange(this.model.number(this.number, cell));
    }

    keyOf(rowIndex, colIndex) {
      const row = this.rows[rowIndex], col = this.cols[colIndex];
      return row && col ? JSON.stringify([row.block.choice, row.choice, col.choice]) : "";
    }

    // The place of a selected cell; the first cell where it is not in the table any more.
    find(key) {
      let wanted = [];
      try { wanted = JSON.parse(key || "[]"); } catch (error) { /* an address may say anything */ }
      if (!Array.isArray(wanted) || wanted.length !== 3) { return [0, 0]; }
      const [block, row, col] = wanted.map((choice) => JSON.stringify(choice));
      const rowIndex = this.rows.findIndex((one) => JSON.stringify(one.choice) === row && JSON.stringify(one.block.choice) === block);
      const colIndex = this.cols.findIndex((one) => JSON.stringify(one.choice) === col);
      return [Math.max(0, rowIndex), Math.max(0, colIndex)];
    }

    // Width over height of the widest image that can be in each column: all cells are equally high.
    aspects() {
      const { model, state } = this, wide = { ...this.rest };
      for (const id of [state.rows, state.cols, state.blocks]) { delete wide[id]; }
      return this.cols.map((col) => {
        const shots = model.shotsFor({ ...wide, ...(col.choice.base === undefined ? col.choice : {}) }).map((index) => model.data.shots[index]).filter(this.isShown);
        return Math.min(2.5, Math.max(0.4, ...shots.map((shot) => shot.width / shot.height)));
      });
    }
  };

  ob.Grid = class {
    constructor(place, app) {
      this.place = place;
      this.app = app;
      this.body = element("div", { class: "vg-body", role: "presentation" });
      this.head = element("div", { class: "vg-head", role: "row", "aria-rowindex": 1 });
      place.append(this.head, this.body);
      this.rows = new Map();
      place.addEventListener("scroll", () => this.soon());
      place.addEventListener("keydown", (event) => this.onKey(event));
      place.addEventListener("click", (event) => this.onClick(event));
      new ResizeObserver(() => this.soon()).observe(place);
    }

    soon() {
      if (!this.frame) { this.frame = requestAnimationFrame(() => { this.frame = 0; this.fill(); }); }
    }

    show(layout, selected) {
      this.layout = layout;
      [this.rowIndex, this.colIndex] = selected;
      const label = Math.min(230, Math.max(96, Math.round(this.place.clientWidth * 0.2)));
      const aspects = layout.aspects(), across = aspects.reduce((sum, aspect) => sum + aspect, 0);
      // 0 fits the columns into the window, as long as one still sees something.
      const room = this.place.clientWidth - label - EDGE - SCROLLBAR - aspects.length * GAP;
      const height = layout.state.size || Math.min(LARGEST_FIT, Math.max(SMALLEST_FIT, Math.floor(room / Math.max(0.1, across))));
      const widths = aspects.map((aspect) => Math.round(height * aspect));
      this.lefts = [0];
      widths.forEach((width) => this.lefts.push(this.lefts[this.lefts.length - 1] + width + GAP));
      this.size = { widths, height, label };
      this.tops = [];
      let top = 0;
      layout.rows.forEach((row, index) => {
        const isFirst = row.block.label !== "" && (index === 0 || layout.rows[index - 1].block !== row.block);
        row.blockTop = isFirst ? top : null;
        top += isFirst ? BLOCK_HEIGHT : 0;
        this.tops.push(top);
        top += height + GAP;
      });
      this.body.style.height = `${top}px`;
      this.body.style.width = this.head.style.width = `${label + EDGE + this.lefts[widths.length]}px`;
      this.place.style.setProperty("--label", `${label}px`);
      this.place.setAttribute("aria-rowcount", layout.rows.length + 1);
      this.place.setAttribute("aria-colcount", layout.cols.length + 1);
      const structure = JSON.stringify([this.size, layout.cols, layout.rows]);
      if (structure === this.structure) {
        for (const made of this.rows.values()) {
          made.cells.forEach((cell) => this.dress(cell, layout.cellAt(Number(cell.dataset.row), Number(cell.dataset.col))));
        }
      } else {
        const hadFocus = this.body.contains(document.activeElement);
        this.structure = structure;
        this.body.replaceChildren();
        this.rows.clear();
        if (hadFocus) { this.focus(); }
      }
      this.fill();
    }

    range() {
      const { place, size, tops } = this, all = this.isPrinting;
      const from = all ? -1 : place.scrollTop - AROUND;
      const to = all ? 1e9 : place.scrollTop + place.clientHeight + AROUND;
      const rows = [], cols = [];
      let index = 0, high = tops.length;  // the first row that ends below `from`, by halves
      while (index < high) {
        const middle = (index + high) >> 1;
        if (tops[middle] + size.height < from) { index = middle + 1; } else { high = middle; }
      }
      for (; index < tops.length && tops[index] < to; index += 1) { rows.push(index); }
      for (let col = 0; col < this.layout.cols.length; col += 1) {
        const isNear = this.lefts[col + 1] > place.scrollLeft - AROUND / 2 && this.lefts[col] < place.scrollLeft + place.clientWidth + AROUND / 2;
        if (all || isNear) { cols.push(col); }
      }
      // What has the focus stays in the document, however far away one scrolls.
      if (this.rowIndex < tops.length && !rows.includes(this.rowIndex)) { rows.push(this.rowIndex); }
      if (this.colIndex < this.layout.cols.length && !cols.includes(this.colIndex)) { cols.push(this.colIndex); }
      return all ? [rows.slice(0, 200), cols.slice(0, 12)] : [rows, cols.sort((one, other) => one - other)];
    }

    fill() {
      if (!this.layout) { return; }
      const [rows, cols] = this.range(), wanted = new Set(rows);
      this.fillHead(cols);
      for (const [index, made] of this.rows) {
        if (!wanted.has(index)) { made.parts.forEach((part) => part.remove()); this.rows.delete(index); }
      }
      rows.forEach((index) => this.fillRow(index, cols));
    }

    left(col) { return this.size.label + EDGE + this.lefts[col]; }

    fillHead(cols) {
      const { layout, size } = this, { model, state } = layout;
      const title = (id) => model.axes.get(id).title;
      const corner = element("div", { class: "vg-corner", role: "columnheader", "aria-colindex": 1 },
        element("span", {}, `${title(state.rows)} down`), element("span", {}, `${title(state.cols)} across`));
      const heads = cols.map((col) => {
        const made = element("div", { class: "vg-colhead", role: "columnheader", "aria-colindex": col + 2,
          title: layout.cols[col].label }, element("bdi", {}, layout.cols[col].label));
        made.style.left = `${this.left(col)}px`;
        made.style.width = `${size.widths[col]}px`;
        return made;
      });
      this.head.replaceChildren(corner, ...heads);
    }

    fillRow(index, cols) {
      const { layout, size } = this, row = layout.rows[index];
      let made = this.rows.get(index);
      if (!made) {
        const line = element("div", { class: "vg-row", role: "row", "aria-rowindex": index + 2 });
        line.style.top = `${this.tops[index]}px`;
        line.style.height = `${size.height}px`;
        line.append(this.rowHead(row));
        made = { line, cells: new Map(), parts: [line] };
        if (row.blockTop !== null) {
          const block = element("div", { class: "vg-block", role: "presentation" }, element("bdi", {}, row.block.label));
          block.style.top = `${row.blockTop}px`;
          made.parts.push(block);
          this.body.append(block);
        }
        this.body.append(line);
        this.rows.set(index, made);
      }
      const wanted = new Set(cols);
      for (const [col, cell] of made.cells) { if (!wanted.has(col)) { cell.remove(); made.cells.delete(col); } }
      for (const col of cols) {
        if (!made.cells.has(col)) {
          const cell = this.makeCell(index, col);
          made.cells.set(col, cell);
          made.line.append(cell);
        }
      }
    }

    rowHead(row) {
      const run = row.choice.run ? this.layout.model.runByName.get(row.choice.run) : null;
      const head = element("div", { class: "vg-rowhead", role: "rowheader", "aria-colindex": 1, title: row.label,
        "aria-label": row.block.label ? `${row.block.label}: ${row.label}` : null },
        run ? this.app.swatch(run) : null, element("bdi", {}, seamed(row.label)));
      if (run && run.status !== "done") { head.append(element("span", { class: `status ${run.status}` }, run.status.replaceAll("_", " "))); }
      return head;
    }

    makeCell(rowIndex, colIndex) {
      const { layout, size } = this, cell = layout.cellAt(rowIndex, colIndex);
      const made = element("div", { class: "vg-cell", role: "gridcell", tabindex: "-1", "aria-colindex": colIndex + 2 });
      made.style.left = `${this.left(colIndex)}px`;
      made.style.width = `${size.widths[colIndex]}px`;
      made.dataset.row = rowIndex;
      made.dataset.col = colIndex;
      this.dress(made, cell);
      return made;
    }

    // Put into a cell what it shows now; an image that stays the same is left alone.
    dress(made, cell) {
      const { layout, size, app } = this, { model, state } = layout;
      const isOut = layout.isFiltered(cell), hasPicture = cell !== null && cell.letter === "1" && !isOut;
      const isHere = Number(made.dataset.row) === this.rowIndex && Number(made.dataset.col) === this.colIndex;
      made.tabIndex = isHere ? 0 : -1;
      made.setAttribute("aria-selected", String(isHere));
      const id = cell ? model.idOf(cell) : "";
      made.classList.toggle("pinned", id !== "" && id === state.pin);
      made.classList.toggle("marked", state.marks.includes(id));
      const old = made.firstChild;
      const image = hasPicture && old && old.tagName === "IMG" ? old : null;
      if (image) { this.aim(image, cell); }
      const parts = [image || (hasPicture ? this.picture(cell) : this.tile(cell, isOut))];
      if (cell) { parts.push(...this.badges(cell, id)); }
      while (made.lastChild && made.lastChild !== image) { made.lastChild.remove(); }
      made.append(...parts.slice(image ? 1 : 0));
      made.style.height = `${size.height}px`;
    }

    picture(cell) {
      const image = element("img", { decoding: "async", draggable: "false" });
      if (!this.isPrinting) { image.loading = "lazy"; }
      image.addEventListener("error", () => image.replaceWith(this.words("!", "gone", "its thumbnail is missing")));
      this.aim(image, cell);
      return image;
    }

    // Where the image stays the same nothing is loaded, and where it changes the old one stays until then.
    aim(image, cell) {
      const address = this.layout.model.address(cell, true);
      image.alt = visible(this.layout.model.describe(cell));
      if (image.getAttribute("src") !== address) { image.src = address; }
    }

    tile(cell, isOut) {
      if (isOut) { return this.words("-", "filtered out", `${this.layout.number.title} outside the range`); }
      const [symbol, word, reason] = this.layout.model.absence(cell);
      return this.words(symbol, word, reason);
    }

    words(symbol, word, reason) {
      return element("div", { class: "vg-absent", title: reason || word }, element("b", { "aria-hidden": "true" }, symbol),
        element("span", {}, word), reason ? element("small", {}, element("bdi", {}, reason.slice(0, 200))) : null);
    }

    badges(cell, id) {
      const { state, model } = this.layout, { scores } = this.app, entry = scores.get(scores.idOf(scores.cellEntry(cell, false))), made = [];
      const mark = (kind, text, words) => made.push(element("span", { class: `vg-badge ${kind}`, title: words }, text));
      const value = this.layout.shownValue(cell), number = model.numberOf(state.show);
      if (typeof value === "number") {
        const isDifference = Boolean(state.minus && state.pin);
        mark("value", `${isDifference && value > 0 ? "+" : ""}${ob.measureText(value, number.unit)}`, `${number.title}${isDifference ? ", minus the reference" : ""}`);
        if (state.heat) {
          const strip = element("span", { class: "vg-heat", "aria-hidden": "true" });
          strip.style.background = heatColour(value, this.layout.shownRange(), isDifference);
          made.push(strip);
        }
      }
      if (entry && entry.score !== null) { mark("score", String(entry.score), "your score"); }
      if (entry && entry.note) { mark("has-note", "note", entry.note.slice(0, 300)); }
      if (id === state.pin) { mark("pin", "reference", "the others are compared with this one"); }
      if (state.marks.includes(id)) { mark("mark", String(state.marks.indexOf(id) + 1), "marked for comparing"); }
      if (cell.others > 0) { mark("others", `1 of ${cell.others + 1}`, "more than one image has these settings: this is the first"); }
      return made;
    }

    focus() {
      this.reveal();
      this.fill();
      const made = this.rows.get(this.rowIndex);
      const cell = made && made.cells.get(this.colIndex);
      if (cell) { cell.focus({ preventScroll: true }); }
    }

    reveal() {
      const { place, size } = this, top = this.tops[this.rowIndex], left = this.lefts[this.colIndex], width = size.widths[this.colIndex];
      if (top === undefined) { return; }
      const room = place.clientHeight - this.head.offsetHeight, across = place.clientWidth - size.label;
      if (top < place.scrollTop) { place.scrollTop = top - GAP; }
      if (top + size.height > place.scrollTop + room) { place.scrollTop = Math.min(top, top + size.height - room + GAP); }
      if (left < place.scrollLeft) { place.scrollLeft = left; }
      if (left + width > place.scrollLeft + across) { place.scrollLeft = left + width - across + GAP; }
    }

    onClick(event) {
      const made = event.target.closest(".vg-cell");
      if (!made) { return; }
      this.app.select(Number(made.dataset.row), Number(made.dataset.col));
      if (event.shiftKey || event.ctrlKey || event.metaKey) { this.app.mark(); } else { this.app.openLarge(); }
    }

    onKey(event) {
      if (event.altKey || !event.target.closest(".vg-cell")) { return; }
      const lastRow = this.layout.rows.length - 1, lastCol = this.layout.cols.length - 1;
      const page = Math.max(1, Math.floor(this.place.clientHeight / (this.size.height + GAP)));
      const all = event.ctrlKey || event.metaKey;
      const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
        PageUp: [-page, 0], PageDown: [page, 0], Home: [all ? -1e9 : 0, -1e9], End: [all ? 1e9 : 0, 1e9] };
      const move = moves[event.key];
      if (!move) { return; }
      event.preventDefault();
      const within = (value, last) => Math.min(Math.max(value, 0), Math.max(0, last));
      this.app.select(within(this.rowIndex + move[0], lastRow), within(this.colIndex + move[1], lastCol));
    }
  };
}(window.optbench));
