// The box on the page of symptoms, and a search field that takes a pasted error message. Nothing is sent anywhere.
(function (root) {
  "use strict";

  const COMMON = new Set("the of a an in is to not no and or for with at on by be it this that was has have as from you".split(" "));

  function words(text) {
    return new Set((text.toLowerCase().match(/[\p{L}\p{N}]+/gu) || []).filter((w) => w.length > 2 && !COMMON.has(w)));
  }

  // The symptoms that a text shows: those whose pattern matches a line, else those that share most of its words.
  function find(symptoms, text) {
    const lines = text.split(/\r?\n/).map((line) => line.slice(0, 4000));
    const fits = ([pattern, flags]) => lines.some((line) => new RegExp(pattern, flags).test(line));
    const sure = symptoms.filter((s) => s.patterns.some(fits));
    if (sure.length) return { sure: true, found: [...sure.filter((s) => !s.weak), ...sure.filter((s) => s.weak)] };
    const asked = words(text);
    const scored = symptoms.map((s) => {
      const patterns = s.patterns.map(([pattern]) => pattern.replace(/\\[bwdsS]/g, " "));
      const has = words([s.title, s.says, ...patterns].join(" "));
      return [[...asked].filter((w) => has.has(w)).length, s];
    });
    const least = Math.max(1, Math.min(3, asked.size * 0.4));
    const near = scored.filter(([shared]) => shared >= least).sort((a, b) => b[0] - a[0]);
    return { sure: false, found: near.slice(0, 5).map(([, s]) => s) };
  }

  // What to search for when a message is pasted: the name of the symptom it shows, else its words. As it is it would find
  // nothing, for the search takes colons, signs and quotes for operators.
  function searchable(symptoms, text) {
    const { sure, found } = find(symptoms, text);
    if (sure) return found[0].title;
    const plain = text.replace(/[^\p{L}\p{N}_.]+/gu, " ").replace(/(^|\s)\.+|\.+(?=\s|$)/g, "$1");
    return plain.split(" ").filter((word) => words(word).size).join(" ").slice(0, 300);
  }

  function show(box, text) {
    box.textContent = "";
    if (!text.trim()) return;
    const { sure, found } = find(root.QLORA_SYMPTOMS, text);
    const said = document.createElement("p");
    const nearest = sure ? "This is:" : "No pattern matches; the nearest are:";
    said.textContent = found.length ? nearest : "No symptom like this is known.";
    const list = document.createElement("ul");
    for (const symptom of found.slice(0, 8)) {
      const item = document.createElement("li");
      const link = document.createElement("a");
      link.href = "./" + symptom.id + "/";
      link.textContent = symptom.title;
      item.append(link, ": " + symptom.says);
      list.append(item);
    }
    box.append(said, list);
  }

  function start() {
    const field = document.getElementById("symptom-text");
    const box = document.getElementById("symptom-found");
    if (field && box) field.addEventListener("input", () => show(box, field.value));
    const search = document.querySelector("[data-md-component=search-query]");
    if (search)
      search.addEventListener("paste", (event) => {
        event.preventDefault();
        search.value = searchable(root.QLORA_SYMPTOMS, search.value + " " + event.clipboardData.getData("text"));
        search.dispatchEvent(new KeyboardEvent("keyup", { bubbles: true }));
      });
  }

  if (typeof module !== "undefined") module.exports = { find, searchable };
  else if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})(typeof window === "undefined" ? globalThis : window);
