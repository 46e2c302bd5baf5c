/** The photograph with its mask: two canvases, what is under the pointer, what is shown how strongly. */

import { UNLABELLED, labelMap } from "./masks.js";
import { $, percent } from "./dom.js";

const LONGEST_SIDE = 2048; // pixels of the photograph that are kept for looking at
const DIMMED = 50; // alpha, of 255, of what is not pointed at

const photo = $("photo-canvas");
const mask = $("mask-canvas");
const layers = $("layers");

let answer = null; // of /v1/segment
let labels = null; // Int32Array, the label of every pixel of the mask
let byLabel = new Map();
let hidden = new Set();
let lit = null; // the label that is pointed at
let cross = null; // {x, y} in [0, 1], when the keyboard points
let onPoint = () => {};

/** Shows a photograph (ImageBitmap) without a mask. */
export function showPhoto(bitmap) {
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  photo.width = Math.max(1, Math.round(bitmap.width * scale));
  photo.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = photo.getContext("2d");
  context.fillStyle = "#fff"; // what the service puts under transparent pictures
  context.fillRect(0, 0, photo.width, photo.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, photo.width, photo.height);
  layers.style.setProperty("--ratio", photo.width / photo.height);
  layers.hidden = false;
  $("drop").hidden = true;
  clearMask();
}

/** Takes the mask away. */
export function clearMask() {
  answer = labels = null;
  byLabel = new Map();
  point(null);
  mask.getContext("2d").clearRect(0, 0, mask.width, mask.height);
  layers.setAttribute("aria-label", "Photograph, not segmented yet");
}

/** Lays an answer of /v1/segment over the photograph. `listener(label or null)` hears what is pointed at. */
export function showMask(segmentation, listener) {
  answer = segmentation;
  labels = labelMap(answer.concepts, answer.width, answer.height);
  byLabel = new Map(answer.concepts.map((concept) => [concept.label, concept]));
  hidden = new Set();
  onPoint = listener;
  mask.width = answer.width;
  mask.height = answer.height;
  const found = answer.concepts.map((concept) => `${concept.name} ${percent(concept.share)}`).join(", ");
  layers.setAttribute("aria-label", found ? `Photograph with ${found}` : "Photograph in which nothing was found");
  paint();
}

/** Shows or hides one concept. */
export function toggle(label, visible) {
  hidden[visible ? "delete" : "add"](label);
  paint();
}

/** Makes one concept stand out, or none (null). */
export function light(label) {
  if (hidden.has(label)) label = null;
  if (label === lit) return;
  lit = label;
  paint();
}

export function setOpacity(share) {
  mask.style.opacity = share;
}

/** What is seen, as one picture in the photograph's size: a PNG blob. */
export function compose() {
  const canvas = document.createElement("canvas");
  canvas.width = photo.width;
  canvas.height = photo.height;
  const context = canvas.getContext("2d");
  context.drawImage(photo, 0, 0);
  context.globalAlpha = Number(mask.style.opacity || 1);
  context.imageSmoothingEnabled = false;
  context.drawImage(mask, 0, 0, photo.width, photo.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

function paint() {
  if (labels === null) return;
  // One 32-bit write a pixel, from a table of colours; the bytes of a canvas are R, G, B, A on every machine.
  const table = new Uint32Array(2 + Math.max(UNLABELLED, ...byLabel.keys()));
  const bytes = new Uint8Array(table.buffer);
  for (const { label, colour } of byLabel.values()) {
    if (hidden.has(label)) continue;
    const place = 4 * (label + 1);
    for (let channel = 0; channel < 3; channel++) {
      bytes[place + channel] = Number.parseInt(colour.slice(1 + 2 * channel, 3 + 2 * channel), 16);
    }
    bytes[place + 3] = lit === null || lit === label ? 255 : DIMMED;
  }
  const context = mask.getContext("2d");
  const image = context.createImageData(mask.width, mask.height);
  const pixels = new Uint32Array(image.data.buffer);
  for (let p = 0; p < labels.length; p++) pixels[p] = table[labels[p] + 1];
  context.putImageData(image, 0, 0);
}

/** The visible concept at a place in [0, 1], or null. */
function conceptAt({ x, y }) {
  if (labels === null) return null;
  const column = Math.min(answer.width - 1, Math.max(0, Math.floor(x * answer.width)));
  const row = Math.min(answer.height - 1, Math.max(0, Math.floor(y * answer.height)));
  const label = labels[row * answer.width + column];
  return hidden.has(label) ? null : (byLabel.get(label) ?? null);
}

/** Points at a place, or nowhere; says so to the listener and beside the pointer. */
function point(place) {
  const concept = place && conceptAt(place);
  const tip = $("tip");
  tip.hidden = !concept;
  if (concept) {
    tip.textContent = `${concept.name} · ${percent(concept.share)}`;
    tip.style.setProperty("--x", place.x);
    tip.style.setProperty("--y", place.y);
    tip.dataset.side = place.x > 0.5 ? "left" : "right";
    tip.style.setProperty("--colour", concept.colour);
  }
  light(concept ? concept.label : null);
  onPoint(concept ? concept.label : null);
  return concept;
}

function placeOf(event) {
  const box = layers.getBoundingClientRect();
  return { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height };
}

const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

function moveCross(event) {
  if (event.key === "Escape") return leave();
  if (!(event.key in STEPS) || labels === null) return;
  event.preventDefault();
  const step = event.shiftKey ? 0.1 : 0.02;
  const inside = (value) => Math.min(1, Math.max(0, value));
  const from = cross ?? { x: 0.5, y: 0.5 };
  cross = { x: inside(from.x + step * STEPS[event.key][0]), y: inside(from.y + step * STEPS[event.key][1]) };
  $("cross").hidden = false;
  $("cross").style.setProperty("--x", cross.x);
  $("cross").style.setProperty("--y", cross.y);
  const concept = point(cross);
  const words = concept ? `${concept.name}, ${percent(concept.share)} of the photograph` : "no concept";
  if ($("stage-live").textContent !== words) $("stage-live").textContent = words;
}

function leave() {
  cross = null;
  $("cross").hidden = true;
  point(null);
}

layers.addEventListener("pointermove", (event) => point(placeOf(event)));
layers.addEventListener("pointerdown", (event) => point(placeOf(event)));
layers.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && leave());
layers.addEventListener("keydown", moveCross);
layers.addEventListener("blur", leave);
