/**
 * The exemplars of a concept, each to accept, to reject, or to say where in it the concept is. Used by the page of the
 * server and by the report, which differ in where photographs come from and where choices go. Imports nothing.
 */

const STEP = 0.02; // of a photograph, that an arrow key moves a region
const LEAST = 0.01; // of a photograph: what is dragged less far is a click

/**
 * An element. Attributes named on* are listeners, booleans set or leave out an attribute, `dataset` is merged,
 * everything else is an attribute. Children are nodes or text; text is never read as HTML.
 */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (typeof value === "boolean") element.toggleAttribute(name, value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** What was chosen for a concept: {rejected: [{image, name}], pinned: [Chosen], examples: [Chosen]}. */
export class Choices {
  constructor({ rejected = [], pinned = [], examples = [], only_chosen = false } = {}) {
    this.only = only_chosen; // nothing is retrieved beside what was accepted and added
    this.rejected = new Map(rejected.map((each) => [each.image, each]));
    this.pinned = new Map(pinned.map((each) => [each.image, each]));
    this.examples = new Map(examples.map((each) => [each.image, each]));
    this.changed = false;
  }

  state({ image }) {
    if (this.examples.has(image)) return "example";
    return this.rejected.has(image) ? "rejected" : this.pinned.has(image) ? "accepted" : "";
  }

  /** Accepts or rejects a photograph, or neither ("" takes either back). */
  set(exemplar, state) {
    const { image, name } = exemplar;
    this.changed = true;
    this.rejected.delete(image);
    if (state !== "accepted") this.pinned.delete(image);
    if (state === "rejected") this.rejected.set(image, { image, name });
    if (state === "accepted" && !this.pinned.has(image)) this.pinned.set(image, { image, name, boxes: [], points: [] });
  }

  /** What is known of a chosen photograph: its boxes and points. */
  marks({ image }) {
    return this.examples.get(image) ?? this.pinned.get(image) ?? { boxes: [], points: [] };
  }

  /** Says where the concept is: a box in pixels, or null for anywhere. A photograph of the corpus is accepted with it. */
  setBox(exemplar, box) {
    if (!this.examples.has(exemplar.image)) this.set(exemplar, "accepted");
    Object.assign(this.marks(exemplar), { boxes: box ? [box] : [], points: [] });
    this.changed = true;
  }

  add(example) {
    this.examples.set(example.image, { boxes: [], points: [], ...example });
    this.changed = true;
  }

  remove({ image }) {
    this.examples.delete(image);
    this.changed = true;
  }

  summary() {
    const parts = [
      [this.rejected.size, "rejected"],
      [this.pinned.size, "accepted"],
      [this.examples.size, this.examples.size === 1 ? "added image" : "added images"],
    ];
    if (this.only && this.pinned.size + this.examples.size) parts.push([1, "no other"]);
    return parts.filter(([number]) => number).map(([number, word]) => (word === "no other" ? word : `${number} ${word}`)).join(", ");
  }
}

/**
 * The photographs of a concept, to choose from.
 *
 * `exemplars`: {image, name, note, width, height, added} each, `image` being what identifies it; `width` and `height` of the
 * original, null if they are not known. `load(exemplar)` promises a picture to draw. `choices`: changed as the user
 * chooses, after which `onChange()` is called. Returns an element.
 */
export function gallery({ concept, exemplars, choices, load, onChange }) {
  const list = h("ul", { class: "exemplars", "aria-label": `Exemplars of ${concept}` });
  const live = h("p", { class: "unseen", "aria-live": "polite" });
  const say = (words) => (live.textContent = words);
  const back = h("div", { class: "taken-out" });
  const changed = () => {
    showRejected();
    onChange();
  };
  const here = new Set(exemplars.map(({ image }) => image));
  const showRejected = () => {
    const gone = [...choices.rejected.values()].filter(({ image }) => !here.has(image));
    back.replaceChildren(
      ...(gone.length ? [h("p", { class: "soft" }, "Rejected before:")] : []),
      ...gone.map((each) => {
        const name = each.name ?? each.image.slice(0, 12);
        const takeBack = () => {
          choices.set(each, "");
          say(`${name} is no longer rejected.`);
          changed();
        };
        return h("button", { type: "button", class: "quiet", "aria-label": `Take back ${name}`, onclick: takeBack }, `${name} ×`);
      }),
    );
  };
  const add = (exemplar, number) => list.append(card(exemplar, number, { choices, load, say, changed, list }));
  exemplars.forEach((exemplar, number) => add(exemplar, number + 1));
  showRejected();
  const only = h("input", { type: "checkbox", checked: choices.only });
  only.addEventListener("change", () => {
    choices.only = only.checked;
    choices.changed = true;
    changed();
  });
  const others = h("label", { class: "check" }, only, h("span", {}, "Only what is accepted or added, nothing from the ranking"));
  const element = h("div", { class: "gallery" }, list, back, others, live);
  element.add = (exemplar) => {
    choices.add(exemplar);
    add({ ...exemplar, added: true }, list.children.length + 1);
    say(`${exemplar.name} added.`);
    changed();
  };
  return element;
}

function card(exemplar, number, { choices, load, say, changed, list }) {
  const title = `${number}: ${exemplar.name}`;
  const canvas = h("canvas", { role: "img", "aria-label": `Photograph ${title}` });
  const marks = h("div", { class: "marks", "aria-hidden": "true" });
  const photo = h("div", { class: "exemplar-photo" }, canvas, marks);
  const actions = h("div", { class: "exemplar-actions" });
  const state = h("span", { class: "exemplar-state" });
  const element = h(
    "li",
    { class: "exemplar" },
    photo,
    h("p", { class: "exemplar-note" }, h("span", { class: "exemplar-name" }, title), h("span", { class: "soft" }, exemplar.note ?? ""), state),
    actions,
  );
  const press = (label, wanted) => {
    const on = choices.state(exemplar) === wanted;
    const toggle = () => {
      choices.set(exemplar, on ? "" : wanted);
      say(`Photograph ${number} is ${on ? "as it was found" : wanted}.`);
      show(label);
      changed();
    };
    return h("button", { type: "button", class: `quiet ${wanted}`, "aria-pressed": String(on), "aria-label": `${label} photograph ${title}`, onclick: toggle }, label);
  };
  const removeAdded = () => {
    choices.remove(exemplar);
    say(`${exemplar.name} taken away.`);
    element.remove();
    changed();
    list.querySelector("button")?.focus();
  };
  const region = () =>
    h(
      "button",
      { type: "button", class: "quiet", "aria-label": `Region of photograph ${title}`, disabled: !exemplar.width, onclick: edit },
      "Region",
    );

  function show(focused) {
    const now = choices.state(exemplar);
    element.dataset.state = now;
    state.textContent = { rejected: "rejected", accepted: "accepted", example: "added" }[now] ?? "";
    drawMarks(marks, choices.marks(exemplar), exemplar);
    const own = exemplar.added || now === "example";
    const buttons = own
      ? [h("button", { type: "button", class: "quiet", "aria-label": `Take away photograph ${title}`, onclick: removeAdded }, "Take away"), region()]
      : [press("Accept", "accepted"), press("Reject", "rejected"), region()];
    actions.replaceChildren(...buttons);
    if (focused) [...actions.children].find(({ textContent }) => textContent.endsWith(focused.toLowerCase().slice(1)))?.focus();
  }

  function edit() {
    element.classList.add("editing");
    marks.hidden = true;
    const box = choices.marks(exemplar).boxes[0];
    const { width, height } = exemplar;
    const begin = box ? [box[0] / width, box[1] / height, box[2] / width, box[3] / height] : null;
    const editor = regionEditor(begin, `Region of photograph ${title}`, say, { use, cancel: () => end() });
    photo.append(editor);
    const end = () => {
      editor.remove();
      marks.hidden = false;
      element.classList.remove("editing");
      show("Region");
    };
    function use() {
      const found = editor.box();
      if (found) {
        const [x, y] = [width, height].map((side) => (value) => Math.round(value * side));
        const [left, top] = [Math.min(x(found[0]), width - 1), Math.min(y(found[1]), height - 1)];
        choices.setBox(exemplar, [left, top, Math.max(x(found[2]), left + 1), Math.max(y(found[3]), top + 1)]);
        say("The concept is looked for inside this region only.");
        changed();
      }
      end();
    }
    const anywhere = () => {
      choices.setBox(exemplar, null);
      say("The concept may be anywhere in the photograph.");
      changed();
      end();
    };
    actions.replaceChildren(
      h("button", { type: "button", class: "accepted", onclick: use }, "Use this region"),
      h("button", { type: "button", class: "quiet", onclick: anywhere }, "Whole photograph"),
      h("button", { type: "button", class: "quiet", onclick: end }, "Cancel"),
    );
    element.scrollIntoView({ block: "nearest" });
    editor.focus({ preventScroll: true });
  }

  show();
  load(exemplar).then(
    (picture) => {
      canvas.width = picture.width;
      canvas.height = picture.height;
      photo.style.setProperty("--ratio", picture.width / picture.height);
      canvas.getContext("2d").drawImage(picture, 0, 0);
    },
    () => canvas.classList.add("missing"),
  );
  return element;
}

function drawMarks(place, { boxes, points }, { width, height }) {
  const all = width ? [...boxes, ...points.map(([x, y]) => [x, y, x, y])] : [];
  place.replaceChildren(...all.map((box) => frame(box[0] / width, box[1] / height, box[2] / width, box[3] / height)));
}

function frame(left, top, right, bottom) {
  const element = h("span", { class: left === right ? "mark point" : "mark" });
  place(element, [left, top, right, bottom]);
  return element;
}

function place(element, [left, top, right, bottom]) {
  for (const [name, value] of Object.entries({ left, top, width: right - left, height: bottom - top })) {
    element.style.setProperty(name, `${100 * value}%`);
  }
}

/** A layer over a photograph on which a box is dragged, or moved by keys; `box()` is what it is, in parts of the photograph. */
function regionEditor(begin, label, say, { use, cancel }) {
  let box = begin;
  const mark = h("span", { class: "mark" });
  const layer = h(
    "div",
    { class: "region", tabindex: "0", role: "application", "aria-roledescription": "region of a photograph", "aria-label": label },
    h("span", { class: "region-hint" }, "Drag a box. Keys: arrows move it, with Shift they size it, Enter uses it."),
    mark,
  );
  const inside = (value) => Math.min(1, Math.max(0, value));
  const at = (event) => {
    const { left, top, width, height } = layer.getBoundingClientRect();
    return [inside((event.clientX - left) / width), inside((event.clientY - top) / height)];
  };
  const show = () => {
    mark.hidden = box === null;
    layer.classList.toggle("drawn", box !== null);
    if (box) place(mark, box);
  };
  const tell = () => say(`Region from ${box.map((value) => `${Math.round(100 * value)} %`).join(", ")}.`);
  let start = null;
  layer.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    event.preventDefault();
    layer.focus({ preventScroll: true });
    layer.setPointerCapture(event.pointerId);
    start = at(event);
  });
  layer.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = at(event);
    if (Math.abs(x - start[0]) < LEAST || Math.abs(y - start[1]) < LEAST) return;
    box = [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
    show();
  });
  for (const name of ["pointerup", "pointercancel"]) {
    layer.addEventListener(name, () => {
      if (start && box) tell();
      start = null;
    });
  }
  const moves = { ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0], ArrowUp: [0, -STEP], ArrowDown: [0, STEP] };
  layer.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === "Escape") {
      event.preventDefault();
      return event.key === "Enter" ? use() : cancel();
    }
    if (!(event.key in moves)) return;
    event.preventDefault();
    const [dx, dy] = moves[event.key];
    const [left, top, right, bottom] = box ?? [0.25, 0.25, 0.75, 0.75];
    if (event.shiftKey) {
      box = [left, top, Math.max(left + STEP, inside(right + dx)), Math.max(top + STEP, inside(bottom + dy))];
    } else {
      const [x, y] = [Math.min(Math.max(dx, -left), 1 - right), Math.min(Math.max(dy, -top), 1 - bottom)];
      box = [left + x, top + y, right + x, bottom + y];
    }
    show();
    tell();
  });
  layer.box = () => box;
  show();
  return layer;
}

/** The choices of several concepts, by name, as a curation file. */
export function curationFile(chosen) {
  const text = JSON.stringify;
  const entry = ({ image, name, boxes = [], points = [] }) => {
    const marks = [...(boxes.length ? [`boxes: ${text(boxes)}`] : []), ...(points.length ? [`points: ${text(points)}`] : [])];
    const known = /^[0-9a-f]{64}$/.test(image) && name ? `  # ${name.replace(/\s+/g, " ")}` : "";
    return `      - ${marks.length ? `{image: ${text(image)}, ${marks.join(", ")}}` : text(image)}${known}\n`;
  };
  const lists = (choices) =>
    ["rejected", "pinned", "examples"]
      .filter((kind) => choices[kind].size)
      .map((kind) => `    ${kind}:\n${[...choices[kind].values()].map(entry).join("")}`)
      .join("") + (choices.only && choices.pinned.size + choices.examples.size ? "    only_chosen: true\n" : "");
  const concepts = [...chosen].filter(([, choices]) => choices.summary());
  if (!concepts.length) return "concepts: {}\n";
  return `concepts:\n${concepts.map(([name, choices]) => `  ${text(name)}:\n${lists(choices)}`).join("")}`;
}

/** Hands a file to the user. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
