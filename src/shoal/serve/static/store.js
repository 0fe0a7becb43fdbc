// @ts-check
// What the page knows, in one object; whoever changes it calls changed(), and the page is painted again.

/**
 * @typedef {"queued" | "loading" | "prompt" | "writing" | "done" | "stopped" | "error" | "length"} Status
 * @typedef {{id: string, parent_id: string | null, role: "user" | "assistant", content: string, reasoning: string,
 *   status: Status, error?: any, model?: string, created_at: number, thinking_seconds?: number,
 *   reasoning_tokens?: number, usage?: any, timings?: any, cost?: any, feedback?: -1 | 0 | 1, edited?: string,
 *   tool_calls?: ToolCall[] | null, note?: string, preference?: -1 | 0 | 1, params?: any, files?: TextFile[] | null, revision?: number}} Message
 * @typedef {{id: string, name: string, arguments: string, result?: string | null}} ToolCall
 * @typedef {{name: string, text: string, cut?: boolean}} TextFile
 * @typedef {{system?: string, persona?: string, [parameter: string]: any}} ChatSettings
 * @typedef {{id: string, title: string, updated_at: number, created_at: number, pinned: boolean, snippet?: string,
 *   model?: string}} ChatRow
 * @typedef {{id: string, title: string, model: string, messages: Map<string, Message>, leaf: string | null,
 *   lastEvent: number, pinned: boolean, temporary: boolean, settings: ChatSettings, created_at: number}} Chat
 * @typedef {{id: string, kind: "prompt" | "persona", name: string, text: string}} Entry
 * @typedef {"off" | "low" | "high" | "max"} Effort
 * @typedef {{id: string, name: string, description: any, size_bytes: number, parameters: number,
 *   parameters_active: number, context: number, thinking: "none" | "native" | "adapter", loaded: boolean,
 *   error?: string | null, examples: Record<string, string[]>, languages: string[], upstream?: string,
 *   price?: {input: number, output: number} | null, abilities?: Record<string, boolean>}} Model
 * @typedef {{state: "queued" | "loading" | "prompt" | "thinking" | "writing", since: number, position?: number,
 *   bytes_done?: number, bytes_total?: number, processed?: number, total?: number, cached?: number, seconds?: number,
 *   thinkingSince?: number, stopping?: boolean, hurried?: boolean}} Live what a running answer is doing
 */

/** @type {Effort[]} how long a model may think before it answers */
export const EFFORTS = ["off", "low", "high", "max"];

export const state = {
  ready: false,
  /** @type {{message: string, hint: string, needsKey: boolean} | null} the page itself could not start */
  startError: null,
  version: "",
  /** @type {{name: string, admin: boolean} | null} who has signed in, where people do */
  user: null,
  lastChange: 0, // the number of what others did last, as far as we know
  /** @type {Model[]} */
  models: [],
  modelId: "",
  moreModelsHint: "",
  /** @type {{id: string, status: string, bytes_done: number, bytes_total: number, error: any} | null} */
  modelLoad: null,
  /** @type {ChatRow[]} */
  chats: [],
  moreChats: false,
  query: "",
  /** @type {Chat | null} null: a new chat that nobody has written to */
  chat: null,
  /** @type {Map<string, Live>} by message id */
  live: new Map(),
  /** @type {{message: string, hint: string, retry: () => void} | null} a question that did not get through */
  failure: null,
  room: false, // whether the last turn holds room below it: after a question, not in a chat that was only opened
  toEnd: 0, // counts the occasions on which the thread goes to its end: a chat opened, a question sent
  online: true,
  /** @type {{text: string, action: string, run: () => void} | null} */
  toast: null,
  effort: /** @type {Effort} */ (EFFORTS.find((each) => each === localStorage.getItem("effort")) ?? "off"),
  /** @type {string | null} the model that answers beside the chosen one */
  beside: null,
  temporary: false, // whether the next new chat leaves nothing behind
  /** @type {ChatSettings} those of a new chat that nobody has written to */
  settings: {},
  /** @type {Map<string, TextFile[]>} what hangs on a draft, by the draft's key */
  attached: new Map(),
  /** @type {Entry[]} prompts and personas */
  library: [],
  sidebar: matchMedia("(min-width: 768px)").matches && localStorage.getItem("sidebar") !== "closed",
  /** @type {{kind: string, [argument: string]: any} | null} one of dialogs.js, and what it is about */
  dialog: null,
  /** @type {string | null} id of the question being edited in place */
  editing: null,
  /** what a screen reader is told, once */
  announcement: "",
};

/** @type {() => void} */
let paint = () => {};
let pending = false;
let lastPaint = 0;
const PAINT_EVERY_MS = 33;

/** @param {() => void} draw */
export function onPaint(draw) {
  paint = draw;
}

/** Paint on the next animation frame, but at most every 33 ms: the first token at once, then evenly. */
export function changed() {
  if (pending) return;
  pending = true;
  const frame = () =>
    requestAnimationFrame((now) => {
      pending = false;
      lastPaint = now;
      paint();
    });
  const wait = lastPaint + PAINT_EVERY_MS - performance.now() - 8; // a frame is up to 16 ms away by itself
  if (wait > 0) setTimeout(frame, wait);
  else frame();
}

/** Whether the server can be reached, as the last attempt told. @param {boolean} online */
export function setOnline(online) {
  if (state.online !== online) changed();
  state.online = online;
}

/** Mark one message as different, so that its view (and only its) is drawn again. @param {Message} message */
export function touch(message) {
  message.revision = (message.revision ?? 0) + 1;
  changed();
}

/** @param {Message} message */
export function isRunning(message) {
  return ["queued", "loading", "prompt", "writing"].includes(message.status);
}

/** The chosen model, if the server has any. */
export function model() {
  return state.models.find(({ id }) => id === state.modelId) ?? state.models[0];
}

/** The answer being written on the path in view, if any. @returns {Message | undefined} */
export function runningMessage() {
  return [...(state.chat?.messages.values() ?? [])].findLast(isRunning);
}

/** Open a dialog. @param {string} kind @param {object} [about] */
export function openDialog(kind, about = {}) {
  state.dialog = { kind, ...about };
  changed();
}

/** Under which a text that is not sent yet is kept. */
export const draftKey = () => `draft:${state.chat?.id ?? "new"}`;

/** The settings in force: the open chat's, or those of the one that is about to begin. */
export function settings() {
  return state.chat?.settings ?? state.settings;
}

/**
 * A short message at the bottom with one way back, if there is one.
 * @param {string} text @param {string} [action] @param {() => void} [run]
 */
export function showToast(text, action = "", run = () => {}) {
  const toast = { text, action, run };
  state.toast = toast;
  setTimeout(() => {
    if (state.toast === toast) state.toast = null;
    changed();
  }, 8_000);
  changed();
}
