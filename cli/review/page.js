"use strict";
const pairs = JSON.parse(document.getElementById("pairs").textContent);
const kept = "review " + pairs[0].pair;
const chosen = JSON.parse(localStorage.getItem(kept) || "{}"); // pair -> {better, comment}
const of = (pair) => (chosen[pair] ||= { better: "", comment: "" });
const element = (id) => document.getElementById(id);
let at = Math.max(0, pairs.findIndex((each) => !of(each.pair).better));

function show() {
  const { pair, asked, reference, answers } = pairs[at];
  const done = pairs.filter((each) => of(each.pair).better).length;
  element("place").textContent = `Pair ${at + 1} of ${pairs.length}; ${done} chosen`;
  element("progress").value = done / pairs.length;
  element("asked").firstChild.textContent = asked;
  element("reference").textContent = reference;
  element("comment").value = of(pair).comment;
  document.querySelectorAll(".answer pre").forEach((each, number) => (each.textContent = answers[number]));
  document.querySelectorAll("[data-choice]").forEach((each) =>
    each.classList.toggle("chosen", each.dataset.choice === of(pair).better));
  element("back").disabled = at === 0;
  element("next").disabled = at === pairs.length - 1;
}

function keep(change) {
  Object.assign(of(pairs[at].pair), change);
  localStorage.setItem(kept, JSON.stringify(chosen));
}

function move(step) {
  at = Math.min(Math.max(at + step, 0), pairs.length - 1);
  show();
}

function choose(better) {
  keep({ better });
  move(1);
}

function save() {
  const cell = (text) => `"${text.replaceAll('"', '""')}"`;
  const lines = pairs.map(({ pair }) => [pair, of(pair).better, of(pair).comment].map(cell).join(","));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([["pair,better,comment", ...lines, ""].join("\r\n")], { type: "text/csv" }));
  link.download = document.title + ".csv";
  link.click();
}

document.querySelectorAll("button[data-choice]").forEach((each) => each.addEventListener("click", () => choose(each.dataset.choice)));
element("back").addEventListener("click", () => move(-1));
element("next").addEventListener("click", () => move(1));
element("save").addEventListener("click", save);
element("comment").addEventListener("input", (event) => keep({ comment: event.target.value }));
document.addEventListener("keydown", (event) => {
  if (event.target === element("comment") || event.ctrlKey || event.metaKey || event.altKey) return;
  const better = { a: "A", b: "B", t: "tie" }[event.key.toLowerCase()];
  if (better) choose(better);
  if (event.key === "ArrowLeft") move(-1);
  if (event.key === "ArrowRight") move(1);
});
show();
