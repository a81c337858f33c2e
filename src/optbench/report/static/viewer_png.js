"use strict";
// The table as it is shown, as one PNG with its labels and the page's verdict.
(function (ob) {
  const { element, visible } = ob;
  const CELL = 256, GAP = 6, MARGIN = 28, LABEL = 200, LINE = 22, LONGEST = 16000, FONT = "system-ui, sans-serif";

  // The view as `optbench report --sheet` takes it.
  function viewOf(app) {
    const { state: { value }, layout, model } = app, words = [`rows=${value.rows}`, `columns=${value.cols}`];
    for (const [id, key] of Object.entries(layout.rest)) {
      if (!key || id === value.rows || id === value.cols) { continue; }
      const one = model.axes.get(id).values.find((other) => other.key === key);
      words.push(`${id}=${["run", "setting", "shot"].includes(id) && one ? one.label : key}`);
    }
    return words.join(",");
  }

  // A page opened by double click may show its images and may not read them: no browser lets it.
  function tellCommand(app) {
    const sweep = decodeURIComponent(location.pathname).replace(/\/report\/[^/]*$/, "");
    const quoted = (text) => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
    const command = `optbench report ${quoted(sweep)} --sheet ${quoted(viewOf(app))}`;
    const dialog = element("dialog", { class: "vh", "aria-label": "this table as a PNG" }), close = element("button", { type: "button" }, "close");
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => dialog.remove());
    dialog.append(element("h2", {}, "This table as a PNG"),
      element("p", {}, "A page opened by double click may not read its own images. Type this, or open the page of optbench share or optbench report --serve, where the button saves the PNG itself:"),
      element("pre", {}, element("code", {}, command)), ob.copyButton("copy", () => command), " ", close);
    app.root.append(dialog);
    dialog.showModal();
  }

  function wrapped(pen, text, width, most) {
    const lines = [];
    for (const word of text.split(/\s+/)) {
      const last = lines[lines.length - 1], longer = last === undefined ? word : `${last} ${word}`;
      if (last !== undefined && pen.measureText(longer).width <= width) { lines[lines.length - 1] = longer; }
      else if (lines.length < most) { lines.push(word); }
      else { lines[most - 1] += " ..."; break; }
    }
    return lines;
  }

  function loaded(address) {
    return new Promise((resolve) => {
      const image = new Image();
      image.onload = () => resolve(image);
      image.onerror = () => resolve(null);
      image.src = address;
    });
  }

  async function draw(app) {
    const { layout, model } = app, { rows, cols } = layout;
    const cells = rows.map((row, index) => cols.map((col, place) => layout.cellAt(index, place)));
    const first = cells.flat().find((cell) => cell && cell.letter === "1");
    if (!first) { return null; }
    const height = Math.max(48, Math.min(CELL, Math.floor((LONGEST - 400) / rows.length) - GAP));
    const widest = Math.floor((LONGEST - LABEL) / cols.length) - GAP;
    const widths = cols.map((col, place) => {
      const shapes = cells.map((row) => row[place]).filter(Boolean).map((cell) => cell.shot.width / cell.shot.height);
      return Math.max(32, Math.min(Math.round(height * Math.max(...shapes, 0.5)), widest));
    });
    const lefts = widths.map((_, place) => MARGIN + LABEL + widths.slice(0, place).reduce((sum, width) => sum + width + GAP, 0));
    const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
    const inner = Math.max(640, lefts[lefts.length - 1] + widths[widths.length - 1] - MARGIN);
    const textOf = (selector) => { const part = document.querySelector(selector); return part ? part.textContent.trim() : ""; };
    pen.font = `600 26px ${FONT}`;
    const title = wrapped(pen, textOf("#answer h1") || model.data.title, inner, 3);
    pen.font = `15px ${FONT}`;
    const basis = wrapped(pen, visible([model.data.name, ...Object.entries(layout.rest).filter(([, key]) => key)
      .map(([id, key]) => `${model.axes.get(id).title} ${key}`)].join(", ")), inner, 3);
    const heads = cols.map((col, place) => wrapped(pen, visible(col.label), widths[place], 3));
    const top = MARGIN + title.length * 32 + basis.length * LINE + 10 + Math.max(...heads.map((lines) => lines.length)) * LINE;
    canvas.width = inner + 2 * MARGIN;
    canvas.height = top + rows.length * (height + GAP) - GAP + MARGIN;
    pen.fillStyle = "#fff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.textBaseline = "top";
    const write = (lines, left, from, step, font, fill, align) => {
      Object.assign(pen, { font: `${font} ${FONT}`, fillStyle: fill, textAlign: align || "left" });
      lines.forEach((line, index) => pen.fillText(line, left, from + index * step));
    };
    write(title, MARGIN, MARGIN, 32, "600 26px", "#16181d");
    write(basis, MARGIN, MARGIN + title.length * 32, LINE, "15px", "#5b6270");
    heads.forEach((lines, place) => write(lines, lefts[place] + widths[place] / 2, top - lines.length * LINE, LINE, "15px", "#16181d", "center"));
    for (const [index, row] of rows.entries()) {
      const from = top + index * (height + GAP);
      pen.font = `18px ${FONT}`;
      const words = [row.block && row.block.label, row.label].filter(Boolean).map(visible).join(": ");
      const lines = wrapped(pen, words, LABEL - 12, 5);
      write(lines, MARGIN, from + Math.max(0, (height - lines.length * LINE) / 2), LINE, "18px", "#16181d");
      const images = await Promise.all(cells[index].map((cell) => (cell && cell.letter === "1" ? loaded(model.address(cell, false)) : null)));
      images.forEach((image, place) => {
        const left = lefts[place], width = widths[place];
        if (!image) {
          pen.fillStyle = "#eceef2";
          pen.fillRect(left, from, width, height);
          write(wrapped(pen, model.absence(cells[index][place])[1], width - 12, 2), left + width / 2, from + height / 2 - 10, LINE, "15px", "#5b6270", "center");
          return;
        }
        const scale = Math.min(width / image.naturalWidth, height / image.naturalHeight), across = image.naturalWidth * scale, down = image.naturalHeight * scale;
        pen.drawImage(image, left + (width - across) / 2, from + (height - down) / 2, across, down);
      });
    }
    return canvas;
  }

  ob.savePng = async function (app) {
    if (location.protocol === "file:" && !window.optbenchImages) { tellCommand(app); return; }
    const canvas = await draw(app);
    if (!canvas) { return; }
    canvas.toBlob((blob) => {
      const link = element("a", { download: `${app.model.data.name}.png` });
      link.href = URL.createObjectURL(blob);
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    }, "image/png");
  };
}(window.optbench));
