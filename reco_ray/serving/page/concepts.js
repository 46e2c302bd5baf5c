/** The field of concepts: a chip each, suggestions from what the service has ready. */

import { $, h } from "./dom.js";

const MOST_SUGGESTIONS = 8;
const input = $("concept");

let names = [];
let known = [];
let limits = { concepts: Infinity, concept_length: Infinity };

/** Starts the field. `serviceLimits`: of /v1/info. */
export function startConcepts(serviceLimits) {
  limits = serviceLimits;
  input.addEventListener("keydown", (event) => {
    if (event.isComposing) return; // an input method is still at work on a word
    if (event.key === "Enter" && input.value.trim()) {
      event.preventDefault(); // with nothing typed, Enter submits the form
      addTyped();
    } else if (event.key === "Backspace" && !input.value && names.length) {
      remove(names.length - 1);
    }
  });
  input.addEventListener("input", () => (/[,;\n]/.test(input.value) ? addTyped() : showSuggestions()));
  input.addEventListener("blur", (event) => {
    // Typed and then tabbed on: the word is meant. Not when the next is a suggestion, which completes it.
    if (!event.relatedTarget?.closest("#suggestions")) addTyped();
  });
  $("suggestions").addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
  $("chips").addEventListener("click", (event) => event.target === event.currentTarget && input.focus());
  render();
}

/** The chosen concepts; what is typed and not yet a chip becomes one. */
export function chosenConcepts() {
  addTyped();
  return [...names];
}

/** Names to suggest, the likeliest first. */
export function suggest(suggestions) {
  known = suggestions;
  showSuggestions();
}

function addTyped() {
  const words = input.value.split(/[,;\n]/).map(tidy).filter(Boolean);
  input.value = "";
  for (const word of words) add(word);
  showSuggestions();
}

function add(name) {
  if (names.some((other) => same(other, name))) return say(`${name} is there already.`);
  if (names.length >= limits.concepts) return say(`At most ${limits.concepts} concepts.`);
  if (name.length > limits.concept_length) return say(`A concept has at most ${limits.concept_length} characters.`);
  names.push(name);
  say(`${name} added.`);
  render();
}

function remove(index) {
  const [name] = names.splice(index, 1);
  say(`${name} removed.`);
  render();
  // The button that had the focus is gone: the next one takes it, or the field.
  (document.querySelectorAll("#chip-list button")[index] ?? input).focus();
}

function render() {
  $("chip-list").replaceChildren(
    ...names.map((name, index) =>
      h(
        "li",
        { class: "chip" },
        h("bdi", {}, name),
        h("button", { type: "button", "aria-label": `Remove ${name}`, onclick: () => remove(index) }, "×"),
      ),
    ),
  );
  input.placeholder = names.length ? "" : "cat, sofa, window";
  showSuggestions();
}

function showSuggestions() {
  const typed = tidy(input.value).toLowerCase();
  const fitting = known.filter((name) => !names.some((other) => same(other, name)));
  const begun = fitting.filter((name) => name.toLowerCase().startsWith(typed));
  $("suggestions").replaceChildren(
    ...begun.slice(0, MOST_SUGGESTIONS).map((name) =>
      h(
        "li",
        {},
        h(
          "button",
          {
            type: "button",
            "aria-label": `Add ${name}`,
            onclick: () => {
              input.value = "";
              add(name);
              input.focus();
            },
          },
          h("bdi", {}, name),
        ),
      ),
    ),
  );
}

const say = (words) => ($("concept-live").textContent = words);
const tidy = (word) => word.normalize("NFC").replace(/\s+/g, " ").trim();
const same = (one, other) => one.toLowerCase() === other.toLowerCase();
