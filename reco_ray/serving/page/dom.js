/** Small helpers for the document. */

import { h, save } from "./exemplars.js";

export { h, save };

export const $ = (id) => document.getElementById(id);

/** A square of a concept's colour. The colour goes through the CSSOM, which the content security policy allows. */
export function swatch(colour) {
  const element = h("span", { class: "swatch", "aria-hidden": "true" });
  element.style.backgroundColor = colour;
  return element;
}

export const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`);

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
