"use strict";
// Scores, notes and votes: stored in this browser, saved as files that `optbench report` reads.
(function (ob) {
  const { element } = ob;
  const FORMAT = "optbench scores 1", LONGEST_NOTE = 4000, LARGEST_FILE = 50e6;
  const COLUMNS = ["run", "epoch", "prompt", "seed", "width", "height", "score", "note", "image_key"];
  const withKey = (entry, key) => (key ? { ...entry, image_key: key } : entry);

  ob.Scores = class {
    constructor(model) {
      this.model = model;
      this.key = `${FORMAT}: ${model.data.name}`;
      this.rater = "";
      this.scores = new Map();
      this.votes = [];
      this.isKept = true;
      try {
        const kept = JSON.parse(localStorage.getItem(this.key) || "null");
        if (kept) { this.take(kept, true); }
      } catch (error) {
        this.isKept = false;  // storage is switched off, or holds what we never wrote
      }
    }

    get(id) { return this.scores.get(id); }

    cellEntry(cell, isWhole) {
      const { prompt, seed, width, height } = cell.shot;
      const place = isWhole ? { run: cell.run.name, epoch: null, prompt: null, seed: null, width: null, height: null }
        : { run: cell.run.name, epoch: cell.epoch, prompt, seed, width, height };
      return withKey(place, cell.run.imageKey);
    }

    // A score is of the image it was given to: one of the same place with another key is not shown with it.
    idOf(entry) {
      return JSON.stringify([entry.run, entry.epoch, entry.prompt, entry.seed, entry.width, entry.height, entry.image_key || null]);
    }

    set(entry, patch) {
      const id = this.idOf(entry);
      const merged = { ...entry, score: null, note: "", ...this.scores.get(id), ...patch };
      if (merged.score === null && merged.note === "") { this.scores.delete(id); } else { this.scores.set(id, merged); }
      this.keep();
    }

    vote(left, right, winner, repeat) {
      this.votes.push({ left, right, winner, repeat });
      this.keep();
    }

    keep() {
      try {
        localStorage.setItem(this.key, JSON.stringify(this.content()));
        this.isKept = true;
      } catch (error) {
        this.isKept = false;
      }
    }

    content() {
      return { format: FORMAT, sweep: this.model.data.name, rater: this.rater,
        scores: [...this.scores.values()], votes: this.votes };
    }

    // Take in what a file or the browser holds; returns how much of it was understood.
    take(content, isOwn) {
      if (!content || content.format !== FORMAT) { throw new Error(`no file of the format "${FORMAT}"`); }
      const count = { scores: 0, votes: 0, unknown: 0 };
      for (const entry of Array.isArray(content.scores) ? content.scores : []) {
        const score = this.cleaned(entry);
        if (score === null) { count.unknown += 1; continue; }
        this.scores.set(this.idOf(score), score);
        count.scores += 1;
      }
      const known = new Set(this.votes.map((vote) => JSON.stringify(vote)));
      for (const vote of Array.isArray(content.votes) ? content.votes : []) {
        const left = this.cleaned(vote && vote.left), right = this.cleaned(vote && vote.right);
        if (!left || !right || !["left", "right", "tie", "skip"].includes(vote.winner)) { count.unknown += 1; continue; }
        const cell = ({ run, epoch, prompt, seed, width, height, image_key: key }) => withKey({ run, epoch, prompt, seed, width, height }, key);
        const taken = { left: cell(left), right: cell(right), winner: vote.winner, repeat: vote.repeat === true };
        if (!isOwn && known.has(JSON.stringify(taken))) { continue; }  // the same file a second time
        this.votes.push(taken);
        count.votes += 1;
      }
      if (typeof content.rater === "string" && (isOwn || !this.rater)) { this.rater = content.rater.slice(0, 100); }
      if (!isOwn) { this.keep(); }
      return count;
    }

    // An entry with the right types and a run of this report, or null.
    cleaned(entry) {
      if (!entry || typeof entry !== "object" || !this.model.runByName.has(entry.run)) { return null; }
      const number = (value) => (Number.isFinite(value) ? value : null);
      const score = number(entry.score);
      // Older files do not say which image they are of.
      const key = typeof entry.image_key === "string" && entry.image_key ? entry.image_key.slice(0, 100) : this.model.runByName.get(entry.run).imageKey;
      return withKey({ run: entry.run, epoch: number(entry.epoch), prompt: typeof entry.prompt === "string" ? entry.prompt : null,
        seed: number(entry.seed), width: number(entry.width), height: number(entry.height),
        score: score === null ? null : Math.min(100, Math.max(0, score)),
        note: typeof entry.note === "string" ? entry.note.slice(0, LONGEST_NOTE) : "" }, key);
    }

    csv() {
      const field = (value) => {
        let text = value === null || value === undefined ? "" : String(value);
        // A spreadsheet takes what begins so for a formula.
        if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) { text = `'${text}`; }
        return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
      };
      const rows = [...this.scores.values()].map((entry) => COLUMNS.map((name) => field(entry[name])).join(","));
      return `${[COLUMNS.join(","), ...rows].join("\r\n")}\r\n`;
    }
  };

  ob.download = function (name, type, text) {
    const link = element("a", { download: name });
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  // The fields beside the table: a score and a note for the selected image, or for its whole run.
  ob.ScoreForm = class {
    constructor(place, app) {
      this.app = app;
      this.isWhole = false;
      this.slider = element("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": "score from 0 to 100" });
      this.number = element("input", { type: "number", min: 0, max: 100, step: 1, "aria-label": "score", placeholder: "-" });
      this.note = element("textarea", { rows: 3, maxlength: LONGEST_NOTE, "aria-label": "note", placeholder: "a note" });
      this.rater = element("input", { type: "text", maxlength: 100, "aria-label": "your name", placeholder: "your name" });
      this.clear = this.button("no score", () => this.set({ score: null }));
      const radio = (words, isWhole) => {
        const input = element("input", { type: "radio", name: "score-of", checked: !isWhole });
        input.addEventListener("change", () => { this.isWhole = isWhole; this.show(this.cell); });
        return element("label", {}, input, ` ${words}`);
      };
      const file = element("input", { type: "file", accept: ".json,application/json", multiple: true, class: "vs-file", "aria-label": "scores to import" });
      file.addEventListener("change", () => this.read(file));
      this.message = element("p", { class: "hint", role: "status" });
      place.append(element("h3", {}, "Your score"), element("div", { class: "vs-line" }, radio("this image", false), radio("its whole run", true)),
        element("div", { class: "vs-line" }, this.slider, this.number, this.clear), this.note,
        element("div", { class: "vs-line" }, this.rater, this.button("save as JSON", () => this.save(true)), this.button("as CSV", () => this.save(false)),
          element("label", { class: "vs-open" }, "open a file", file)), this.message);
      this.slider.addEventListener("input", () => this.set({ score: Number(this.slider.value) }));
      this.number.addEventListener("change", () => this.setNumber());
      this.note.addEventListener("input", () => this.set({ note: this.note.value }));
      this.rater.addEventListener("input", () => { app.scores.rater = this.rater.value; app.scores.keep(); });
    }

    button(words, act) {
      const made = element("button", { type: "button" }, words);
      made.addEventListener("click", act);
      return made;
    }

    show(cell) {
      this.cell = cell;
      const { scores } = this.app;
      const entry = cell ? scores.get(scores.idOf(scores.cellEntry(cell, this.isWhole))) : undefined;
      const score = entry ? entry.score : null;
      for (const field of [this.slider, this.number, this.note]) { field.disabled = cell === null; }
      this.clear.disabled = score === null;
      this.slider.value = score === null ? 50 : score;
      this.slider.classList.toggle("unset", score === null);
      if (document.activeElement !== this.number) { this.number.value = score === null ? "" : score; }
      const note = entry ? entry.note : "";
      if (this.note.value !== note) { this.note.value = note; }
      if (document.activeElement !== this.rater) { this.rater.value = scores.rater; }
      this.say();
    }

    setNumber() {
      const text = this.number.value.trim(), value = Number(text);
      this.set({ score: text === "" || !Number.isFinite(value) ? null : Math.min(100, Math.max(0, value)) });
      this.number.value = text === "" ? "" : Math.min(100, Math.max(0, value));
    }

    set(patch) {
      if (!this.cell) { return; }
      const { scores } = this.app;
      scores.set(scores.cellEntry(this.cell, this.isWhole), patch);
      this.app.render();
    }

    say(extra) {
      const { scores } = this.app;
      const where = scores.isKept ? "stored in this browser" : "NOT stored: this browser stores nothing for files, so save them before you leave";
      this.message.textContent = `${extra ? `${extra} ` : ""}${scores.scores.size} scores and notes, ${scores.votes.length} votes, ${where}. ` +
        `Put the JSON file into the folder "scores" beside the runs and rebuild the report to include it.`;
    }

    save(isJson) {
      const { scores } = this.app;
      const name = `scores-${(scores.rater || "rater").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}`;
      if (isJson) { ob.download(`${name}.json`, "application/json", `${JSON.stringify(scores.content(), null, 1)}\n`); }
      else { ob.download(`${name}.csv`, "text/csv", scores.csv()); }
    }

    async read(input) {
      const said = [];
      for (const file of [...input.files].slice(0, 20)) {
        try {
          if (file.size > LARGEST_FILE) { throw new Error("larger than 50 MB"); }
          const count = this.app.scores.take(JSON.parse(await file.text()), false);
          said.push(`${file.name}: ${count.scores} scores and ${count.votes} votes imported` +
            `${count.unknown ? `, ${count.unknown} of other runs or damaged were left out` : ""}.`);
        } catch (error) {
          said.push(`${file.name} was not imported: ${error.message}.`);
        }
      }
      input.value = "";
      this.app.render();
      this.say(ob.visible(said.join(" ")));
    }
  };
}(window.optbench));
