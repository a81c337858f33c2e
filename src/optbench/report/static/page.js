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
  function sort(head) {
    var table = head.closest("table"), body = table.tBodies[0];
    var down = head.getAttribute("aria-sort") === "ascending";
    table.querySelectorAll("thead th").forEach(function (other) { other.removeAttribute("aria-sort"); });
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    Array.from(body.rows).map(function (row) { return [key(row, head.cellIndex), row]; }).sort(function (a, b) {
      if (a[0] === null || b[0] === null) { return (a[0] === null) - (b[0] === null); }
      return (down ? -1 : 1) * compare(a[0], b[0]);
    }).forEach(function (pair) { body.appendChild(pair[1]); });
  }
  document.querySelectorAll("table.sortable thead th").forEach(function (head) {
    head.querySelector("button").addEventListener("click", function () { sort(head); });
  });
  function follow(run) {
    document.body.classList.toggle("following", run !== null);
    document.querySelectorAll(".lit").forEach(function (part) { part.classList.remove("lit"); });
    if (run === null) { return; }
    document.querySelectorAll("path[data-run], tr[data-run]").forEach(function (part) {
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
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  }
  window.addEventListener("hashchange", open);
  document.addEventListener("click", function (event) {
    var link = event.target.closest ? event.target.closest("a[href^='#run-']") : null;
    if (link && link.hash === location.hash) { open(); }
  });
  open();
}());
