"use strict";
// The page on which others vote: the images are inside of it.
(function (ob) {
  const { element } = ob;
  const AFTERWARDS = "Save your votes and send the file to whoever gave you this page. Nothing leaves it by itself.";

  ob.VotePage = class {
    constructor(data, root) {
      const part = (name) => root.querySelector(`[data-part="${name}"]`);
      this.model = new ob.Model(data);
      this.model.address = (cell) => `data:image/webp;base64,${data.images[cell.run.name][cell.shotIndex]}`;
      this.scores = new ob.Scores(this.model, () => this.show());
      this.voting = new ob.VoteView(part("vote"), { model: this.model, scores: this.scores, afterwards: AFTERWARDS,
        save: () => this.save(), closed: () => this.show() });
      this.rater = element("input", { type: "text", maxlength: 100, id: "rater", placeholder: "optional" });
      this.rater.addEventListener("input", () => this.scores.setRater(this.rater.value));
      this.begin = element("button", { type: "button", class: "vb-begin" }, "Vote for two minutes");
      this.begin.addEventListener("click", () => this.voting.start(this.model.runs, 0));
      this.saving = element("button", { type: "button" }, "save votes as JSON");
      this.saving.addEventListener("click", () => this.save());
      this.status = part("status");
      part("start").append(element("label", { for: "rater" }, "Your name "), this.rater, this.begin, this.saving);
      this.show();
      this.begin.focus();
    }

    show() {
      const { scores } = this, num = scores.votes.size, unsaved = scores.numUnsaved();
      if (document.activeElement !== this.rater) { this.rater.value = scores.rater; }
      this.saving.hidden = num === 0;
      const where = scores.isKept ? "stored in this browser" : "NOT stored by this browser";
      this.status.textContent = num ? `${num} ${num === 1 ? "vote" : "votes"}, ${where}, ${unsaved ? `${unsaved} unsaved` : "all saved"}. ${AFTERWARDS}` : "";
    }

    save() {
      const { scores } = this, name = (scores.rater || "rater").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40);
      ob.download(`scores-${name}.json`, "application/json", `${JSON.stringify(scores.content(), null, 1)}\n`);
      scores.markSaved();
      this.show();
    }
  };

  ob.app = new ob.VotePage(JSON.parse(document.getElementById("vote-data").textContent), document.getElementById("viewer"));
}(window.optbench));
