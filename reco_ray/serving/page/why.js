/** Why a mask lies where it lies: the exemplars of a concept with their support maps, and which of them to take. */

import { json, picture } from "./api.js";
import { $, count, h } from "./dom.js";
import { Choices, gallery } from "./exemplars.js";
import { fitted } from "./photo.js";
import { begin, showError } from "./status.js";
import { refreshVocabularies } from "./vocabularies.js";

const POLL = 1000; // milliseconds between looks whether a vocabulary is built
const OWN_PIXELS = 1_000_000; // of an image that is added: references are made of less

let limits = null; // of /v1/info
let built = () => {};
let running = null;
let asked = null; // the answer of /v1/segment whose concepts are shown
let drafts = new Map(); // name of the concept -> Choices

/** Starts the section. `onBuilt(name)` is called with a vocabulary that was built with other exemplars. */
export function startWhy(info, onBuilt) {
  limits = info.limits;
  built = onBuilt;
  $("why-close").addEventListener("click", closeWhy);
}

export function closeWhy() {
  running?.abort();
  drafts = new Map();
  $("why").hidden = true;
}

/** Shows one concept's exemplars, with buttons for the others of the answer's legend. */
export async function showWhy(answer, concept) {
  running?.abort();
  const { signal } = (running = new AbortController());
  asked = answer;
  const others = answer.legend.filter(({ id }) => id !== null && id !== undefined);
  const body = $("why-body");
  const content = h("div", { class: "why-content" }, h("p", { class: "soft" }, "Fetching the exemplars …"));
  body.replaceChildren(tabs(others, answer, concept), content);
  $("why").hidden = false;
  $("why-title").textContent = `Why “${concept.name}”`;
  $("why-title").focus({ preventScroll: true });
  $("why").scrollIntoView({ block: "nearest" });
  const path = `/v1/concepts/${encodeURIComponent(concept.id)}`;
  try {
    const [about, sheet, draft] = await Promise.all([
      json(path, { signal }),
      picture(`${path}/exemplars`, { signal }),
      draftOf(concept.name, signal),
    ]);
    content.replaceChildren(...explanation(about, sheet), choosing(concept.name, about, draft, signal));
  } catch (error) {
    if (error.name !== "AbortError") showError(content, error, () => showWhy(answer, concept));
  }
}

function tabs(others, answer, chosen) {
  return h(
    "div",
    { class: "tabs", role: "group", "aria-label": "Concept" },
    ...others.map((other) =>
      h(
        "button",
        { type: "button", "aria-pressed": String(other.id === chosen.id), onclick: () => showWhy(answer, other) },
        h("bdi", {}, other.name),
      ),
    ),
  );
}

function explanation(about, sheet) {
  const { name, words, exemplars } = about;
  const similarities = exemplars.map(({ similarity }) => similarity).filter((value) => value !== null);
  const range = similarities.length
    ? `, similarity ${Math.max(...similarities).toFixed(2)} to ${Math.min(...similarities).toFixed(2)}`
    : "";
  const read = !words.length ? " No words: examples only." : words.length === 1 && words[0] === name ? "" : ` Read as: ${words.join(", ")}.`;
  const alt = `Contact sheet of ${name}: ${count(exemplars.length, "photograph")}${range}. Beside each its support map with the seed ringed.`;
  const canvas = h("canvas", { role: "img", "aria-label": alt, width: sheet.width, height: sheet.height });
  canvas.getContext("2d").drawImage(sheet, 0, 0);
  return [
    h("p", {}, `${count(exemplars.length, "exemplar")}${range}.${read}`),
    h("div", { class: "sheet", tabindex: "0", role: "region", "aria-label": `Exemplars of ${name}` }, canvas),
  ];
}

// --- choosing ------------------------------------------------------------------------------------------------

/** The choices of a concept: those that were begun here, or those that the vocabulary has. */
async function draftOf(name, signal) {
  if (drafts.has(name)) return drafts.get(name);
  let known = {};
  if (asked.vocabulary) {
    const vocabulary = await json(`/v1/vocabularies/${encodeURIComponent(asked.vocabulary)}`, { signal });
    known = vocabulary.chosen[name] ?? {};
  }
  const named = ({ image_id: image, ...marks }) => ({ image, ...marks });
  const draft = new Choices({
    rejected: (known.rejected ?? []).map((image) => ({ image })),
    pinned: (known.pinned ?? []).map(named),
    examples: (known.examples ?? []).map(named),
    only_chosen: known.only_chosen,
  });
  drafts.set(name, draft);
  return draft;
}

