"use strict";
(function () {
  var slider = document.getElementById("fs-epoch");
  function at(shot, epoch) {
    // A run that ended earlier keeps showing its last epoch, faded.
    var known = shot.dataset.epochs.split(" ").map(Number), last = known[0];
    known.forEach(function (one) { if (one <= epoch) { last = one; } });
    var addresses = shot.dataset.pattern.split(" ").map(function (pattern) {
      return pattern.replace("{epoch}", ("000" + last).slice(-4));
    });
    shot.querySelector("img").src = addresses[0];
    shot.href = addresses[1];
    shot.dataset.epoch = last;
    shot.classList.toggle("older", last < epoch);
  }
  if (slider) {
    var epochs = slider.dataset.epochs.split(" ").map(Number);
    var shots = Array.from(document.querySelectorAll("#answer [data-picture]"));
    slider.hidden = false;
    slider.addEventListener("input", function () {
      var epoch = epochs[slider.value];
      slider.nextElementSibling.textContent = (epoch ? epoch : "0, the base model") + " of " + epochs[epochs.length - 1];
      shots.forEach(function (shot) { if (!shot.closest("[hidden]")) { at(shot, epoch); } });
    });
  }
  var more = document.querySelector("[data-show-all]");
  if (more) {
    more.hidden = false;
    more.addEventListener("click", function () {
      document.querySelectorAll("#answer .fs-row[hidden]").forEach(function (row) { row.hidden = false; });
      if (slider) { slider.dispatchEvent(new Event("input")); }
      more.remove();
    });
  }
  function copied(button, text) {
    button.textContent = text;
    setTimeout(function () { button.textContent = "Copy"; }, 1500);
  }
  function select(button) {
    // Without a clipboard the command is selected, ready for Ctrl-C.
    var code = button.parentNode.querySelector("code"), range = document.createRange();
    range.selectNodeContents(code);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    copied(button, document.execCommand("copy") ? "Copied" : "Press Ctrl-C");
  }
  document.querySelectorAll("[data-copy]").forEach(function (button) {
    button.hidden = false;
    button.addEventListener("click", function () {
      if (!navigator.clipboard) { select(button); return; }
      navigator.clipboard.writeText(button.dataset.copy).then(
        function () { copied(button, "Copied"); }, function () { select(button); });
    });
  });
}());
