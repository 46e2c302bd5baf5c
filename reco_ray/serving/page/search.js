/** The view of the corpus: words in, the nearest images out. */

import { json, picture } from "./api.js";
import { $, count, h } from "./dom.js";
import { begin } from "./status.js";

const MOST_HITS = 24;
let running = null;

export function startSearch(info) {
  $("search-form").addEventListener("submit", (event) => {
    event.preventDefault();
    search($("query").value.trim());
  });
  if (info.index === null) {
    $("search-form").hidden = true;
    $("search-status").textContent = "This server has no index to search: start it with --index.";
  }
}

async function search(words) {
  if (!words) return $("query").focus();
  running?.abort();
  const mine = (running = new AbortController());
  const progress = begin($("search-status"), $("search-error"), "Searching");
  try {
    const query = new URLSearchParams({ q: words, k: MOST_HITS });
    const { hits } = await json(`/v1/search?${query}`, { signal: mine.signal, wait: progress.wait });
    $("hits").replaceChildren(...hits.map(tile));
    progress.done(hits.length ? `${count(hits.length, "image")}, the nearest first.` : "Nothing found.");
    await Promise.all([...$("hits").children].map((element, rank) => draw(element, hits[rank], mine.signal)));
  } catch (error) {
    if (error.name !== "AbortError") progress.failed(error, () => search(words));
  }
}

function tile({ uri_name: name, score }) {
  return h(
    "li",
    {},
    h("canvas", { role: "img", "aria-label": `${name}, similarity ${score.toFixed(2)}` }),
    h("p", { "aria-hidden": "true" }, h("span", { class: "name" }, name), h("span", { class: "soft" }, score.toFixed(2))),
  );
}

/** One that cannot be had stays an empty tile with its name. */
async function draw(element, { thumbnail }, signal) {
  const canvas = element.querySelector("canvas");
  try {
    const bitmap = await picture(thumbnail, { signal });
    canvas.width = bitmap.width;
    canvas.height = bitmap.height;
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    canvas.classList.add("missing");
  }
}
