"use strict";
// Scores, notes and votes of one report, stored in this browser. What is stored is merged and never
// replaced: another tab, a report of the same name or a rebuilt one takes nothing away.
(function (ob) {
  const FORMAT = "optbench scores 1", STORE = "optbench report ";
  const COLUMNS = ["run", "epoch", "prompt", "seed", "width", "height", "score", "note", "image_key"];
  const WINNERS = ["left", "right", "tie", "skip"], OLDEST = 1;  // ms; of what does not say when it was given
  ob.LONGEST_NOTE = 4000;

  ob.Scores = class {
    constructor(model, onChange) {
      this.model = model;
      this.key = STORE + model.data.id;
      this.rater = "";
      this.raterAt = 0;
      this.scores = new Map();  // of an image and a rater; without score and note once they are taken back
      this.votes = new Map();  // by id
      this.undone = new Map();  // ids of votes taken back, and when
      this.savedAt = 0;  // what is newer is in no file
      this.clock = 0;
      this.isKept = true;
      try {
        const stored = localStorage.getItem(this.key);
        if (stored) { this.mergeStored(stored); } else if (this.adopt()) { this.keep(); }
      } catch (error) {
        this.isKept = false;  // storage is switched off
      }
      window.addEventListener("storage", (event) => {
        if (event.key !== this.key || event.newValue === null) { return; }
        this.mergeStored(event.newValue);
        // Another tab wrote without having seen what this one knows.
        if (JSON.stringify(this.stored()) !== event.newValue) { this.keep(); }
        onChange();
      });
    }

    mergeStored(text) {
      try {
        this.merge(JSON.parse(text));
      } catch (error) {
        localStorage.setItem(`${this.key} unreadable`, text);  // not ours, and not ours to delete
      }
    }

    // What older pages stored under the folder's name, and reports whose folder was deleted: scores and votes of
    // the very images that this report has. They stay where they are too.
    adopt() {
      let num = 0;
      for (let place = 0; place < localStorage.length; place += 1) {
        const key = localStorage.key(place), isByName = key === `${FORMAT}: ${this.model.data.name}`;
        if (!isByName && !key.startsWith(STORE)) { continue; }
        const isOurs = (entry) => {
          const run = entry && this.model.runByName.get(entry.run);
          return Boolean(run) && (entry.image_key ? entry.image_key === run.imageKey : isByName);
        };
        let content = null;
        try { content = JSON.parse(localStorage.getItem(key)); } catch (error) { continue; }
        if (!content || content.format !== FORMAT) { continue; }
        const listed = (list) => (Array.isArray(list) ? list : []);
        num += this.merge({ ...content, savedAt: 0, scores: listed(content.scores).filter(isOurs),
          votes: listed(content.votes).filter((vote) => vote && isOurs(vote.left) && isOurs(vote.right)) }).read;
      }
      return num;
    }

    now() {
      this.clock = Math.max(Date.now(), this.clock + 1);
      return this.clock;
    }

    get(id) {
      const entry = this.scores.get(id);
      return entry && this.says(entry) ? entry : undefined;
    }

    says(entry) { return entry.score !== null || entry.note !== ""; }

    cellEntry(cell, isWhole) {
      const { prompt, seed, width, height } = cell.shot;
      const place = isWhole ? { run: cell.run.name, epoch: null, prompt: null, seed: null, width: null, height: null }
        : { run: cell.run.name, epoch: cell.epoch, prompt, seed, width, height };
      return withKey(place, cell.run.imageKey);
    }

    // A score is of the image it was given to: one of the same place with another key is not shown with it.
    idOf(entry) {
      return JSON.stringify([entry.run, entry.epoch, entry.prompt, entry.seed, entry.width, entry.height, entry.image_key || null, ...(entry.rater ? [entry.rater] : [])]);
    }

    set(entry, patch) {
      const id = this.idOf(entry);
      this.scores.set(id, this.cleaned({ ...entry, score: null, note: "", ...this.scores.get(id), ...patch, at: this.now() }));
      this.keep();
    }

    setRater(name) {
      this.rater = name;
      this.raterAt = this.now();
      this.keep();
    }

    // Returns the vote's id, by which it can be taken back.
    vote(left, right, winner, repeat) {
      const id = crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}`;
      this.votes.set(id, { id, at: this.now(), left, right, winner, repeat });
      this.keep();
      return id;
    }

    undo(id) {
      this.votes.delete(id);
      this.undone.set(id, this.now());
      this.keep();
    }

    keep() {
      try {
        const stored = localStorage.getItem(this.key);
        if (stored) { this.mergeStored(stored); }
        localStorage.setItem(this.key, JSON.stringify(this.stored()));
        this.isKept = true;
      } catch (error) {
        this.isKept = false;
      }
    }

    given() { return [...this.scores.values()].filter((entry) => this.says(entry)); }

    // Every change that no saved file has.
    numUnsaved() {
      const times = [...this.scores.values(), ...this.votes.values()].map((entry) => entry.at);
      return [...times, ...(this.savedAt ? this.undone.values() : [])].filter((at) => at > this.savedAt).length;
    }

    markSaved() {
      this.savedAt = this.now();
      this.keep();
    }

    stored() {
      const byTime = ([one, first], [other, second]) => (first.at || first) - (second.at || second) || (one < other ? -1 : 1);
      return { format: FORMAT, sweep: this.model.data.name, rater: this.rater, raterAt: this.raterAt, savedAt: this.savedAt,
        scores: [...this.scores].sort(byTime).map(([, entry]) => entry), votes: [...this.votes].sort(byTime).map(([, vote]) => vote),
        undone: [...this.undone].sort(byTime) };
    }

    content() {
      const { scores, votes } = this.stored();
      return { format: FORMAT, sweep: this.model.data.name, report: this.model.data.id, rater: this.rater, scores, votes,
        undone: [...this.undone.keys()].sort() };
    }

    // Take in a file; returns how much of it was understood, and is of this report.
    open(content) {
      if (!content || content.format !== FORMAT) { throw new Error(`no file of the format "${FORMAT}"`); }
      const name = typeof content.rater === "string" ? content.rater.slice(0, 100) : "";
      const isNew = this.scores.size + this.votes.size === 0 && this.rater === "", wasSaved = this.numUnsaved() === 0;
      if (isNew && name) { this.setRater(name); }
      // Their words stay theirs when this browser saves them too.
      const whose = (entry) => ({ ...entry, rater: [entry.rater, name].find((one) => typeof one === "string" && one && one !== this.rater) });
      const known = (entry) => entry && typeof entry === "object" && this.model.runByName.has(entry.run);
      const scores = Array.isArray(content.scores) ? content.scores : [], votes = Array.isArray(content.votes) ? content.votes : [];
      const count = this.merge({ ...content, rater: undefined, raterAt: undefined, savedAt: undefined,
        scores: scores.filter(known).map(whose), votes: votes.filter((vote) => vote && known(vote.left) && known(vote.right)).map(whose) });
      if (wasSaved) { this.markSaved(); } else { this.keep(); }
      return { ...count, unknown: scores.length + votes.length - count.read };
    }

    // The later word counts, and a vote that was taken back anywhere is taken back.
    merge(content) {
      const count = { scores: 0, votes: 0, read: 0 };
      const listed = (list) => (Array.isArray(list) ? list : []);
      for (const entry of listed(content.scores)) {
        const score = this.cleaned(entry);
        if (score === null) { continue; }
        count.read += 1;
        const id = this.idOf(score), mine = this.scores.get(id);
        this.clock = Math.max(this.clock, score.at);
        if (mine && (mine.at > score.at || (mine.at === score.at && JSON.stringify(mine) >= JSON.stringify(score)))) { continue; }
        this.scores.set(id, score);
        count.scores += 1;
      }
      for (const one of listed(content.undone)) {
        const [id, at] = Array.isArray(one) ? one : [one, OLDEST];
        if (typeof id === "string") { this.undone.set(id.slice(0, 500), Math.max(this.undone.get(id) || 0, time(at))); }
      }
      const seen = new Map();  // older files give votes no id: equal ones in one file are several, in two files the same
      for (const vote of listed(content.votes)) {
        const left = this.cleaned(vote && vote.left), right = this.cleaned(vote && vote.right);
        if (!left || !right || !WINNERS.includes(vote.winner)) { continue; }
        count.read += 1;
        const cell = ({ run, epoch, prompt, seed, width, height, image_key: key }) => withKey({ run, epoch, prompt, seed, width, height }, key);
        const said = { left: cell(left), right: cell(right), winner: vote.winner, repeat: vote.repeat === true, ...by(vote.rater) };
        const text = JSON.stringify(said);
        seen.set(text, (seen.get(text) || 0) + 1);
        const id = typeof vote.id === "string" && vote.id ? vote.id.slice(0, 500) : `${text} ${seen.get(text)}`.slice(-500);
        if (!this.votes.has(id)) {
          this.votes.set(id, { id, at: time(vote.at), ...said });
          this.clock = Math.max(this.clock, time(vote.at));
          count.votes += 1;
        }
      }
      for (const id of this.undone.keys()) { this.votes.delete(id); }
      if (typeof content.rater === "string" && time(content.raterAt) > this.raterAt) {
        this.rater = content.rater.slice(0, 100);
        this.raterAt = time(content.raterAt);
      }
      if (Number.isFinite(content.savedAt)) { this.savedAt = Math.max(this.savedAt, content.savedAt); }
      this.clock = Math.max(this.clock, this.savedAt);
      return count;
    }

    // An entry with the right types, or null. Its run may be one that is not here any more.
    cleaned(entry) {
      if (!entry || typeof entry !== "object" || typeof entry.run !== "string" || !entry.run) { return null; }
      const number = (value) => (Number.isFinite(value) ? value : null);
      const score = number(entry.score), run = this.model.runByName.get(entry.run);
      // Older files do not say which image they are of.
      const key = typeof entry.image_key === "string" && entry.image_key ? entry.image_key.slice(0, 100) : run && run.imageKey;
      return { ...withKey({ run: entry.run, epoch: number(entry.epoch), prompt: typeof entry.prompt === "string" ? entry.prompt : null,
        seed: number(entry.seed), width: number(entry.width), height: number(entry.height),
        score: score === null ? null : Math.min(100, Math.max(0, score)),
        note: typeof entry.note === "string" ? entry.note.slice(0, ob.LONGEST_NOTE) : "" }, key), ...by(entry.rater), at: time(entry.at) };
    }

    csv() {
      const field = (value) => {
        let text = value === null || value === undefined ? "" : String(value);
        // A spreadsheet takes what begins so for a formula.
        if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) { text = `'${text}`; }
        return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
      };
      const entries = this.given(), columns = entries.some((entry) => entry.rater) ? [...COLUMNS, "rater"] : COLUMNS;
      const rows = entries.map((entry) => columns.map((name) => field(name === "rater" ? entry.rater || this.rater : entry[name])).join(","));
      return `${[columns.join(","), ...rows].join("\r\n")}\r\n`;
    }
  };

  function withKey(entry, key) { return key ? { ...entry, image_key: key } : entry; }

  function time(value) { return Number.isFinite(value) && value > 0 ? value : OLDEST; }

  // Whose word it is, where it is another's.
  function by(name) { return typeof name === "string" && name ? { rater: name.slice(0, 100) } : {}; }
}(window.optbench));
