"use strict";
// In a page that is alone, images are inside of it: what asks for a file gets its content.
(function () {
  var images = window.optbenchImages;
  var asked = new WeakMap();

  // "../run/thumbs/epoch-0001/a.webp" -> "run/images/epoch-0001/a": small and large are one.
  function find(address) {
    var text = String(address).replace(/^(?:\.{1,2}\/)+/, "").split(/[?#]/)[0];
    try { text = decodeURIComponent(text); } catch (error) { /* as it stands */ }
    var key = text.replace("/thumbs/", "/images/").replace(/\.[a-z0-9]+$/i, "");
    return Object.hasOwn(images.files, key) ? images.data[images.files[key]] : null;
  }

  function resolved(address) { return /^(?:data|blob|https?):/.test(address) ? address : find(address) || "data:,"; }

  var source = Object.getOwnPropertyDescriptor(HTMLImageElement.prototype, "src");
  var set = Element.prototype.setAttribute, get = Element.prototype.getAttribute;
  function put(image, address) {
    if (asked.get(image) === String(address)) { return; }
    asked.set(image, String(address));
    source.set.call(image, resolved(String(address)));
  }
  Object.defineProperty(HTMLImageElement.prototype, "src", {
    configurable: true, enumerable: true, get: source.get, set: function (address) { put(this, address); } });
  HTMLImageElement.prototype.setAttribute = function (name, value) {
    if (name === "src") { put(this, value); } else { set.call(this, name, value); }
  };
  HTMLImageElement.prototype.getAttribute = function (name) {
    return name === "src" && asked.has(this) ? asked.get(this) : get.call(this, name);
  };

  // A script that the page would load from beside it runs from inside, under the page's policy.
  var scriptSource = Object.getOwnPropertyDescriptor(HTMLScriptElement.prototype, "src");
  Object.defineProperty(HTMLScriptElement.prototype, "src", {
    configurable: true, enumerable: true, get: scriptSource.get,
    set: function (address) {
      var script = this, name = String(address).replace(/^\.\//, "").split("?")[0];
      if (!Object.hasOwn(images.scripts, name)) { setTimeout(function () { script.dispatchEvent(new Event("error")); }); return; }
      script.textContent = images.scripts[name];
      setTimeout(function () { script.dispatchEvent(new Event("load")); });
    } });

  // A link to an image opens it in a window of its own; one to another file leads nowhere.
  document.addEventListener("click", function (event) {
    var link = event.target.closest ? event.target.closest("a[href]") : null;
    if (!link || event.defaultPrevented) { return; }
    var address = link.getAttribute("href");
    if (/^(?:#|data:|blob:|https?:)/.test(address)) { return; }
    event.preventDefault();
    var content = find(address);
    if (!content) { return; }
    var parts = content.split(","), bytes = Uint8Array.from(atob(parts[1]), function (letter) { return letter.charCodeAt(0); });
    window.open(URL.createObjectURL(new Blob([bytes], { type: "image/webp" })), "_blank");
  });
}());
