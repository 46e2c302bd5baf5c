/** The first view: a photograph and words in, a mask with its legend out. */

import { Problem, call, json } from "./api.js";
import { chosenConcepts, startConcepts, suggest } from "./concepts.js";
import { $, count, h, save } from "./dom.js";
import { showLegend, lightRow } from "./legend.js";
import { listenForPhotos, showExamples } from "./photo.js";
import { clearMask, compose, light, setOpacity, showMask, showPhoto, toggle } from "./stage.js";
import { begin, showError } from "./status.js";
import { readyVocabularies, vocabularies } from "./vocabularies.js";
import { closeWhy, showWhy } from "./why.js";

const LONGEST_SIDE = 1280; // pixels of the masks that are asked for: as many as the page shows

const NONE_READY = "No vocabulary is ready yet: build one under Vocabularies.";

let photo = null; // {blob, name}
let asked = null; // the fields that made the mask on show
let running = null; // AbortController

export function startSegment(info) {
  const fail = (error) => showError($("error"), error);
  const open = listenForPhotos(info.limits, takePhoto, fail);
  startConcepts(info.limits);
  $("refine").append(
    ...info.refine.map((name) => h("option", { value: name }, info.refine_titles[name])),
  );
  $("refine").value = info.refine_default;
  $("segment-form").addEventListener("submit", (event) => {
    event.preventDefault();
    segment();
  });
  $("source").addEventListener("change", showSource);
  $("vocabulary").addEventListener("change", showVocabularyWords);
  for (const id of ["refine", "background"]) $(id).addEventListener("change", () => asked && segment());
  const opacity = $("opacity");
  const applyOpacity = () => {
    setOpacity(opacity.value / 100);
    $("opacity-value").textContent = `${opacity.value} %`;
  };
  opacity.addEventListener("input", applyOpacity);
  applyOpacity();
  $("download-mask").addEventListener("click", downloadMask);
  $("download-overlay").addEventListener("click", async () => save(await compose(), `${photo.name}-overlay.png`));
  vocabularies.addEventListener("change", showVocabularies);
  showVocabularies();
  return showExamples(info.examples, open, fail);
}

/** Chooses a vocabulary, as the other view's button does. */
export function useVocabulary(name) {
  document.querySelector('#source input[value="vocabulary"]').checked = true;
  $("vocabulary").value = name;
  showSource();
  if (photo) segment();
}

function takePhoto(blob, bitmap, name, note) {
  const first = photo === null;
  photo = { blob, name: name.replace(/\.[a-z0-9]+$/i, "") || "photograph" };
  showPhoto(bitmap);
  forgetMask();
  $("tools").hidden = false;
  $("photo-note").textContent = note;
  $("status").textContent = "";
  if (wanted()) segment();
  // The button that was pressed for the first one is gone, and the focus with it.
  if (first) (source() === "concepts" ? $("concept") : $("go")).focus({ preventScroll: true });
}

/** What will be asked for, or null while something is missing. */
function wanted() {
  const fields = { refine: $("refine").value, background: $("background").checked, max_side: LONGEST_SIDE };
  if (source() === "vocabulary") return $("vocabulary").value ? { vocabulary: $("vocabulary").value, ...fields } : null;
  const concepts = chosenConcepts();
  return concepts.length ? { concepts: concepts.join(","), ...fields } : null;
}

async function segment() {
  const fields = wanted();
  if (!photo || !fields) {
    const missing = source() === "concepts" ? "Name at least one concept." : NONE_READY;
    $("status").textContent = photo ? missing : "Choose a photograph first.";
    (photo ? (source() === "concepts" ? $("concept") : $("vocabulary")) : $("choose")).focus();
    return;
  }
  running?.abort();
  const mine = (running = new AbortController());
  const progress = begin($("status"), $("error"), "Segmenting", () => mine.abort());
  $("go").disabled = true;
  $("stage").classList.add("busy");
  const started = performance.now();
  try {
    const answer = await json("/v1/segment", {
      method: "POST",
      body: form(fields),
      headers: { Accept: "application/json" },
      signal: mine.signal,
      wait: progress.wait,
    });
    if (running !== mine) return;
    asked = fields;
    show(answer);
    // Where the form stands under the photograph, the photograph comes back into sight.
    if (matchMedia("(max-width: 900px)").matches) $("stage").scrollIntoView({ block: "nearest" });
    progress.done(summary(answer, (performance.now() - started) / 1000));
  } catch (error) {
    if (running !== mine) return; // another request took its place
    if (error.name === "AbortError") progress.done("Stopped.");
    else progress.failed(error, segment);
  } finally {
    if (running === mine) {
      running = null;
      $("go").disabled = false;
      $("stage").classList.remove("busy");
    }
  }
}

function form(fields) {
  const data = new FormData();
  data.append("image", photo.blob, "image");
  for (const [name, value] of Object.entries(fields)) data.append(name, value);
  return data;
}

function show(answer) {
  closeWhy();
  showMask(answer, lightRow);
  showLegend(answer, {
    onToggle: toggle,
    onLight: light,
    onWhy: (concept) => showWhy(answer, concept),
  });
  $("download-mask").disabled = $("download-overlay").disabled = false;
}

function summary(answer, seconds) {
  const found = answer.concepts.filter(({ label }) => !(answer.background && label === 0)).length;
  return `${found ? count(found, "concept") : "Nothing"} found in ${seconds.toFixed(1)} s.`;
}

function forgetMask() {
  running?.abort();
  asked = null;
  clearMask();
  closeWhy();
  $("result").hidden = true;
  $("download-mask").disabled = $("download-overlay").disabled = true;
}

async function downloadMask() {
  const progress = begin($("status"), $("error"), "Fetching the mask");
  try {
    const options = { method: "POST", body: form(asked), headers: { Accept: "image/png" }, wait: progress.wait };
    const response = await call("/v1/segment", options);
    if (response.headers.get("Content-Type") !== "image/png") throw new Problem(response.status, {});
    save(await response.blob(), `${photo.name}-mask.png`);
    progress.done("Mask saved: an indexed PNG, its values are the labels.");
  } catch (error) {
    progress.failed(error, downloadMask);
  }
}

const source = () => document.querySelector('#source input[name="source"]:checked').value;

function showSource() {
  $("by-concepts").hidden = source() !== "concepts";
  $("by-vocabulary").hidden = source() !== "vocabulary";
  showVocabularyWords();
}

function showVocabularies() {
  const ready = readyVocabularies();
  const select = $("vocabulary");
  const before = select.value;
  select.replaceChildren(...ready.map(({ name }) => h("option", { value: name }, name)));
  if (ready.some(({ name }) => name === before)) select.value = before;
  suggest([...new Set(ready.flatMap(({ concepts }) => concepts))]);
  showVocabularyWords();
}

function showVocabularyWords() {
  const chosen = readyVocabularies().find(({ name }) => name === $("vocabulary").value);
  $("vocabulary-words").textContent = chosen ? chosen.concepts.join(", ") : NONE_READY;
}
