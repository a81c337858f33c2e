"use strict";
// Show a newer build of this page while its sweep trains, and keep the reader's place in it.
(function () {
  var POLL_MS = 5000, QUIET_MS = 3000, KEY = "optbench live";
  var mark = document.querySelector('meta[name="optbench-build"]');
  if (!mark) { return; }
  var id = mark.getAttribute("content"), pill = null, timer = 0, lastTouch = 0;

  // A script and no fetch: a page opened by double click may read nothing else.
  function ask() {
    var script = document.createElement("script");
    script.src = "./built.js?" + Date.now();
    script.onload = function () { script.remove(); see(window.optbenchBuilt); };
    script.onerror = function () { script.remove(); };
    document.head.appendChild(script);
  }

  function see(built) {
    if (!built) { return; }
    if (built.id !== id) { renew(); return; }
    clearInterval(timer);
    timer = built.live ? setInterval(function () { if (!document.hidden) { ask(); } }, POLL_MS) : 0;
    if (built.live) { say("Live, as of " + new Date(built.time).toLocaleTimeString(), "training; this page renews itself"); }
    else if (pill) { pill.remove(); pill = null; }
  }

  function say(words, title) {
    if (!pill) {
      pill = document.createElement("button");
      pill.type = "button";
      pill.className = "live";
      pill.addEventListener("click", reload);
      document.body.appendChild(pill);
    }
    pill.textContent = words;
    pill.title = title;
  }

  // Nobody is interrupted: not in a dialog, not while typing, not in the middle of a movement.
  function isBusy() {
    var active = document.activeElement;
    return document.querySelector("dialog[open]") !== null || document.fullscreenElement !== null ||
      (active !== null && active.matches("input:not([type=range]):not([type=checkbox]), textarea, select")) ||
      (!document.hidden && Date.now() - lastTouch < QUIET_MS);
  }

  function renew() {
    if (!isBusy()) { reload(); return; }
    say("New results: show them", "the page has been built again");
    clearInterval(timer);
    timer = setInterval(function () { if (!isBusy()) { reload(); } }, 1000);
  }

  function places() { return Array.from(document.querySelectorAll("section[id], h2[id], h3[id], details[id]")); }

  function nameOf(details) {
    var summary = details.querySelector("summary"), own = details.id || (summary ? summary.textContent.trim() : "");
    var section = details.parentElement.closest("[id]");
    return (section ? section.id : "") + " " + own.replace(/[0-9]+/g, "#");
  }

  function reload() {
    clearInterval(timer);
    // By the nearest heading above, for what stands above it may have grown.
    var above = places().filter(function (part) { return part.getBoundingClientRect().top <= 1; }).pop();
    var kept = { y: window.scrollY, place: above ? above.id : "", from: above ? -above.getBoundingClientRect().top : 0,
      open: Array.from(document.querySelectorAll("details[open]")).map(nameOf),
      shut: Array.from(document.querySelectorAll("details:not([open])")).map(nameOf) };
    try { sessionStorage.setItem(KEY, JSON.stringify(kept)); } catch (error) { /* the place is lost, no more */ }
    location.reload();
  }

  function restore() {
    var kept = null;
    try {
      kept = JSON.parse(sessionStorage.getItem(KEY));
      sessionStorage.removeItem(KEY);
    } catch (error) { /* as if there were none */ }
    if (!kept) { return; }
    document.querySelectorAll("details").forEach(function (part) {
      var name = nameOf(part);
      if (kept.open.indexOf(name) >= 0) { part.open = true; } else if (kept.shut.indexOf(name) >= 0) { part.open = false; }
    });
    history.scrollRestoration = "manual";
    var tries = 0;
    // More than once: sections take their true height only when they come near the window.
    (function scroll() {
      var part = kept.place ? document.getElementById(kept.place) : null;
      var top = part ? window.scrollY + part.getBoundingClientRect().top + kept.from : kept.y;
      window.scrollTo({ top: top, behavior: "instant" });
      tries += 1;
      if (tries < 4) { requestAnimationFrame(scroll); } else { history.scrollRestoration = "auto"; }
    }());
  }

  ["pointerdown", "pointermove", "keydown", "wheel", "touchmove"].forEach(function (kind) {
    window.addEventListener(kind, function () { lastTouch = Date.now(); }, { passive: true, capture: true });
  });
  document.addEventListener("visibilitychange", function () { if (!document.hidden) { ask(); } });
  restore();
  ask();
}());
