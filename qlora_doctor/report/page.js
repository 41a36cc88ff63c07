(function () {
  "use strict";
  var said = document.getElementById("said");
  function fallback(code) {
    var range = document.createRange(), selection = window.getSelection();
    range.selectNodeContents(code);
    selection.removeAllRanges();
    selection.addRange(range);
    try { return document.execCommand("copy"); } catch (error) { return false; }
  }
  function show(button, done) {
    button.textContent = done ? "Copied" : "Press Ctrl+C";
    said.textContent = done ? "Copied" : "Selected; press Ctrl+C to copy";
    setTimeout(function () { button.textContent = "Copy"; said.textContent = ""; }, 2000);
  }
  document.querySelectorAll(".copy").forEach(function (box) {
    var code = box.querySelector("code"), button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", "Copy: " + code.textContent.slice(0, 80));
    button.addEventListener("click", function () {
      if (!navigator.clipboard) { show(button, fallback(code)); return; }
      navigator.clipboard.writeText(code.textContent).then(
        function () { show(button, true); }, function () { show(button, fallback(code)); });
    });
    box.appendChild(button);
  });
  var opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.prototype.filter.call(document.querySelectorAll("details"), function (d) { return !d.open; });
    opened.forEach(function (d) { d.open = true; });
  });
  window.addEventListener("afterprint", function () { opened.forEach(function (d) { d.open = false; }); });
})();
