"use strict";
// Which of two is better, without knowing whose they are: two settings, equal prompt, seed and size, sides by chance.
(function (ob) {
  const { element } = ob;
  const REPEATED = 0.1, FIRST_REPEAT = 5, LOCKED = 300, SESSION = 120, MANY = 200;  // ms, s, votes
  const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie", t: "tie", s: "skip" };
  const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

  // Draws pairs and counts votes; knows nothing of the page.
  ob.Voting = class {
    constructor(model, scores, random) {
      this.model = model;
      this.scores = scores;
      this.random = random || Math.random;
    }

    // runs: those that may be shown; epoch: the one to show, 0 for the last of each.
    start(runs, epoch) {
      this.own = [];
      this.repeated = new Set();
      this.times = new Map();  // how often a run or a shot was shown, so that all are shown alike
      this.sides = new Map();  // setting -> shot -> cells that can be shown
      for (const run of runs.filter((one) => one.setting !== null)) {
        const epochs = Object.keys(run.pictures).map(Number).filter((one) => one > 0 && (epoch ? one === epoch : true));
        const last = Math.max(...epochs);
        if (epochs.length === 0) { continue; }
        this.model.data.shots.forEach((shot, index) => {
          if (this.model.letter(run, last, index) !== "1") { return; }
          const ofSetting = this.sides.get(run.setting) || new Map();
          this.sides.set(run.setting, ofSetting.set(index, [...(ofSetting.get(index) || []), this.model.cell(run, last, index)]));
        });
      }
      const settings = [...this.sides.keys()];
      this.pairs = settings.flatMap((one, at) => settings.slice(at + 1).map((other) => [one, other])).filter((pair) => this.shotsOf(pair).length > 0);
    }

    shotsOf([one, other]) { return [...this.sides.get(one).keys()].filter((shot) => this.sides.get(other).has(shot)); }

    drawn(list) { return list[Math.floor(this.random() * list.length)]; }

    // One of those that were shown least.
    rarest(list, nameOf) {
      const times = list.map((one) => this.times.get(nameOf(one)) || 0), least = Math.min(...times);
      return this.drawn(list.filter((_, index) => times[index] === least));
    }

    draw() {
      if (this.pairs.length === 0) { return null; }
      const again = this.own.filter((vote) => vote.winner !== "skip" && !vote.repeat && !this.repeated.has(vote.id));
      if (this.own.length >= FIRST_REPEAT && again.length > 0 && this.random() < REPEATED) {
        const vote = this.drawn(again);
        this.repeated.add(vote.id);
        return { cells: this.shuffled(vote.cells), repeat: true };
      }
      const pair = ob.choosePair(this.votes(), this.pairs, this.model.data.settings.length, this.random);
      const shot = this.rarest(this.shotsOf(pair), (one) => `${pair} ${one}`);
      const cells = pair.map((setting) => this.rarest(this.sides.get(setting).get(shot), (cell) => cell.run.name));
      [`${pair} ${shot}`, ...cells.map((cell) => cell.run.name)].forEach((name) => this.times.set(name, (this.times.get(name) || 0) + 1));
      return { cells: this.shuffled(cells), repeat: false };
    }

    shuffled(pair) { return this.random() < 0.5 ? pair : [pair[1], pair[0]]; }

    vote({ cells, repeat }, winner) {
      const [left, right] = cells.map((cell) => this.scores.cellEntry(cell, false));
      this.own.push({ id: this.scores.vote(left, right, winner, repeat), cells, winner, repeat });
    }

    // Returns the pair whose vote was taken back.
    undo() {
      const vote = this.own.pop();
      if (!vote) { return null; }
      this.scores.undo(vote.id);
      return { cells: vote.cells, repeat: vote.repeat };
    }

    // All votes of this browser on today's images, of every rater, as the report counts them.
    votes() {
      const { runByName } = this.model, counted = [];
      for (const { left, right, winner, repeat } of this.scores.votes.values()) {
        const runs = [left, right].map((cell) => runByName.get(cell.run));
        const isCurrent = runs.every((run, at) => run && run.setting !== null && (!run.imageKey || !([left, right][at].image_key) || run.imageKey === [left, right][at].image_key));
        if (!isCurrent || repeat || winner === "skip" || runs[0].setting === runs[1].setting) { continue; }
        counted.push({ first: runs[0].setting, second: runs[1].setting, winner: { left: 0, right: 1, tie: 2 }[winner],
          cell: `${left.prompt} ${left.seed}`, runs: runs.map((run) => run.name) });
      }
      return counted;
    }

    standing() {
      const votes = this.votes(), strengths = ob.strengths(votes);
      return { strengths, numVotes: votes.length, toGo: ob.votesToGo(strengths, votes.length) };
    }

    agreement() {
      const repeats = this.own.filter((vote) => vote.repeat && vote.winner !== "skip");
      if (repeats.length === 0) { return "No pair was shown twice."; }
      const better = ({ winner, cells }) => (winner === "tie" ? null : this.model.idOf(cells[winner === "left" ? 0 : 1]));
      const both = (vote) => vote.cells.map((cell) => this.model.idOf(cell)).sort().join();
      const agreed = repeats.filter((vote) => this.own.some((one) => !one.repeat && one.winner !== "skip" && both(one) === both(vote) && better(one) === better(vote)));
      return `Of ${repeats.length} ${repeats.length === 1 ? "pair" : "pairs"} shown twice you judged ${agreed.length} alike.`;
    }
  };

  ob.toGoText = function ({ toGo, strengths, numVotes }, nameOf) {
    if (toGo === null) { return numVotes ? "Nothing leads yet." : ""; }
    if (toGo === 0) { return `Decided: ${nameOf(strengths[0].index)} is preferred to the average setting.`; }
    if (toGo === Infinity) { return "More votes on these images will not decide it: it takes other prompts or training seeds."; }
    return toGo > MANY ? `More than ${MANY} more votes until decided: they may be equally good.` : `About ${toGo > 10 ? Math.ceil(toGo / 5) * 5 : toGo} more until decided.`;
  };

  // The dialog. `host`: model, scores, what to do `afterwards` in words, and `save` and `closed`.
  ob.VoteView = class {
    constructor(dialog, host) {
      this.dialog = dialog;
      this.host = host;
      this.voting = new ob.Voting(host.model, host.scores);
      dialog.addEventListener("close", () => this.leave());
      dialog.addEventListener("cancel", (event) => {
        if (this.pair && this.voting.own.length > 0) { event.preventDefault(); this.finish(); }
      });
      dialog.addEventListener("keydown", (event) => this.onKey(event));
      window.addEventListener("popstate", () => { if (dialog.open) { dialog.close(); } });
    }

    onKey(event) {
      if (event.ctrlKey || event.metaKey || event.altKey || !this.pair) { return; }
      const winner = KEYS[event.key];
      if (!winner && event.key !== "Backspace") { return; }
      event.preventDefault();
      if (event.repeat) { return; }  // a key that is held down is one vote
      if (winner) { this.vote(winner); } else { this.undo(); }
    }

    start(runs, epoch) {
      this.voting.start(runs, epoch);
      this.before = { title: document.title, hash: location.hash };
      // Neither the title nor the address may tell what is compared, nor a letter that is always the same one's.
      document.title = "blind comparison";
      history.replaceState(null, "", "#blind");
      document.body.classList.add("is-blind");
      this.dialog.showModal();
      this.resume();
    }

    resume() {
      // Others after every end, where the names are shown.
      const letters = this.host.model.data.settings.map((_, index) => (index < LETTERS.length ? LETTERS[index] : String(index + 1)));
      for (let last = letters.length - 1; last > 0; last -= 1) {
        const other = Math.floor(Math.random() * (last + 1));
        [letters[last], letters[other]] = [letters[other], letters[last]];
      }
      this.letters = letters;
      this.endsAt = Date.now() + SESSION * 1000;
      this.show(this.voting.draw());
    }

    leave() {
      this.pair = null;
      clearInterval(this.clock);
      document.body.classList.remove("is-blind");
      document.title = this.before.title;
      this.dialog.replaceChildren();
      if (location.hash === "#blind") { history.replaceState(null, "", this.before.hash || location.pathname + location.search); }
      this.host.closed();
    }

    show(pair) {
      this.pair = pair;
      clearInterval(this.clock);
      if (pair === null) {
        const close = this.button("close", () => this.dialog.close());
        this.dialog.replaceChildren(element("h2", {}, "Nothing to compare"),
          element("p", {}, "This needs two settings with an image of the same prompt, seed, size and epoch. Change the epoch or the filters."), close);
        close.focus();
        return;
      }
      const prompt = this.host.model.prompt(pair.cells[0]);
      const choices = [["left", "left is better", "key left arrow"], ["tie", "equally good", "key down arrow"], ["right", "right is better", "key right arrow"], ["skip", "skip", "key s"]];
      this.left = element("span", { class: "vb-left" });
      this.stage = element("div", { class: "vb-pair", tabindex: "0", role: "group", "aria-label": "two images" }, pair.cells.map((cell, index) => this.canvas(cell, index ? "right" : "left")));
      const undo = this.button("undo", () => this.undo(), "key Backspace");
      undo.disabled = this.voting.own.length === 0;
      this.dialog.replaceChildren(
        element("div", { class: "vb-head" }, element("h2", {}, "Which is better?"),
          element("p", { class: "hint", role: "status" }, `${this.voting.own.length} judged. Left and right arrow, down for a tie, s to skip, Backspace to undo.`),
          this.left, this.button("finish", () => this.finish())),
        element("p", { class: "text vp-prompt" }, element("bdi", {}, prompt ? prompt.text : "")),
        element("div", { class: "vb-main" }, this.stage, this.bars((index) => this.letters[index], true)),
        element("div", { class: "vb-choices" }, choices.map(([winner, words, title]) => this.button(words, () => this.vote(winner), title)), undo));
      this.stage.focus();
      this.tick();
      this.clock = setInterval(() => this.tick(), 1000);
      this.wait();
    }

    tick() {
      const left = Math.max(0, Math.ceil((this.endsAt - Date.now()) / 1000));
      this.left.textContent = left ? `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")} left` : "time is over: this is the last pair";
    }

    // No vote before both images were seen: they are drawn, and a moment has passed.
    async wait() {
      const { pair } = this;
      this.isReady = false;
      await Promise.all([...this.drawings, new Promise((resolve) => { setTimeout(resolve, LOCKED); })]);
      if (this.pair === pair) {
        this.isReady = true;
        this.stage.dataset.ready = "yes";
      }
    }

    // Painted, so that no address, title or alternative text tells whose it is.
    canvas(cell, side) {
      const canvas = element("canvas", { role: "img", "aria-label": `the ${side} image`, class: "vb-image" });
      const place = element("div", { class: "vb-side" }, canvas), image = new Image();
      const drawing = new Promise((resolve) => {
        image.onload = () => {
          canvas.width = image.naturalWidth;
          canvas.height = image.naturalHeight;
          canvas.getContext("2d").drawImage(image, 0, 0);
          canvas.dataset.drawn = "yes";
          resolve();
        };
        image.onerror = () => {
          canvas.replaceWith(element("p", { class: "note" }, "This image cannot be read: please skip the pair."));
          resolve();
        };
      });
      this.drawings = side === "left" ? [drawing] : [...this.drawings, drawing];
      place.addEventListener("click", () => this.vote(side));
      image.src = this.host.model.address(cell, false);
      return place;
    }

    button(words, act, title) {
      const made = element("button", { type: "button", title }, words);
      made.addEventListener("click", act);
      return made;
    }

    vote(winner) {
      if (!this.pair || !this.isReady) { return; }
      this.voting.vote(this.pair, winner);
      if (Date.now() >= this.endsAt) { this.finish(); } else { this.show(this.voting.draw()); }
    }

    undo() {
      const pair = this.voting.undo();
      if (pair) { this.show(pair); }
    }

    // Strengths as bars about the average setting, with their intervals.
    bars(nameOf, isBlind) {
      const standing = this.voting.standing(), { strengths } = standing;
      const reach = Math.max(1, ...strengths.flatMap(({ low, high }) => [-low, high]).map((value) => Math.min(6, value)));
      const at = (value) => `${(50 + 50 * Math.min(1, Math.max(-1, value / reach))).toFixed(1)}%`;
      // In blind voting the order stays, so that no bar jumps.
      const shown = isBlind ? [...strengths].sort((one, other) => (nameOf(one.index) < nameOf(other.index) ? -1 : 1)) : strengths;
      const rows = shown.map(({ index, strength, low, high, numVotes }) => {
        const bar = element("span", { class: "vb-bar" }), range = element("span", { class: "vb-range" });
        bar.style.left = at(Math.min(0, strength));
        bar.style.right = `${(100 - parseFloat(at(Math.max(0, strength)))).toFixed(1)}%`;
        range.style.left = at(low);
        range.style.right = `${(100 - parseFloat(at(high))).toFixed(1)}%`;
        const share = Math.round(100 / (1 + Math.exp(-strength)));
        return element("li", { "data-strength": strength.toFixed(3) }, element("bdi", { class: "vb-name" }, nameOf(index)),
          element("span", { class: "vb-scale", "aria-hidden": "true" }, range, bar), element("span", { class: "hint" }, `${share} %, ${numVotes} ${numVotes === 1 ? "vote" : "votes"}`));
      });
      return element("aside", { class: "vb-bars", tabindex: "0", "aria-label": "what the votes say so far" }, element("h3", {}, isBlind ? "So far (names at the end)" : "What the votes say"),
        element("ol", {}, rows), element("p", { class: "vb-togo", role: "status" }, ob.toGoText(standing, nameOf)));
    }

    finish() {
      clearInterval(this.clock);
      this.pair = null;
      const { voting, host } = this, { settings } = host.model.data, num = voting.own.length;
      const more = this.button("vote two more minutes", () => this.resume());
      this.dialog.replaceChildren(element("h2", {}, "What you judged"),
        element("p", {}, `${num} ${num === 1 ? "pair" : "pairs"} in this session, all stored with your scores. ${voting.agreement()}`),
        this.bars((index) => settings[index], false),
        element("p", { class: "hint" }, "Bars: how often a setting would win against the average one, with 95 % intervals over prompts, seeds and trainings. Pairs that are close come more often; the estimate allows for it."),
        element("p", { class: "hint" }, host.afterwards), element("div", { class: "vb-choices" }, more, this.button("save votes as JSON", () => host.save()), this.button("close", () => this.dialog.close())));
      more.focus();
    }
  };
}(window.optbench));
