// @ts-check
// What people do in a conversation: ask, ask again, go on, stop, choose between versions.
import { call } from "./api.js";
import { adopt, begin, fail } from "./chat.js";
import { changed, isRunning, openDialog, runningMessage, state, touch } from "./store.js";
import { leafBelow } from "./tree.js";

/** @typedef {import("./store.js").Message} Message @typedef {import("./store.js").TextFile} TextFile */

/** Puts text and files back into the composer, which sets it. @type {(text: string, files: TextFile[]) => void} */
let restoreDraft = () => {};
/** @param {(text: string, files: TextFile[]) => void} restore */
export function onRestoreDraft(restore) {
  restoreDraft = restore;
}

function effort() {
  const chosen = state.models.find(({ id }) => id === state.modelId);
  return chosen && chosen.thinking !== "none" ? state.effort : "off";
}

/** @param {Message} message @param {string} action */
const address = (message, action) => `api/chats/${state.chat?.id}/messages/${message.id}/${action}`;

/**
 * Send a question as the child of `parentId` (an edited question has its original's parent: a sibling).
 * @param {string} content @param {string | null} [parentId] @param {TextFile[]} [files]
 */
export async function send(content, parentId = state.chat?.leaf ?? null, files = []) {
  if (!(content.trim() || files.length) || runningMessage()) return;
  Object.assign(state, { failure: null, editing: null });
  const before = state.chat?.leaf ?? null;
  let chat = state.chat;
  try {
    chat ??= await createChat(content || files[0].name);
    const sending = { id: "sending", parent_id: parentId, role: "user", content, files, reasoning: "", status: "done" };
    chat.messages.set("sending", /** @type {any} */ (sending));
    chat.leaf = "sending";
    state.room = true;
    state.toEnd += 1;
    changed();
    const body = {
      parent_id: parentId,
      content,
      model: state.modelId,
      thinking: effort(),
      ...(files.length ? { files: files.map(({ name, text }) => ({ name, text })) } : {}),
      ...(state.beside ? { beside: state.beside } : {}),
    };
    const { user, assistants } = await call("POST", `api/chats/${chat.id}/messages`, body);
    chat.messages.delete("sending");
    if (state.chat !== chat) return; // the reader went on to another chat; the server answers all the same
    begin([user, ...assistants]);
  } catch (error) {
    if (chat) chat.leaf = before;
    chat?.messages.delete("sending");
    if (state.chat !== chat) return;
    restoreDraft(content, files);
    fail(error, () => {
      restoreDraft("", []);
      send(content, parentId, files);
    });
  }
}

/** @param {string} question its first line is the title @returns {Promise<import("./store.js").Chat>} */
async function createChat(question) {
  const title = question.trim().split("\n")[0].slice(0, 80);
  const { temporary, settings } = state;
  const made = await call("POST", "api/chats", { title, model: state.modelId, temporary, settings });
  const chat = { ...made, title: made.title || title, messages: new Map(), leaf: null, lastEvent: 0 };
  Object.assign(state, { chat, settings: {} });
  history.replaceState(null, "", `#${chat.id}`);
  return chat;
}

/** Another answer to the same question, beside the first. @param {Message} message */
export async function regenerate(message) {
  const chat = state.chat;
  if (!chat || runningMessage()) return;
  state.failure = null;
  try {
    const { assistant } = await call("POST", address(message, "regenerate"), {
      model: state.modelId,
      thinking: effort(),
    });
    if (state.chat === chat) begin([assistant]);
  } catch (error) {
    fail(error, () => regenerate(message));
  }
}

/** Let the model write on where its answer was cut. @param {Message} message */
export async function goOn(message) {
  const chat = state.chat;
  if (!chat || runningMessage()) return;
  state.failure = null;
  try {
    const { assistant } = await call("POST", address(message, "continue"));
    if (state.chat === chat) begin([assistant]);
  } catch (error) {
    fail(error, () => goOn(message));
  }
}

/**
 * What the called tools gave back; the model goes on below.
 * @param {Message} message @param {{id: string, result: string}[]} results
 */
export async function giveResults(message, results) {
  const chat = state.chat;
  if (!chat || runningMessage()) return;
  state.failure = null;
  const body = { results, model: state.modelId, thinking: effort() };
  try {
    const { message: changed, assistant } = await call("POST", address(message, "results"), body);
    if (state.chat === chat) begin([changed, assistant]);
  } catch (error) {
    fail(error, () => giveResults(message, results));
  }
}

/** Stop what runs; what was written stays. */
export async function stop() {
  if (!state.chat) return;
  for (const message of [...state.chat.messages.values()].filter(isRunning)) {
    const live = state.live.get(message.id);
    if (live) live.stopping = true;
    touch(message);
    call("POST", address(message, "stop")).catch((error) => fail(error, stop));
  }
}

/** End the thinking, so that the answer begins with what has been thought. @param {Message} message */
export async function answerNow(message) {
  const live = state.live.get(message.id);
  if (live) live.hurried = true;
  touch(message);
  try {
    await call("POST", address(message, "answer-now"));
  } catch (error) {
    if (live) live.hurried = false;
    fail(error, () => answerNow(message));
  }
}

/** Show the path through another version of a message. @param {Message} version */
export function choose(version) {
  if (!state.chat) return;
  state.chat.leaf = leafBelow(state.chat.messages, version.id);
  sessionStorage.setItem(`leaf:${state.chat.id}`, state.chat.leaf ?? "");
  changed();
}

/** Of two answers side by side, this one: the chat goes on below it. @param {Message} chosen @param {Message} other */
export async function prefer(chosen, other) {
  const chat = state.chat;
  if (!chat) return;
  try {
    const { messages } = await call("POST", address(chosen, "prefer"), { over: other.id });
    if (state.chat !== chat) return;
    for (const message of messages) adopt(message);
    choose(chosen);
  } catch (error) {
    fail(error, () => prefer(chosen, other));
  }
}

/**
 * Thumbs, with a reason, and a better answer in the reader's own words. Every judgement is stored; a later one
 * stands beside the earlier, not in its place.
 * @param {Message} message @param {-1 | 0 | 1} value @param {{edited?: string, note?: string}} [words]
 */
export async function giveFeedback(message, value, words = {}) {
  const before = { feedback: message.feedback, edited: message.edited, note: message.note };
  Object.assign(message, { feedback: value }, words);
  touch(message);
  const edited = words.edited ?? before.edited;
  try {
    await call("POST", address(message, "feedback"), { value, ...(edited ? { edited } : {}), ...words });
  } catch (error) {
    Object.assign(message, before);
    touch(message);
    fail(error, () => giveFeedback(message, value, words));
  }
}

/** Ask what was bad about an answer. @param {Message} message @param {-1 | 1} value */
export function judge(message, value) {
  const next = message.feedback === value ? 0 : value;
  giveFeedback(message, next);
  if (next === -1) openDialog("reason", { message });
}

/** Keep the settings of the open chat, or of the one that is about to begin. @param {import("./store.js").ChatSettings} next */
export async function saveSettings(next) {
  const chat = state.chat;
  if (!chat) {
    state.settings = next;
    return changed();
  }
  const before = chat.settings;
  chat.settings = next;
  changed();
  try {
    await call("PATCH", `api/chats/${chat.id}`, { settings: next });
  } catch (error) {
    chat.settings = before;
    fail(error, () => saveSettings(next));
  }
}
