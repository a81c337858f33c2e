"use strict";
// Up to four images at full size, moved and enlarged together; two of them on top of each other.
(function (ob) {
  const { element } = ob;
  const MODES = [["side", "side by side", "s"], ["wipe", "wipe", "w"], ["flicker", "flicker", "f"], ["difference", "difference", "d"]];
  const LARGEST = 16, STEP = 1.25, SWIPE = 45;  // px

  ob.Compare = class {
    constructor(dialog, app) {
      this.dialog = dialog;
      this.app = app;
      this.view = { zoom: 1, x: 0, y: 0 };  // x and y in parts of a pane
      this.pair = [0, 1];
      this.title = element("h2", { id: "compare-title" });
      this.modes = MODES.map(([mode, words, key]) => {
        const button = element("button", { type: "button", "aria-pressed": "false", title: `key ${key}` }, words);
        button.addEventListener("click", () => this.setMode(mode));
        return [mode, button];
      });
      this.controls = element("div", { class: "vc-controls" });
      this.stage = element("div", { class: "vc-stage" });
      this.hint = element("p", { class: "hint vc-hint", "aria-live": "polite" });
      this.info = element("aside", { class: "vc-info", "aria-label": "about what is shown" });
      const button = (words, act, title, label) => {
        const made = element("button", { type: "button", title, "aria-label": label || null }, words);
        made.addEventListener("click", act);
        return made;
      };
      this.walks = [button("\u25c0", () => this.step(-1), "key left arrow, or swipe", "previous image"), button("\u25b6", () => this.step(1), "key right arrow, or swipe", "next image")];
      this.actual = button("1:1", () => this.toggleActual(), "one pixel of the image is one of the screen; key 1");
      const close = element("button", { type: "button", class: "vc-close", title: "key Esc" }, "close");
      close.addEventListener("click", () => this.dialog.close());
      dialog.append(element("div", { class: "vc-head" }, this.title,
        element("div", { role: "group", "aria-label": "how to compare", class: "vc-modes" }, this.modes.map(([, made]) => made)),
        element("div", { class: "vc-modes" }, this.walks, this.actual), this.controls, close), element("div", { class: "vc-main" }, this.stage, this.info), this.hint);
      dialog.addEventListener("close", () => {
        this.stopFlicker();
        if (app.state.value.open.length) { app.state.change({ open: [] }); }
        app.grid.focus();
      });
      dialog.addEventListener("keydown", (event) => this.onKey(event));
      this.listen();
    }

    // Show what the state says; called after every change.
    show() {
      const { open, mode } = this.app.state.value;
      if (open.length === 0) {
        if (this.dialog.open) { this.dialog.close(); }
        return;
      }
      const key = JSON.stringify([open, mode, this.pair, this.app.state.value.pin]);
      if (!this.dialog.open) {
        this.view = { zoom: 1, x: 0, y: 0 };
        this.pair = [0, 1];
        this.isNew = true;
        this.dialog.showModal();
      } else if (key === this.key) { return; }
      if (open.length === 1) { this.isActual = false; this.view = { zoom: 1, x: 0, y: 0 }; }
      this.key = key;
      this.cells = open.map((id) => this.app.model.cellById(id));
      const isTwo = this.cells.length > 1;
      if (this.pair.some((index) => index >= this.cells.length)) { this.pair = [0, 1]; }
      this.mode = isTwo ? mode : "side";
      this.title.textContent = isTwo ? `${this.cells.length} images` : this.app.placeText();
      this.modes.forEach(([name, button]) => {
        button.setAttribute("aria-pressed", String(name === this.mode));
        button.hidden = !isTwo;
      });
      this.walks.forEach((button) => { button.hidden = isTwo; });
      this.info.replaceChildren(...(isTwo ? ob.differences(this.cells, this.app) : ob.largeInfo(this.cells[0], this.app)));
      this.info.scrollTop = 0;
      this.stopFlicker();
      this.fillControls();
      this.fillStage();
      this.place();
      this.stage.tabIndex = 0;
      if (this.isNew) { this.stage.focus(); }
      this.isNew = false;
    }

    setMode(mode) { if (this.cells.length > 1) { this.app.state.change({ mode }); } }

    fillControls() {
      const made = [];
      if (this.mode !== "side" && this.cells.length > 2) {
        made.push(...[0, 1].map((side) => this.choice(side)));
      }
      if (this.mode === "wipe") { made.push(this.slider("wipe at", 0, 100, 50, (value) => this.stage.style.setProperty("--wipe", `${value}%`))); }
      if (this.mode === "difference") { made.push(this.slider("brightness", 1, 16, 4, (value) => this.stage.style.setProperty("--gain", value))); }
      if (this.mode === "flicker") { made.push(...this.flickerControls()); }
      this.controls.replaceChildren(...made);
    }

    choice(side) {
      const select = element("select", { "aria-label": side ? "second image" : "first image" },
        this.cells.map((cell, index) => element("option", { value: index, selected: index === this.pair[side] }, this.app.model.describe(cell))));
      select.addEventListener("change", () => { this.pair[side] = Number(select.value); this.show(); });
      return select;
    }

    slider(words, min, max, value, act) {
      const input = element("input", { type: "range", min, max, value, "aria-label": words });
      input.addEventListener("input", () => act(Number(input.value)));
      act(value);
      if (words === "wipe at") { this.wipe = input; }
      return element("label", {}, words, " ", input);
    }

    flickerControls() {
      const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      const button = element("button", { type: "button", title: "Space" }, isCalm ? "start" : "stop");
      const rate = element("input", { type: "range", min: 0.5, max: 3, step: 0.5, value: 1, "aria-label": "changes per second" });
      const run = (isOn) => {
        this.stopFlicker();
        button.textContent = isOn ? "stop" : "start";
        if (isOn) { this.timer = setInterval(() => this.flip(), 1000 / Number(rate.value)); }
      };
      button.addEventListener("click", () => run(!this.timer));
      rate.addEventListener("input", () => { if (this.timer) { run(true); } });
      run(!isCalm);
      this.toggleFlicker = () => run(!this.timer);
      // At most three changes a second: faster flashing can harm.
      return [button, element("label", {}, "changes per second ", rate),
        isCalm ? element("span", { class: "hint" }, "Your system asks for little motion: Enter changes by hand.") : ""];
    }

    flip() { this.stage.classList.toggle("second"); }

    stopFlicker() { clearInterval(this.timer); this.timer = 0; this.stage.classList.remove("second"); }

    fillStage() {
      const panes = this.mode === "side" ? this.cells.map((cell) => [cell]) : [this.pair.map((index) => this.cells[index])];
      this.stage.className = `vc-stage ${this.mode} panes-${panes.length}`;
      this.stage.replaceChildren(...panes.map((cells) => this.pane(cells)));
      this.hint.textContent = this.cells.length > 1 ? "Wheel or + and - enlarge, drag or arrow keys move, 0 fits, 1 is 1:1; , and . go through the epochs; Esc closes."
        : "Arrow keys or a swipe: next image; , and . epochs; wheel or + and - enlarge, 0 fits, 1 is 1:1; Esc closes.";
    }

    pane(cells) {
      const layers = cells.map((cell) => {
        if (cell.letter !== "1") {
          const [symbol, word, reason] = this.app.model.absence(cell);
          return element("div", { class: "vc-slot vg-absent" }, element("b", {}, symbol), element("span", {}, word), element("small", {}, reason));
        }
        const image = element("img", { class: "vc-layer", alt: this.app.model.describe(cell), draggable: "false", decoding: "async" });
        image.src = this.app.model.address(cell, false);
        return element("div", { class: "vc-slot" }, image);  // the slot stays where it is, the image moves
      });
      return element("figure", { class: "vc-pane" }, element("div", { class: "vc-frame" }, layers),
        element("figcaption", { hidden: this.cells.length === 1 }, cells.map((cell, index) => element("bdi", { class: `vc-name name-${index + 1}` },
          `${cells.length > 1 ? `${index + 1}: ` : ""}${this.app.model.describe(cell)}`))));
    }

    // One transform for all, so that all show the same part.
    place() {
      const { zoom, x, y } = this.view;
      this.actual.setAttribute("aria-pressed", String(Boolean(this.isActual)));
      this.stage.style.setProperty("--zoom", zoom);
      this.stage.style.setProperty("--x", `${x * 100}%`);
      this.stage.style.setProperty("--y", `${y * 100}%`);
      this.stage.classList.toggle("close", zoom >= 4);
    }

    // The image before or after this one, in the order of the table.
    step(step) { if (this.cells.length === 1) { this.app.walkAlong(step); } }

    // One pixel of the image on one of the screen, or back to the whole image.
    toggleActual() {
      const layer = this.stage.querySelector("img.vc-layer");
      if (!layer || !layer.naturalWidth) { return; }
      this.isActual = !this.isActual;
      const fit = Math.min(layer.clientWidth / layer.naturalWidth, layer.clientHeight / layer.naturalHeight);
      this.view = { zoom: this.isActual ? 1 / fit / devicePixelRatio : 1, x: 0, y: 0 };
      this.place();
    }

    // Enlarge around a place of a pane, given in parts of it from its middle.
    zoomBy(factor, atX, atY) {
      const { view } = this, zoom = Math.min(LARGEST, Math.max(1, view.zoom * factor)), grown = zoom / view.zoom;
      this.isActual = false;
      this.view = { zoom, x: (atX || 0) - ((atX || 0) - view.x) * grown, y: (atY || 0) - ((atY || 0) - view.y) * grown };
      this.moveBy(0, 0);
    }

    moveBy(x, y) {
      const limit = Math.max(0, this.view.zoom - 1) / 2, held = (value) => Math.min(limit, Math.max(-limit, value));
      this.view.x = held(this.view.x + x);
      this.view.y = held(this.view.y + y);
      this.place();
    }

    listen() {
      const frameOf = (event) => event.target.closest(".vc-frame");
      this.stage.addEventListener("wheel", (event) => {
        const frame = frameOf(event);
        if (!frame) { return; }
        event.preventDefault();
        const box = frame.getBoundingClientRect();
        this.zoomBy(event.deltaY < 0 ? STEP : 1 / STEP, (event.clientX - box.left) / box.width - 0.5, (event.clientY - box.top) / box.height - 0.5);
      }, { passive: false });
      const fingers = new Map();
      this.stage.addEventListener("pointerdown", (event) => {
        if (!frameOf(event)) { return; }
        this.stage.setPointerCapture(event.pointerId);
        this.swipe = fingers.size === 0 ? event : null;
        fingers.set(event.pointerId, event);
        this.box = frameOf(event).getBoundingClientRect();
      });
      this.stage.addEventListener("pointermove", (event) => {
        const before = fingers.get(event.pointerId);
        if (!before) { return; }
        if (fingers.size === 2) { this.pinch(fingers, event); } else { this.drag(before, event); }
        fingers.set(event.pointerId, event);
      });
      this.stage.addEventListener("pointerup", (event) => {
        fingers.delete(event.pointerId);
        const { swipe } = this;
        this.swipe = null;
        if (!swipe || this.view.zoom > 1 || this.cells.length > 1) { return; }
        const across = event.clientX - swipe.clientX, down = event.clientY - swipe.clientY;
        if (Math.abs(across) > SWIPE && Math.abs(across) > 2 * Math.abs(down)) { this.step(across < 0 ? 1 : -1); }
      });
      this.stage.addEventListener("pointercancel", (event) => fingers.delete(event.pointerId));
    }

    drag(before, event) {
      if (this.mode === "wipe" && this.view.zoom === 1) {
        const part = Math.round((event.clientX - this.box.left) / this.box.width * 100);
        this.wipe.value = part;
        this.stage.style.setProperty("--wipe", `${Math.min(100, Math.max(0, part))}%`);
        return;
      }
      this.moveBy((event.clientX - before.clientX) / this.box.width, (event.clientY - before.clientY) / this.box.height);
    }

    pinch(fingers, event) {
      const [other] = [...fingers.values()].filter((finger) => finger.pointerId !== event.pointerId);
      const before = fingers.get(event.pointerId);
      const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY) || 1;
      this.zoomBy(apart(event) / apart(before), (event.clientX - this.box.left) / this.box.width - 0.5, (event.clientY - this.box.top) / this.box.height - 0.5);
    }

    onKey(event) {
      if (event.target.matches("input:not([type=range]), select")) { return; }
      if (event.target.matches("input") && !["+", "-", "0", "1"].includes(event.key)) { return; }
      const mode = MODES.find(([, , key]) => key === event.key);
      const moves = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
      const step = event.key === "." ? 1 : event.key === "," ? -1 : 0;
      if (mode) { this.setMode(mode[0]); }
      else if (event.key === "+" || event.key === "=") { this.zoomBy(STEP); }
      else if (event.key === "-") { this.zoomBy(1 / STEP); }
      else if (event.key === "1") { this.toggleActual(); }
      else if (event.key === "r" && this.info.querySelector("#large-score")) { this.info.querySelector("#large-score").focus(); }
      else if (event.key === "0") { this.isActual = false; this.view = { zoom: 1, x: 0, y: 0 }; this.place(); }
      else if (step) { this.stepEpoch(step); }
      else if (event.key === " " && this.mode === "flicker" && event.target === this.stage) { this.toggleFlicker(); }
      else if (event.key === "Enter" && this.mode === "flicker" && event.target === this.stage) { this.flip(); }
      else if (moves[event.key]) { this.arrow(event.key, moves[event.key]); }
      else { return; }
      event.preventDefault();
      event.stopPropagation();
    }

    // Arrows move an enlarged image, a wipe's edge, or else walk through the table.
    arrow(key, [x, y]) {
      if (this.mode === "wipe" && this.view.zoom === 1 && x !== 0) {
        this.wipe.value = Number(this.wipe.value) - 2 * x;
        this.wipe.dispatchEvent(new Event("input"));
      } else if (this.view.zoom > 1) {
        this.moveBy(x * 0.1, y * 0.1);
      } else if (this.cells.length === 1 && x !== 0) {
        this.step(-x);
      } else if (this.cells.length === 1) {
        this.app.walk(-y, 0);
      }
    }

    stepEpoch(step) {
      const { model, state } = this.app, { epochs } = model.data;
      // Of one image the table goes along.
      if (this.cells.length === 1 && state.value.slider === "epoch" && this.cells[0].epoch > 0) {
        this.app.slide(step);
        this.app.walk(0, 0);
        return;
      }
      const open = this.cells.map((cell) => {
        const epoch = epochs[epochs.indexOf(cell.epoch) + step];
        return model.idOf(epoch === undefined || cell.epoch === 0 && this.cells.length > 1 ? cell : { ...cell, epoch });
      });
      state.change({ open }, true);
    }
  };
}(window.optbench));
