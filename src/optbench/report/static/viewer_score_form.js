"use strict";
// The fields for a score and a note, and the files that scores and votes are saved as and opened from.
(function (ob) {
  const { element } = ob;
  const LARGEST_FILE = 50e6;
  ob.AFTERWARDS = 'Save as JSON, put the file into the folder "scores" beside the runs, and rebuild the report: it counts them.';

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
      this.note = element("textarea", { rows: 3, maxlength: ob.LONGEST_NOTE, "aria-label": "note", placeholder: "a note" });
      this.rater = element("input", { type: "text", maxlength: 100, "aria-label": "your name", placeholder: "your name" });
      this.clear = this.button("no score", () => this.set({ score: null }));
      const radio = (words, isWhole) => {
        const input = element("input", { type: "radio", name: "score-of", checked: !isWhole });
        input.addEventListener("change", () => { this.isWhole = isWhole; this.show(this.cell); });
        return element("label", {}, input, ` ${words}`);
      };
      const file = element("input", { type: "file", accept: ".json,application/json", multiple: true, class: "vs-file", "aria-label": "scores to import" });
      file.addEventListener("change", () => this.read(file));
      this.unsaved = element("span", { class: "badge vs-unsaved", hidden: true });
      this.message = element("p", { class: "hint", role: "status" });
      place.append(element("h3", {}, "Your score ", this.unsaved), element("div", { class: "vs-line" }, radio("this image", false), radio("its whole run", true)),
        element("div", { class: "vs-line" }, this.slider, this.number, this.clear), this.note,
        element("div", { class: "vs-line" }, this.rater, this.button("save as JSON", () => this.save(true)), this.button("as CSV", () => this.save(false)),
          element("label", { class: "vs-open" }, "open a file", file)), this.message);
      this.slider.addEventListener("input", () => this.set({ score: Number(this.slider.value) }));
      this.number.addEventListener("change", () => this.setNumber());
      this.note.addEventListener("input", () => this.set({ note: this.note.value }));
      this.rater.addEventListener("input", () => { app.scores.setRater(this.rater.value); this.say(); });
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
      const { scores } = this.app, num = scores.numUnsaved(), given = scores.given().length;
      const where = scores.isKept ? "stored in this browser" : "NOT stored: this browser stores nothing for files, so save them before you leave";
      this.unsaved.hidden = num === 0;
      this.unsaved.textContent = `${num} unsaved`;
      this.message.textContent = `${extra ? `${extra} ` : ""}${given} scores and notes, ${scores.votes.size} votes, ${where}. ` +
        ob.AFTERWARDS;
    }

    save(isJson) {
      const { scores } = this.app;
      const name = `scores-${(scores.rater || "rater").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}`;
      if (isJson) {
        ob.download(`${name}.json`, "application/json", `${JSON.stringify(scores.content(), null, 1)}\n`);
        scores.markSaved();
      }
      else { ob.download(`${name}.csv`, "text/csv", scores.csv()); }
      this.say();
    }

    async read(input) {
      const said = [];
      for (const file of [...input.files].slice(0, 20)) {
        try {
          if (file.size > LARGEST_FILE) { throw new Error("larger than 50 MB"); }
          const count = this.app.scores.open(JSON.parse(await file.text()));
          said.push(`${file.name}: ${count.scores} new scores and ${count.votes} new votes` +
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
