/** Talks to the service: the key, its problems, waiting when it says so. */

const KEY = "reco-ray-key";
const MOST_WAITS = 60;
// Where the service begins: a front proxy may have put it below a path of its own.
const ROOT = new URL("../", import.meta.url);

/** The address of a path of the service, such as "/v1/info", as answers name them too. */
export const at = (path) => new URL(path.slice(1), ROOT);

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** Tells whoever listens: "lost" (no connection), "answered", "denied" (401). */
export const connection = new EventTarget();

/** An answer that is not a success: what the service says is wrong. */
export class Problem extends Error {
  constructor(status, body) {
    super(body.detail || body.title || `The server answered ${status}.`);
    this.status = status;
    this.title = body.title || "The server could not do this";
    this.requestId = body.request_id ?? null;
  }
}

/** No answer at all. */
export class Unreachable extends Error {
  constructor() {
    super("The server cannot be reached. Check the connection, then try again.");
    this.title = "No connection";
  }
}

/**
 * One request. Busy answers (503 and 429 with Retry-After) are tried again when the service says.
 *
 * `wait(seconds, problem)` is called every second of such a wait. `signal` ends waiting and asking.
 * Returns the response; throws Problem, Unreachable, or AbortError.
 */
export async function call(path, { method = "GET", body, headers = {}, signal, wait = () => {} } = {}) {
  for (let waits = 0; ; waits++) {
    const response = await send(path, { method, body, headers: { ...authorization(), ...headers }, signal });
    if (response.ok) return response;
    const problem = new Problem(response.status, await problemBody(response));
    if (response.status === 401) {
      problem.message = "The API key is missing, or not known here: enter it at the top of the page.";
      announce("denied");
    }
    const seconds = retryAfter(response);
    if (seconds === null || waits >= MOST_WAITS) throw problem;
    await pause(seconds, signal, (left) => wait(left, problem));
  }
}

/** The JSON of an answer. */
export async function json(path, options) {
  return (await call(path, options)).json();
}

/** The picture of an answer, decoded: image elements cannot send a key. */
export async function picture(path, options) {
  return createImageBitmap(await (await call(path, options)).blob());
}

async function send(path, options) {
  try {
    const response = await fetch(at(path), { ...options, cache: "no-store", credentials: "omit" });
    announce("answered");
    return response;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    announce("lost");
    throw new Unreachable();
  }
}

const announce = (name) => connection.dispatchEvent(new Event(name));

const authorization = () => (apiKey.get() ? { Authorization: `Bearer ${apiKey.get()}` } : {});

async function problemBody(response) {
  try {
    return await response.json();
  } catch {
    return {};
  }
}

/** Seconds to wait for, or null: only busy answers are worth asking again. */
function retryAfter(response) {
  if (response.status !== 503 && response.status !== 429) return null;
  const seconds = Number.parseInt(response.headers.get("Retry-After") ?? "", 10);
  return Number.isFinite(seconds) ? Math.min(Math.max(seconds, 1), 120) : null;
}

/** Waits, saying every second how many are left. */
async function pause(seconds, signal, tick) {
  for (let left = seconds; left > 0; left--) {
    tick(left);
    await new Promise((resolve) => setTimeout(resolve, 1000));
    signal?.throwIfAborted();
  }
}