function choosing(name, about, draft, signal) {
  const exemplars = about.exemplars.map((each) => ({
    image: each.image_id,
    name: each.uri_name || "own image",
    note: each.similarity === null ? "" : `similarity ${each.similarity.toFixed(2)}`,
    width: each.width,
    height: each.height,
    picture: each.picture,
  }));
  const summary = h("p", { class: "soft", "aria-live": "polite" });
  const build = h("button", { type: "button", class: "primary" }, "Build again");
  const status = h("div", { class: "status", role: "status" });
  const error = h("div", { class: "error", role: "alert" });
  const file = h("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "An image of your own" });
  const field = h("input", { type: "text", id: "curate-name", maxlength: "63", autocapitalize: "none", spellcheck: "false", placeholder: "living-room" });
  const change = () => {
    const changed = [...drafts].filter(([, { changed }]) => changed).map(([other]) => other);
    summary.textContent = draft.summary();
    build.disabled = !changed.length;
  };
  const element = gallery({
    concept: name,
    exemplars,
    choices: draft,
    load: ({ picture: path, blob }) => (blob ? createImageBitmap(blob) : picture(path, { signal })),
    onChange: change,
  });
  file.addEventListener("change", async () => {
    const [chosen] = file.files;
    file.value = "";
    if (!chosen) return;
    error.replaceChildren();
    try {
      const { accepted } = await fitted(chosen, { pixels: Math.min(limits.pixels, OWN_PIXELS), bytes: 0.6 * limits.bytes });
      const bitmap = await createImageBitmap(accepted);
      const image = `${chosen.name} ${crypto.randomUUID()}`;
      element.add({ image, blob: accepted, name: chosen.name, width: bitmap.width, height: bitmap.height });
    } catch (problem) {
      showError(error, problem);
    }
  });
  build.addEventListener("click", () => buildAgain({ build, status, error, field }));
  change();
  return h(
    "section",
    { class: "choose", "aria-labelledby": "choose-title" },
    h("h3", { id: "choose-title" }, "Choose the exemplars"),
    h(
      "p",
      { class: "soft" },
      "What is accepted stays; for what is rejected the next of the ranking comes. A region says where the concept is in a photograph.",
    ),
    element,
    h(
      "div",
      { class: "choose-bar" },
      h("button", { type: "button", class: "quiet", onclick: () => file.click() }, "Add an image"),
      file,
      ...(asked.vocabulary ? [] : [h("label", { class: "small", for: "curate-name" }, "Name of the vocabulary"), field]),
      build,
      summary,
    ),
    status,
    error,
  );
}

/** Sends what was chosen: a change of the vocabulary, or a new vocabulary of the words that were typed. */
async function buildAgain({ build, status, error, field }) {
  const name = asked.vocabulary ?? field.value.trim();
  if (!name) {
    field.focus();
    status.textContent = "Give the vocabulary a name: lower-case letters, digits, - and _.";
    return;
  }
  const progress = begin(status, error, "Building");
  build.disabled = true;
  try {
    const body = asked.vocabulary ? { concepts: await changes() } : await newVocabulary();
    const options = {
      method: asked.vocabulary ? "PATCH" : "PUT",
      body: JSON.stringify(body),
      headers: { "Content-Type": "application/json" },
      wait: progress.wait,
    };
    const path = `/v1/vocabularies/${encodeURIComponent(name)}`;
    let state = await json(path, options);
    while (state.status === "building") {
      await new Promise((resolve) => setTimeout(resolve, POLL));
      state = await json(path);
    }
    if (state.status === "failed") throw Object.assign(new Error(state.error), { title: "It could not be built" });
    progress.done("Built.");
    await refreshVocabularies();
    built(name);
  } catch (problem) {
    progress.failed(problem);
    build.disabled = false;
  }
}

async function changes() {
  const changed = [...drafts].filter(([, draft]) => draft.changed);
  return Object.fromEntries(await Promise.all(changed.map(async ([name, draft]) => [name, await sent(draft)])));
}

async function newVocabulary() {
  const named = asked.legend.filter(({ id }) => id !== null && id !== undefined);
  const concepts = named.map(async ({ name }) => {
    const draft = drafts.get(name);
    // With examples a name alone would no longer be read as words.
    return draft?.changed ? { name, synonyms: [name], ...(await sent(draft)) } : name;
  });
  return { concepts: await Promise.all(concepts), background: asked.background };
}

async function sent(draft) {
  const known = ({ image, boxes, points }) => ({ image_id: image, boxes, points });
  const own = async ({ blob, ...example }) =>
    blob ? { image: await dataUrl(blob), boxes: example.boxes, points: example.points } : known(example);
  return {
    rejected: [...draft.rejected.keys()],
    pinned: [...draft.pinned.values()].map(known),
    examples: await Promise.all([...draft.examples.values()].map(own)),
    only_chosen: draft.only && draft.pinned.size + draft.examples.size > 0,
  };
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}
