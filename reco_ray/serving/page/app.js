/** Starts the page: asks the service what it is, then shows the views. */

import { apiKey, at, connection, json } from "./api.js";
import { $, count } from "./dom.js";
import { startSearch } from "./search.js";
import { startSegment, useVocabulary } from "./segment.js";
import { showError } from "./status.js";
import { refreshVocabularies, startVocabularies } from "./vocabularies.js";
import { startWhy } from "./why.js";

const VIEWS = { segment: "Segment", search: "Search", vocabularies: "Vocabularies" };
const LOOK_AGAIN = 5; // seconds between looks whether a lost server is back

let started = false;

function showView(moveFocus) {
  const name = location.hash.slice(1) || "segment";
  if (!(name in VIEWS)) return; // the skip link's target
  for (const view of Object.keys(VIEWS)) {
    $(`view-${view}`).hidden = view !== name;
    const link = document.querySelector(`nav a[href="#${view}"]`);
    if (view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[name]} · reco-ray`;
  if (moveFocus) $(`view-${name}`).querySelector("h1").focus({ preventScroll: true });
  if (moveFocus) window.scrollTo(0, 0);
}

/** While the server is away a banner says so, and counts down to the next look. */
function watchConnection(onBack) {
  let timer = null;
  const banner = $("banner");
  const back = () => {
    if (timer === null) return;
    clearInterval(timer);
    timer = null;
    banner.hidden = true;
    onBack();
  };
  connection.addEventListener("answered", back);
  connection.addEventListener("lost", () => {
    if (timer !== null) return;
    let left = LOOK_AGAIN;
    const clock = Object.assign(document.createElement("span"), { ariaHidden: "true" });
    banner.replaceChildren("The server cannot be reached. What you typed stays here. ", clock);
    banner.hidden = false;
    timer = setInterval(() => {
      clock.textContent = `Looking again in ${left} s.`;
      if (left-- > 0) return;
      left = LOOK_AGAIN;
      fetch(at("/healthz"), { cache: "no-store" }).then((answer) => answer.ok && back(), () => {});
    }, 1000);
  });
  window.addEventListener("offline", () => connection.dispatchEvent(new Event("lost")));
}

function listenForKey(retry) {
  $("key").value = apiKey.get();
  $("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    apiKey.set($("key").value.trim());
    $("key-form").classList.remove("wrong");
    retry();
  });
  connection.addEventListener("denied", () => {
    $("key-form").hidden = false;
    $("key-form").classList.add("wrong");
  });
}

function describe(info) {
  const corpus = info.index ? ` References come from ${count(info.index.images, "unlabelled image")}.` : "";
  $("about").textContent = `No pixel label is used anywhere.${corpus}`;
  $("colophon").textContent = `reco-ray ${info.version} · ${info.preset} · ${info.model.replace(/#[0-9a-f]+/g, "")}`;
  $("key-form").hidden = !info.keys_required;
  $("key").required = info.keys_required;
}

async function start() {
  let info;
  try {
    info = await json("/v1/info");
  } catch (error) {
    return showError($("error"), error, start);
  }
  describe(info);
  startSearch(info);
  startVocabularies((name) => {
    location.hash = "segment";
    useVocabulary(name);
  });
  startWhy(info, useVocabulary);
  started = true;
  const examples = startSegment(info);
  if (info.keys_required && !apiKey.get()) $("key").focus();
  else await refreshVocabularies();
  await examples;
  document.documentElement.dataset.ready = "true";
}

watchConnection(() => started && refreshVocabularies());
listenForKey(() => refreshVocabularies());
window.addEventListener("hashchange", () => showView(true));
showView(false);
start();
