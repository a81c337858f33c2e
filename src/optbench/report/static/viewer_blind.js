"use strict";
// Which of two is better, without knowing whose they are: equal prompt, seed, size and epoch, sides by chance.
(function (ob) {
  const { element, visible } = ob;
  const REPEATED = 0.1, FIRST_REPEAT = 5, TRIES = 400;
  const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", t: "tie", s: "skip" };

  const drawn = (list) => list[Math.floor(Math.random() * list.length)];

  ob.Blind = class {
    constructor(dialog, app) {
      this.dialog = dialog;
      this.app = app;
      dialog.addEventListener("close", () => this.leave());
      dialog.addEventListener("keydown", (event) => {
        const winner = KEYS[event.key];
        if (!winner || !this.pair || event.ctrlKey || event.metaKey || event.altKey) { return; }
        event.preventDefault();
        this.vote(winner);
      });
      window.addEventListener("popstate", () => { if (dialog.open) { dialog.close(); } });
    }

    start(runs) {
      this.runs = runs;
      this.own = [];
      this.repeated = new Set();
      const { epochs } = this.app.model.data, at = Number(this.app.state.value.at.epoch);
      // The epoch that is shown, or all where that is the base, which all share.
      this.epochs = at > 0 ? [at] : epochs.filter((epoch) => epoch > 0);
      this.before = { title: document.title, hash: location.hash };
      // Neither the title nor the address may tell what is compared.
      document.title = "blind comparison";
      history.replaceState(null, "", "#blind");
      document.body.classList.add("is-blind");
      this.dialog.showModal();
      this.next();
    }

    leave() {
      this.pair = null;
      document.body.classList.remove("is-blind");
      document.title = this.before.title;
      this.dialog.replaceChildren();
      if (location.hash === "#blind") { history.replaceState(null, "", this.before.hash || location.pathname + location.search); }
      this.app.render();
      this.app.grid.focus();
    }

    // Two cells that differ in the run alone; now and then a pair that was judged before.
    draw() {
      const { model } = this.app;
      const again = this.own.filter((vote, index) => vote.winner !== "skip" && !vote.repeat && !this.repeated.has(index));
      if (this.own.length >= FIRST_REPEAT && again.length > 0 && Math.random() < REPEATED) {
        const vote = drawn(again);
        this.repeated.add(this.own.indexOf(vote));
        return { cells: this.shuffled([vote.leftCell, vote.rightCell]), repeat: true };
      }
      for (let tries = 0; tries < TRIES; tries += 1) {
        const epoch = drawn(this.epochs), shot = Math.floor(Math.random() * model.data.shots.length);
        const able = this.runs.filter((run) => model.letter(run, epoch, shot) === "1");
        if (able.length < 2) { continue; }
        const one = drawn(able), other = drawn(able.filter((run) => run !== one));
        return { cells: [model.cell(one, epoch, shot), model.cell(other, epoch, shot)], repeat: false };
      }
      return null;
    }

    shuffled(pair) { return Math.random() < 0.5 ? pair : [pair[1], pair[0]]; }

    next() {
      this.pair = this.draw();
      if (this.pair === null) {
        this.dialog.replaceChildren(element("h2", {}, "Nothing to compare"),
          element("p", {}, "This needs two runs with an image of the same prompt, seed, size and epoch. Change the epoch or the filters."), this.button("close", () => this.dialog.close()));
        return;
      }
      const prompt = this.app.model.prompt(this.pair.cells[0]);
      const choices = [["left", "left is better"], ["tie", "equally good"], ["right", "right is better"], ["skip", "skip"]];
      this.dialog.replaceChildren(
        element("div", { class: "vb-head" }, element("h2", {}, "Which is better?"),
          element("p", { class: "hint", role: "status" }, `${this.own.length} judged. Left and right arrow, down for a tie, s to skip.`), this.button("finish", () => this.finish())),
        element("p", { class: "text vp-prompt" }, element("bdi", {}, prompt ? prompt.text : "")),
        element("div", { class: "vb-pair" }, this.pair.cells.map((cell, index) => this.canvas(cell, index ? "right" : "left"))),
        element("div", { class: "vb-choices" }, choices.map(([winner, words]) => this.button(words, () => this.vote(winner)))));
      this.dialog.querySelector(".vb-choices button").focus();
    }

    // Painted, because the address of an image would tell the run's name to whoever opens its menu.
    canvas(cell, side) {
      const canvas = element("canvas", { role: "img", "aria-label": `${side} image`, width: cell.shot.width, height: cell.shot.height });
      const image = new Image();
      image.onload = () => {
        canvas.width = image.naturalWidth;
        canvas.height = image.naturalHeight;
        canvas.getContext("2d").drawImage(image, 0, 0);
        canvas.dataset.drawn = "yes";
      };
      image.onerror = () => canvas.replaceWith(element("p", { class: "note" }, "This image cannot be read: please skip the pair."));
      image.src = this.app.model.address(cell, false);
      return canvas;
    }

    button(words, act) {
      const made = element("button", { type: "button" }, words);
      made.addEventListener("click", act);
      return made;
    }

    vote(winner) {
      const { scores } = this.app, [left, right] = this.pair.cells, { repeat } = this.pair;
      this.own.push({ leftCell: left, rightCell: right, winner, repeat });
      scores.vote(scores.cellEntry(left, false), scores.cellEntry(right, false), winner, repeat);
      this.next();
    }

    finish() {
      this.pair = null;
      const counts = new Map();
      const count = (run, word) => {
        if (!counts.has(run)) { counts.set(run, { won: 0, tied: 0, lost: 0 }); }
        counts.get(run)[word] += 1;
      };
      for (const { leftCell, rightCell, winner, repeat } of this.own) {
        if (winner === "skip" || repeat) { continue; }
        count(leftCell.run, winner === "tie" ? "tied" : winner === "left" ? "won" : "lost");
        count(rightCell.run, winner === "tie" ? "tied" : winner === "right" ? "won" : "lost");
      }
      const rows = [...counts].sort(([, one], [, other]) => other.won - other.lost - (one.won - one.lost));
      this.dialog.replaceChildren(element("h2", {}, "What you judged"),
        element("p", {}, `${this.own.length} pairs in this session, all stored with your scores. ${this.agreement()}`),
        element("div", { class: "wide" }, element("table", {}, element("thead", {}, element("tr", {}, ["run", "better", "equal", "worse"].map((word) => element("th", { scope: "col" }, word)))),
          element("tbody", {}, rows.map(([run, { won, tied, lost }]) => element("tr", {}, element("th", { scope: "row" }, element("bdi", {}, run.label)),
            [won, tied, lost].map((number) => element("td", {}, String(number)))))))),
        element("p", { class: "hint" }, "Save your scores as JSON beside the table and put the file into the folder \"scores\" beside the runs: the report works out how sure this is."),
        this.button("close", () => this.dialog.close()));
      this.dialog.querySelector("button").focus();
    }

    agreement() {
      const repeats = this.own.filter((vote) => vote.repeat && vote.winner !== "skip");
      if (repeats.length === 0) { return "No pair was shown twice."; }
      const better = (vote) => (vote.winner === "tie" ? null : vote.winner === "left" ? vote.leftCell.run : vote.rightCell.run);
      const agreed = repeats.filter((vote) => {
        const first = this.own.find((one) => !one.repeat && one.winner !== "skip" && one.leftCell.epoch === vote.leftCell.epoch && one.leftCell.shotIndex === vote.leftCell.shotIndex &&
          [one.leftCell.run, one.rightCell.run].includes(vote.leftCell.run) && [one.leftCell.run, one.rightCell.run].includes(vote.rightCell.run));
        return first && better(first) === better(vote);
      });
      return `Of ${repeats.length} pairs shown twice you judged ${agreed.length} alike.`;
    }
  };
}(window.optbench));
