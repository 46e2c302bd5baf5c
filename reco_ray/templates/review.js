"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const key = `reco-ray review ${data.masks} ${data.made_at}`;
const idOf = (item) => `${item.label} ${item.uri}`;
const verdicts = load();
let shown = [];
let place = 0;

// A browser may refuse to store anything for a page from a file: then the verdicts last as long as the page is open.
function load() {
  try {
    return JSON.parse(localStorage.getItem(key)) || {};
  } catch {
    return {};
  }
}

function store() {
  try {
    localStorage.setItem(key, JSON.stringify(verdicts));
  } catch {}
}

function fill() {
  const options = [["all", "everything"], ["random", "the random sample"], ["unsure", "what the model is unsure of"],
    ["open", "what has no verdict yet"]];
  const found = data.concepts.filter((concept) => data.items.some((item) => item.concept === concept));
  for (const [value, text] of [...options, ...found.map((concept) => [`concept ${concept}`, concept])]) {
    const items = data.items.filter(chosenBy(value));
    if (items.length || value === "open") at("filter").add(new Option(value === "open" ? text : `${text} (${items.length})`, value));
  }
  for (const concept of ["something else", ...data.concepts]) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = concept;
    button.addEventListener("click", () => judge("bad", concept));
    at("instead").append(button);
  }
}

function chosenBy(filter) {
  if (filter === "all") return () => true;
  if (filter === "open") return (item) => !verdicts[idOf(item)];
  if (filter.startsWith("concept ")) return (item) => item.concept === filter.slice(8);
  return (item) => item.sample === filter;
}

function percent(share) {
  return `${share < 0.1 ? (100 * share).toFixed(1) : Math.round(100 * share)} %`;
}

function scored(entry) {
  return data.probabilities ? `${Math.round(100 * entry.score)} % sure` : `score ${entry.score.toFixed(2)}`;
}

function labelled(element, entry, text) {
  const chip = document.createElement("span");
  chip.className = "chip";
  chip.style.background = entry.colour;
  element.replaceChildren(chip, text);
  return element;
}

function show() {
  const item = shown[place];
  at("end").hidden = Boolean(item);
  at("card").hidden = !item;
  const counts = { good: 0, bad: 0, unsure: 0 };
  for (const each of data.items) {
    const given = verdicts[idOf(each)];
    if (given) counts[given.verdict] += 1;
  }
  at("good").style.width = `${100 * counts.good / data.items.length}%`;
  at("bad").style.width = `${100 * counts.bad / data.items.length}%`;
  at("doubt").style.width = `${100 * counts.unsure / data.items.length}%`;
  const position = item ? `${place + 1} of ${shown.length}; ` : "";
  at("count").textContent = `${position}${counts.good} good, ${counts.bad} bad, ${counts.unsure} unsure`;
  if (!item) return;
  labelled(at("title"), item, item.concept);
  const why = item.sample === "random" ? "drawn at random" : "the model is unsure";
  at("about").textContent = `${why} · ${scored(item)} · ${percent(item.share)} of the image · ${item.size}`;
  at("mask").src = item.mask;
  at("mask").alt = `${item.name}: the mask of ${item.concept}, everything else darkened`;
  at("photo").src = data.photos[item.photo];
  at("photo").alt = item.name;
  at("name").textContent = item.name;
  at("others").replaceChildren(...item.others.map((other) =>
    labelled(document.createElement("li"), other, `${other.concept}, ${percent(other.share)} of the image, ${scored(other)}`)));
  if (!item.others.length) at("others").append(Object.assign(document.createElement("li"), { textContent: "nothing" }));
  const given = verdicts[idOf(item)] || {};
  for (const button of document.querySelectorAll("[data-verdict]")) {
    button.setAttribute("aria-pressed", String(button.dataset.verdict === given.verdict));
  }
  for (const button of at("instead").children) {
    button.setAttribute("aria-pressed", String(button.textContent === given.instead));
    button.hidden = button.textContent === item.concept;
  }
}

function judge(verdict, instead = "") {
  const item = shown[place];
  if (!item) return;
  verdicts[idOf(item)] = { verdict, instead };
  store();
  move(1);
}

function move(step) {
  place = Math.max(0, Math.min(shown.length, place + step));
  show();
}

function select() {
  shown = data.items.filter(chosenBy(at("filter").value));
  const first = shown.findIndex((item) => !verdicts[idOf(item)]);
  place = first < 0 ? 0 : first;
  show();
}

function field(value) {
  const text = String(value);
  return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv() {
  const columns = ["uri", "concept", "verdict", "sample", "instead", "score", "share"];
  const rows = data.items.filter((item) => verdicts[idOf(item)]).map((item) => {
    const { verdict, instead } = verdicts[idOf(item)];
    return [item.uri, item.concept, verdict, item.sample, instead, item.score.toFixed(4), item.share.toFixed(4)];
  });
  return [columns, ...rows].map((row) => row.map(field).join(",")).join("\n") + "\n";
}

function save() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
  link.download = "verdicts.csv";
  link.click();
  URL.revokeObjectURL(link.href);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const actions = {
    g: () => judge("good"), b: () => judge("bad"), u: () => judge("unsure"),
    ArrowRight: () => move(1), ArrowLeft: () => move(-1),
  };
  const action = actions[event.key] || actions[event.key.toLowerCase()];
  if (!action) return;
  event.preventDefault();
  action();
});
for (const button of document.querySelectorAll("[data-verdict]")) {
  button.addEventListener("click", () => judge(button.dataset.verdict));
}
at("back").addEventListener("click", () => move(-1));
at("next").addEventListener("click", () => move(1));
at("filter").addEventListener("change", select);
at("save").addEventListener("click", save);
fill();
select();
document.documentElement.dataset.ready = "true";
