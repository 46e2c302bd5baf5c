/** What is going on, and what went wrong: one line each, read out once. */

import { h } from "./dom.js";

/**
 * Starts a line of progress in `place`; an error shown before in `errorPlace` is removed.
 *
 * `wait(seconds, problem)` shows a countdown, `done(text)` and `failed(error, again)` end it. With `stop`, a button
 * calls it.
 */
export function begin(place, errorPlace, text, stop) {
  errorPlace.replaceChildren();
  const words = h("span", {}, `${text} …`);
  const clock = h("span", { class: "clock", "aria-hidden": "true" });
  const button = stop ? h("button", { type: "button", class: "quiet", onclick: stop }, "Stop") : null;
  place.replaceChildren(h("span", { class: "spinner", "aria-hidden": "true" }), words, clock, ...(button ? [button] : []));
  const started = performance.now();
  let waiting = false;
  const timer = setInterval(() => {
    const seconds = Math.round((performance.now() - started) / 1000);
    if (!waiting && seconds >= 2) clock.textContent = `${seconds} s`;
  }, 500);
  const end = (outcome) => {
    clearInterval(timer);
    place.replaceChildren(outcome);
  };
  return {
    wait(seconds, problem) {
      waiting = true;
      // The words stay the same while the clock runs, so that they are read out once.
      if (words.textContent !== problem.message) words.textContent = problem.message;
      clock.textContent = `again in ${seconds} s`;
      if (seconds === 1) setTimeout(() => (waiting = false), 1000);
    },
    done: end,
    failed(error, again) {
      end("");
      showError(errorPlace, error, again);
    },
  };
}

/** Says what went wrong and, with `again`, offers to try once more. */
export function showError(place, error, again) {
  const title = error.title ?? "Something went wrong";
  place.replaceChildren(
    h(
      "div",
      { class: "problem" },
      h("strong", {}, title),
      h("p", {}, error.message),
      error.requestId ? h("p", { class: "soft" }, `Request ${error.requestId}`) : null,
      again ? h("button", { type: "button", class: "quiet", onclick: () => (place.replaceChildren(), again()) }, "Try again") : null,
    ),
  );
}
