"use strict";
(function () {
  function key(row, index) {
    var cell = row.cells[index];
    var text = cell.hasAttribute("data-sort") ? cell.getAttribute("data-sort") : cell.textContent.trim();
    if (text === "" || text === "-" || text === "null") { return null; }
    var number = Number(text);
    return isNaN(number) ? text : number;
  }
  function compare(one, other) {
    if (typeof one === "number" && typeof other === "number") { return one - other; }
    return String(one).localeCompare(String(other), "en", { numeric: true });
  }
  function isGrouped(table) { return table.classList.contains("grouped"); }
  // Rows that are sorted and filtered together: a setting's means with its runs.
  function blocks(table) {
    var rows = Array.from(table.tBodies[0].rows), made = [];
    rows.forEach(function (row) {
      var last = made[made.length - 1];
      if (isGrouped(table) && last && row.dataset.member && last[0].dataset.group === row.dataset.member) { last.push(row); } else { made.push([row]); }
    });
    return made;
  }
  function sort(head) {
    var table = head.closest("table"), body = table.tBodies[0];
    var down = head.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("thead th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    blocks(table).map(function (rows) { return [key(rows[0], head.cellIndex), rows]; }).sort(function (a, b) {
      if (a[0] === null || b[0] === null) { return (a[0] === null) - (b[0] === null); }
      return (down ? -1 : 1) * compare(a[0], b[0]);
    }).forEach(function (pair) { pair[1].forEach(function (row) { body.appendChild(row); }); });
  }
  function filter(table, words) {
    var open = table.dataset.open ? table.dataset.open.split(" ") : [];
    blocks(table).forEach(function (rows) {
      var text = rows.map(function (row) { return row.textContent; }).join(" ").toLowerCase();
      var passes = words.every(function (word) { return text.indexOf(word) >= 0; });
      rows.forEach(function (row) {
        var isClosed = isGrouped(table) && row.dataset.member && open.indexOf(row.dataset.member) < 0;
        row.hidden = !passes || Boolean(isClosed) || Boolean(!isGrouped(table) && row.dataset.group);
      });
    });
  }
  function element(tag, text, attributes) {
    var made = document.createElement(tag);
    made.textContent = text;
    Object.keys(attributes || {}).forEach(function (name) { made.setAttribute(name, attributes[name]); });
    return made;
  }
  function tools(table) {
    var heads = Array.from(table.tHead.rows[0].cells), rows = Array.from(table.tBodies[0].rows);
    var groups = rows.filter(function (row) { return row.dataset.group; });
    if (rows.length < 8 && heads.length < 8 && !groups.length) { return; }
    var bar = element("div", "", { class: "table-tools" });
    var search = element("input", "", { type: "search", placeholder: "filter rows", "aria-label": "filter rows" });
    function show() { filter(table, search.value.toLowerCase().split(/\s+/).filter(Boolean)); }
    search.addEventListener("input", show);
    if (rows.length >= 8) { bar.append(search); }
    if (groups.length) {
      table.classList.add("grouped");
      var label = element("label", ""), box = element("input", "", { type: "checkbox" });
      box.checked = true;
      box.addEventListener("change", function () { table.classList.toggle("grouped", box.checked); show(); });
      label.append(box, " one row per setting");
      bar.append(label);
      groups.forEach(function (row) {
        var button = element("button", "", { type: "button", class: "unfold", "aria-expanded": "false", "aria-label": "runs of " + row.querySelector("b").textContent });
        button.addEventListener("click", function () {
          var open = new Set((table.dataset.open || "").split(" ").filter(Boolean));
          if (!open.delete(row.dataset.group)) { open.add(row.dataset.group); }
          table.dataset.open = Array.from(open).join(" ");
          button.setAttribute("aria-expanded", String(open.has(row.dataset.group)));
          show();
        });
        row.querySelector("th").prepend(button);
      });
    }
    var choice = element("details", "", { class: "columns" });
    choice.append(element("summary", "Columns"));
    heads.forEach(function (head, index) {
      if (index === 0) { return; }
      var label = element("label", ""), box = element("input", "", { type: "checkbox" });
      box.checked = true;
      box.addEventListener("change", function () {
        Array.from(table.rows).forEach(function (row) { if (row.cells[index]) { row.cells[index].hidden = !box.checked; } });
      });
      label.append(box, " " + head.textContent.trim());
      choice.append(label);
    });
    bar.append(choice);
    table.closest(".wide").before(bar);
    show();
  }
  document.querySelectorAll("table.sortable").forEach(function (table) {
    table.querySelectorAll("thead th").forEach(function (head) {
      head.querySelector("button").addEventListener("click", function () { sort(head); });
    });
    tools(table);
  });
  function follow(run) {
    document.querySelectorAll(".lit").forEach(function (part) { part.classList.remove("lit"); });
    if (run === null) { return; }
    document.querySelectorAll("tr[data-run]").forEach(function (part) {
      if (part.getAttribute("data-run") === run) { part.classList.add("lit"); }
    });
  }
  function runOf(event) {
    var part = event.target.closest ? event.target.closest("[data-run]") : null;
    return part === null ? null : part.getAttribute("data-run");
  }
  document.addEventListener("mouseover", function (event) { follow(runOf(event)); });
  document.addEventListener("focusin", function (event) { follow(runOf(event)); });
  function open() {
    var target = location.hash.length > 1 ? document.getElementById(location.hash.slice(1)) : null;
    if (!target) { return; }
    for (var part = target; part; part = part.parentElement) { if (part.tagName === "DETAILS") { part.open = true; } }
    // Sections above get their true height only once they come near: then the target has moved.
    var turns = 0, top = null;
    (function arrive() {
      target.scrollIntoView();
      var now = target.getBoundingClientRect().top;
      if (turns++ < 20 && (turns < 4 || now !== top)) { top = now; requestAnimationFrame(arrive); }
    }());
  }
  window.addEventListener("hashchange", open);
  document.addEventListener("click", function (event) {
    var link = event.target.closest ? event.target.closest("a[href^='#']") : null;
    if (link && link.hash && link.hash === location.hash) { open(); }
  });
  open();
}());
