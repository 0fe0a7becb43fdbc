// @ts-check
// The page's way to its server: JSON calls, and one stream of numbered events per chat.

/** What the server said went wrong, in its own words. */
export class ApiError extends Error {
  /** @param {string} message @param {string} hint @param {number} status 0: the server was not reached */
  constructor(message, hint, status) {
    super(message);
    this.hint = hint;
    this.status = status;
  }
}

/**
 * The words of an error in any of its forms: a string, {message, hint}, or {error: ...}.
 * @param {any} error
 * @returns {{message: string, hint: string}}
 */
export function errorWords(error) {
  if (!error) return { message: "", hint: "" };
  if (typeof error === "string") return { message: error, hint: "" };
  if (error.error) return errorWords(error.error);
  return { message: String(error.message ?? ""), hint: String(error.hint ?? "") };
}

/** This tab, for the server to tell the others of what it does. */
export const TAB = Math.random().toString(36).slice(2);
let running = 0; // calls that change something
let made = 0;
/** @type {(() => void)[]} who waits until none runs */
let waiting = [];

/**
 * @param {"GET" | "POST" | "PATCH" | "DELETE"} method
 * @param {string} path below the page's own address, without a leading slash
 * @param {object} [body]
 * @returns {Promise<any>} the JSON of the answer, null when it is empty
 */
export async function call(method, path, body) {
  if (method === "GET") return request(method, path);
  running += 1;
  made += 1;
  try {
    return await request(method, path, body);
  } finally {
    running -= 1;
    if (!running) waiting = (waiting.forEach((go) => go()), []);
  }
}

/**
 * Read what nothing of ours is about to change: what was read while we wrote is read again.
 * @param {string} path @returns {Promise<any>}
 */
export async function readSettled(path) {
  for (;;) {
    if (running) await new Promise((go) => waiting.push(/** @type {() => void} */ (go)));
    const before = made;
    const found = await call("GET", path);
    if (made === before) return found;
  }
}

/** @param {string} method @param {string} path @param {object} [body] @returns {Promise<any>} */
async function request(method, path, body) {
  /** @type {Response} */
  let answer;
  try {
    const headers = { "content-type": "application/json", "x-shoal-tab": TAB };
    const send = method === "GET" ? {} : { headers, body: JSON.stringify(body ?? {}) };
    answer = await fetch(path, { method, ...send });
  } catch (error) {
    throw new ApiError("", String(error), 0);
  }
  const text = await answer.text();
  let data = null;
  try {
    data = text ? JSON.parse(text) : null;
  } catch {
    data = null; // an answer that is not JSON is described by its status below
  }
  if (answer.ok) return data;
  if (answer.status === 401 && path !== "api/session" && path !== "api/account/password") dispatchEvent(new Event("shoal-signed-out"));
  const { message, hint } = errorWords(data);
  throw new ApiError(message || `${answer.status} ${answer.statusText}`, hint, answer.status);
}

/**
 * Follow a chat's events after number `after`. The browser reconnects by itself and names the last event it saw.
 * @param {string} chatId
 * @param {number} after
 * @param {(event: any, number: number) => void} onEvent
 * @param {(online: boolean, closed: boolean) => void} onLine the stream opened, broke (and is tried again) or ended
 * @returns {() => void} stop following
 */
export function follow(chatId, after, onEvent, onLine) {
  const source = new EventSource(`api/chats/${chatId}/events?after=${after}`);
  source.onopen = () => onLine(true, false);
  source.onmessage = (message) => onEvent(JSON.parse(message.data), Number(message.lastEventId));
  source.onerror = () => onLine(false, source.readyState === EventSource.CLOSED);
  return () => source.close();
}
