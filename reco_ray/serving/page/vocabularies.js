/** The view of vocabularies: what there is, building one, watching it, deleting it. */

import { Problem, call, json } from "./api.js";
import { $, count, h } from "./dom.js";
import { showError } from "./status.js";

const POLL = 1000; // milliseconds, while something is being built

/** Tells of every change of the list. */
export const vocabularies = new EventTarget();

let list = [];
let timer = null;
let use = () => {};

export const readyVocabularies = () => list.filter(({ status }) => status === "ready");

/** Starts the view. `onUse(name)` is called by a vocabulary's button. */
export function startVocabularies(onUse) {
  use = onUse;
  $("build-form").addEventListener("submit", (event) => {
    event.preventDefault();
    build();
  });
}

/** Fetches the list, and again while something is being built. */
export async function refreshVocabularies() {
  clearTimeout(timer);
  try {
    take((await json("/v1/vocabularies")).vocabularies);
    $("list-error").replaceChildren();
  } catch (error) {
    showError($("list-error"), error, refreshVocabularies);
  }
}

function take(fresh) {
  clearTimeout(timer);
  const before = new Map(list.map(({ name, status }) => [name, status]));
  list = fresh;
  show();
  for (const { name, status } of list) {
    if (before.get(name) === "building" && status !== "building") say(`${name} is ${status}.`);
  }
  vocabularies.dispatchEvent(new Event("change"));
  if (list.some(({ status }) => status === "building")) timer = setTimeout(refreshVocabularies, POLL);
}

/** A line of the form: `name`, or `name: synonym, synonym`. */
export function parseLine(line) {
  const [name, ...rest] = line.split(":");
  const synonyms = rest.join(":").split(",").map((word) => word.trim()).filter(Boolean);
  return synonyms.length ? { name: name.trim(), synonyms } : name.trim();
}

async function build() {
  const concepts = $("build-concepts").value.split("\n").filter((line) => line.trim()).map(parseLine);
  const name = $("build-name").value;
  $("build-error").replaceChildren();
  try {
    const state = await json(`/v1/vocabularies/${encodeURIComponent(name)}`, {
      method: "PUT",
      body: JSON.stringify({ concepts, background: $("build-background").checked }),
      headers: { "Content-Type": "application/json" },
    });
    say(state.status === "building" ? `${name} is being built.` : `${name} is ${state.status}.`);
    $("build-form").reset();
    take([...list.filter((other) => other.name !== name), state]);
  } catch (error) {
    showError($("build-error"), error);
  }
}

async function remove(name) {
  try {
    await call(`/v1/vocabularies/${encodeURIComponent(name)}`, { method: "DELETE" });
    say(`${name} deleted.`);
  } catch (error) {
    if (!(error instanceof Problem && error.status === 404)) return showError($("list-error"), error);
  }
  await refreshVocabularies();
  $("view-vocabularies").querySelector("h1").focus();
}

/** Brings the list up to date row by row: a row that did not change keeps its focus. */
function show() {
  const place = $("vocabulary-list");
  const old = new Map([...place.children].map((element) => [element.dataset.name, element]));
  const fresh = list.map((vocabulary) => {
    const state = JSON.stringify(vocabulary);
    const element = old.get(vocabulary.name);
    if (element?.dataset.state === state) return element;
    if (element?.dataset.status === "building" && vocabulary.status === "building") {
      showProgress(element, vocabulary);
      element.dataset.state = state;
      return element;
    }
    return row(vocabulary, state);
  });
  place.replaceChildren(...(fresh.length ? fresh : [h("li", { class: "empty soft" }, "None yet. Build one here.")]));
}

function row(vocabulary, state) {
  const { name, kind, status, concepts, error, mine } = vocabulary;
  const element = h(
    "li",
    { class: "card", dataset: { name, status, state } },
    h(
      "header",
      { class: "row" },
      h("h2", {}, name),
      h("span", { class: `badge ${status}` }, status),
    ),
    h("p", { class: "soft" }, kind === "segmenter" ? "Trained segmenter, " : "Zero-shot, ", count(concepts.length, "concept")),
    h("p", { class: "words" }, concepts.join(", ")),
  );
  if (status === "building") {
    element.append(h("progress", { "aria-label": `${name} is being built` }), h("p", { class: "soft progress-text" }));
    showProgress(element, vocabulary);
  }
  if (error) element.append(h("p", { class: "problem" }, error));
  const actions = h("div", { class: "pair" });
  if (status === "ready") actions.append(h("button", { type: "button", "aria-label": `Use ${name}`, onclick: () => use(name) }, "Use"));
  if (mine) actions.append(deleteButton(name));
  element.append(actions);
  return element;
}

function showProgress(element, { progress }) {
  const bar = element.querySelector("progress");
  if (progress.total) {
    bar.max = progress.total;
    bar.value = progress.done;
  }
  element.querySelector(".progress-text").textContent = progress.total
    ? `${progress.done} of ${progress.total} done`
    : "Waiting for its turn";
}

/** Asks once more, in place. */
function deleteButton(name) {
  const button = h("button", { type: "button", class: "quiet", "aria-label": `Delete ${name}` }, "Delete");
  const reset = () => {
    button.textContent = "Delete";
    button.setAttribute("aria-label", `Delete ${name}`);
    button.classList.remove("danger");
  };
  button.addEventListener("click", () => {
    if (button.classList.contains("danger")) return remove(name);
    button.textContent = "Really delete?";
    button.setAttribute("aria-label", `Really delete ${name}?`);
    button.classList.add("danger");
  });
  button.addEventListener("blur", reset);
  return button;
}

const say = (words) => ($("vocabulary-live").textContent = words);
