/** Why a mask lies where it lies: the exemplars of a concept with their support maps. */

import { json, picture } from "./api.js";
import { $, count, h } from "./dom.js";
import { showError } from "./status.js";

let running = null;

export function startWhy() {
  $("why-close").addEventListener("click", closeWhy);
}

export function closeWhy() {
  running?.abort();
  $("why").hidden = true;
}

/** Shows one concept's exemplars, with buttons for the others of the legend. */
export async function showWhy(legend, concept) {
  running?.abort();
  const { signal } = (running = new AbortController());
  const others = legend.filter(({ id }) => id !== null && id !== undefined);
  const body = $("why-body");
  const content = h("div", { class: "why-content" }, h("p", { class: "soft" }, "Fetching the exemplars …"));
  body.replaceChildren(tabs(others, legend, concept), content);
  $("why").hidden = false;
  $("why-title").textContent = `Why “${concept.name}”`;
  $("why-title").focus({ preventScroll: true });
  $("why").scrollIntoView({ block: "nearest" });
  const path = `/v1/concepts/${encodeURIComponent(concept.id)}`;
  try {
    const [about, sheet] = await Promise.all([json(path, { signal }), picture(`${path}/exemplars`, { signal })]);
    content.replaceChildren(...explanation(about, sheet));
  } catch (error) {
    if (error.name !== "AbortError") showError(content, error, () => showWhy(legend, concept));
  }
}

function tabs(others, legend, chosen) {
  return h(
    "div",
    { class: "tabs", role: "group", "aria-label": "Concept" },
    ...others.map((other) =>
      h(
        "button",
        { type: "button", "aria-pressed": String(other.id === chosen.id), onclick: () => showWhy(legend, other) },
        h("bdi", {}, other.name),
      ),
    ),
  );
}

function explanation(about, sheet) {
  const { name, words, exemplars } = about;
  const similarities = exemplars.map(({ similarity }) => similarity);
  const range = similarities.length
    ? `, similarity ${Math.max(...similarities).toFixed(2)} to ${Math.min(...similarities).toFixed(2)}`
    : "";
  const read = words.length === 1 && words[0] === name ? "" : ` Read as: ${words.join(", ")}.`;
  const alt = `Contact sheet of ${name}: ${count(exemplars.length, "photograph")} of the corpus${range}. Beside each its support map with the seed ringed.`;
  const canvas = h("canvas", { role: "img", "aria-label": alt, width: sheet.width, height: sheet.height });
  canvas.getContext("2d").drawImage(sheet, 0, 0);
  return [
    h("p", {}, `${count(exemplars.length, "exemplar")}${range}.${read}`),
    h("div", { class: "sheet", tabindex: "0", role: "region", "aria-label": `Exemplars of ${name}` }, canvas),
  ];
}
