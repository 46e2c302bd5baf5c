/** How a photograph gets here: dropped, chosen, pasted, or an example. Scaled down if the service would refuse it. */

import { call } from "./api.js";
import { $, h } from "./dom.js";

const FORM = 20_000; // bytes of a request besides the photograph

/**
 * Wires every way in. `take(blob, bitmap, name, note)` gets a photograph that the service accepts; `fail(error)` hears
 * why one could not be had. `limits`: of /v1/info.
 */
export function listenForPhotos(limits, take, fail) {
  const open = async (blob, name) => {
    try {
      const { accepted, bitmap, note } = await fitted(blob, limits);
      take(accepted, bitmap, name, note);
    } catch (error) {
      fail(error);
    }
  };
  const file = $("file");
  for (const id of ["choose", "another"]) $(id).addEventListener("click", () => file.click());
  file.addEventListener("change", () => {
    if (file.files.length) open(file.files[0], file.files[0].name);
    file.value = ""; // the same file may be chosen again
  });
  listenForDrops((dropped) => open(dropped, dropped.name));
  document.addEventListener("paste", (event) => {
    const pasted = [...event.clipboardData.files].find((item) => item.type.startsWith("image/"));
    if (!pasted) return;
    event.preventDefault();
    open(pasted, "pasted");
  });
  return open;
}

function listenForDrops(open) {
  const stage = $("stage");
  // A file that misses the stage would replace the page.
  for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.preventDefault());
  stage.addEventListener("dragover", () => stage.classList.add("over"));
  stage.addEventListener("dragleave", () => stage.classList.remove("over"));
  stage.addEventListener("drop", (event) => {
    stage.classList.remove("over");
    const dropped = event.dataTransfer.files[0];
    if (dropped) open(dropped);
  });
}

/** Fills the strip of examples: a button each. */
export async function showExamples(examples, open, fail) {
  $("examples").hidden = examples.length === 0;
  for (const { id, name, url } of examples) {
    const canvas = h("canvas", { "aria-hidden": "true" });
    const button = h("button", { type: "button", class: "example", "aria-label": `Example: ${name}` }, canvas);
    $("example-list").append(h("li", {}, button));
    try {
      const blob = await (await call(url)).blob();
      drawCover(canvas, await createImageBitmap(blob));
      button.addEventListener("click", () => open(blob, id));
    } catch (error) {
      button.remove();
      fail(error);
    }
  }
}

/** Draws the middle of a picture into a small canvas. */
function drawCover(canvas, bitmap) {
  canvas.width = 240;
  canvas.height = 180;
  const scale = Math.max(canvas.width / bitmap.width, canvas.height / bitmap.height);
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
}

/** The photograph itself, or a smaller JPEG of it where bytes or pixels are past the limits. */
export async function fitted(blob, limits) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    throw Object.assign(new Error("This browser cannot open it. JPEG, PNG and WebP always work."), {
      title: "Not a photograph",
    });
  }
  const pixels = bitmap.width * bitmap.height;
  const bytes = limits.bytes - FORM;
  if (pixels <= limits.pixels && blob.size <= bytes) return { accepted: blob, bitmap, note: "" };
  let scale = Math.min(1, Math.sqrt(limits.pixels / pixels), 2048 / Math.max(bitmap.width, bitmap.height));
  for (let attempt = 0; attempt < 4; attempt++, scale /= 2) {
    const canvas = h("canvas", { width: Math.floor(bitmap.width * scale), height: Math.floor(bitmap.height * scale) });
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const smaller = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.9));
    if (smaller && smaller.size <= bytes) {
      const note = `Scaled to ${canvas.width} × ${canvas.height} pixels: the service takes no larger photographs.`;
      return { accepted: smaller, bitmap, note };
    }
  }
  throw Object.assign(new Error("It is larger than the service takes."), { title: "Too large" });
}
