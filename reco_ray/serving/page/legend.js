/** What was found: a row a concept, to switch off, to point at, to ask why. */

import { $, h, percent, swatch } from "./dom.js";

const rows = new Map();

/** Fills the legend from an answer of /v1/segment. */
export function showLegend(answer, { onToggle, onLight, onWhy }) {
  rows.clear();
  const largest = Math.max(...answer.concepts.map(({ share }) => share), 1e-9);
  for (const concept of answer.concepts) {
    rows.set(concept.label, row(concept, largest, certainty(answer, concept), { onToggle, onLight, onWhy }));
  }
  $("legend").replaceChildren(...rows.values());
  const present = new Set(answer.concepts.map(({ label }) => label));
  const absent = answer.legend.filter(({ label }) => !present.has(label)).map(({ name }) => name);
  $("absent").textContent = absent.length ? `Not found: ${absent.join(", ")}` : "";
  $("result-note").textContent = answer.probabilities ? "share · how sure the model is" : "share · score";
  $("result").hidden = false;
}

/** Marks the row of the concept under the pointer. */
export function lightRow(label) {
  for (const [other, element] of rows) element.classList.toggle("lit", other === label);
}

function row(concept, largest, certain, { onToggle, onLight, onWhy }) {
  const { label, name, colour, share } = concept;
  const box = h("input", { type: "checkbox", checked: true, onchange: () => onToggle(label, box.checked) });
  const bar = h("span", { class: "share", "aria-hidden": "true" });
  bar.style.setProperty("--share", share / largest);
  bar.style.setProperty("--colour", colour);
  return h(
    "li",
    {
      dataset: { label },
      onpointerenter: (event) => event.pointerType === "mouse" && onLight(label),
      onpointerleave: () => onLight(null),
      onfocusin: () => onLight(label),
      onfocusout: () => onLight(null),
    },
    h(
      "label",
      {},
      box,
      swatch(colour),
      h("bdi", { class: "name" }, name),
    ),
    explained(concept)
      ? h("button", { type: "button", class: "quiet", "aria-label": `Why ${name}`, onclick: () => onWhy(concept) }, "Why")
      : h("span", {}),
    bar,
    h("span", { class: "figures" }, percent(share), h("span", { class: "soft" }, certain)),
  );
}

/** How sure the model is of a concept, in plain words; its score where that is no probability. */
function certainty({ probabilities, legend }, { score }) {
  if (!probabilities) return score.toFixed(2);
  return legend.length > 1 ? `${Math.round(100 * score)} % sure` : "the only choice";
}

/** Background, and what trained segmenters name, have no exemplars. */
const explained = ({ id }) => id !== null && id !== undefined;
