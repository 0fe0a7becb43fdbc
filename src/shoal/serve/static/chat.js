// @ts-check
// What people do in a conversation. The server writes the answer; the page only follows its events.
import { ApiError, call, follow } from "./api.js";
import { t } from "./i18n.js";
import { listChats } from "./history.js";
import { readState } from "./models.js";
import { changed, isRunning, runningMessage, state, touch } from "./store.js";
import { leafBelow } from "./tree.js";

/** @typedef {import("./store.js").Message} Message */

let unfollow = () => {};
/** The text that stands in the composer; app.js sets it. @type {(text: string) => void} */
let restoreDraft = () => {};
/** @param {(text: string) => void} restore */
export function onRestoreDraft(restore) {
  restoreDraft = restore;
}

/** @param {Message} message as the server sends it @returns {Message} */
function adopt(message) {
  const known = state.chat?.messages.get(message.id);
  const merged = Object.assign(known ?? {}, { reasoning: "" }, message, { revision: (known?.revision ?? 0) + 1 });
  merged.content ??= "";
  merged.reasoning ??= "";
  state.chat?.messages.set(message.id, merged);
  return merged;
}

/** @param {string | null} id null: a new chat */
export async function openChat(id) {
  unfollow();
  Object.assign(state, { chat: null, failure: null, editing: null });
  state.live.clear();
  history.replaceState(null, "", id ? `#${id}` : location.pathname);
  changed();
  if (!id) return;
  try {
    const { messages, last_event: lastEvent = 0, ...chat } = await call("GET", `api/chats/${encodeURIComponent(id)}`);
    if (location.hash !== `#${id}`) return; // another chat was opened meanwhile
    /** @type {Map<string, Message>} */
    const known = new Map();
    state.chat = { ...chat, messages: known, leaf: null, lastEvent };
    for (const message of messages) adopt(message);
    if (chat.model && state.models.some((model) => model.id === chat.model)) state.modelId = chat.model;
    const kept = sessionStorage.getItem(`leaf:${id}`);
    const leaf = runningMessage()?.id ?? leafBelow(known, kept && known.has(kept) ? kept : null);
    Object.assign(state.chat ?? {}, { leaf });
    state.toEnd += 1;
    Object.assign(state, { online: true, room: Boolean(runningMessage()) });
    followRunning();
  } catch (error) {
    fail(error, () => openChat(id));
  }
  changed();
}

/** Follow what is running from where we know it. */
function followRunning() {
  unfollow();
  const chat = state.chat;
  const running = [...(chat?.messages.values() ?? [])].filter(isRunning);
  if (!chat || running.length === 0) return;
  for (const message of running) state.live.set(message.id, liveOf(message));
  const onEvent = (/** @type {any} */ event, /** @type {number} */ number) => {
    chat.lastEvent = number;
    receive(event);
  };
  unfollow = follow(chat.id, chat.lastEvent, onEvent, async (online, closed) => {
    if (state.online !== online) changed();
    state.online = online;
    if (!closed) return;
    await new Promise((resolve) => setTimeout(resolve, 1_000));
    if (state.chat === chat && runningMessage()) openChat(chat.id); // the stream ended without the answer's end
  });
}

/**
 * What a running answer is doing, as far as its fields tell.
 * @param {Message} message @returns {import("./store.js").Live}
 */
function liveOf(message) {
  const since = Math.min(Date.now(), message.created_at * 1_000 || Date.now());
  if (message.status !== "writing") return { state: /** @type {"queued"} */ (message.status), since };
  return message.content ? { state: "writing", since } : { state: "thinking", since, thinkingSince: since };
}

/** @param {any} event one of the server's numbered events */
function receive(event) {
  if (event.type === "snapshot") {
    // the events we missed are gone; these are the texts as they stand
    for (const message of event.messages) state.live.set(message.id, liveOf(adopt(message)));
    return changed();
  }
  const id = typeof event.message === "object" ? event.message.id : event.message;
  const message = state.chat?.messages.get(id);
  if (!message || !isRunning(message)) return;
  const live = state.live.get(id) ?? { state: "queued", since: Date.now() };
  state.live.set(id, live);
  if (event.type === "reasoning") {
    message.reasoning += event.text;
    live.thinkingSince ??= Date.now();
    say("thinking", live);
  } else if (event.type === "content") {
    if (live.thinkingSince && message.content === "")
      message.thinking_seconds ??= (Date.now() - live.thinkingSince) / 1_000;
    message.content += event.text;
    say("writing", live);
  } else if (event.type === "done" || event.type === "error") {
    state.live.delete(id);
    if (event.type === "done") adopt(event.message);
    else Object.assign(message, { status: "error", error: event.error });
    state.announcement = message.status === "error" ? "" : `${t("status.finished")} ${message.content}`;
    if (!runningMessage()) unfollow();
    listChats();
    if (!state.models.find((each) => each.id === message.model)?.loaded) readState();
  } else {
    const { type, message: _, ...numbers } = event;
    Object.assign(live, numbers, { state: type });
  }
  touch(message);
}

/** @param {"thinking" | "writing"} phase @param {import("./store.js").Live} live */
function say(phase, live) {
  if (live.state !== phase) state.announcement = t(`status.${phase}`);
  live.state = phase;
}

/** @param {unknown} error @param {() => void} retry */
function fail(error, retry) {
  const known = error instanceof ApiError ? error : new ApiError(String(error), "", -1);
  const message = known.status === 0 ? t("error.unreachable") : known.message;
  state.failure = { message, hint: known.status === 0 ? "" : known.hint, retry };
  changed();
}

function effort() {
  const chosen = state.models.find(({ id }) => id === state.modelId);
  return state.thinking && chosen && chosen.thinking !== "none" ? "high" : "off";
}

/**
 * Send a question as the child of `parentId` (an edited question has its original's parent: a sibling).
 * @param {string} content @param {string | null} [parentId]
 */
export async function send(content, parentId = state.chat?.leaf ?? null) {
  if (!content.trim() || runningMessage()) return;
  Object.assign(state, { failure: null, editing: null });
  const before = state.chat?.leaf ?? null;
  let chat = state.chat;
  try {
    chat ??= await createChat(content);
    const sending = { id: "sending", parent_id: parentId, role: "user", content, reasoning: "", status: "done" };
    chat.messages.set("sending", /** @type {any} */ (sending));
    chat.leaf = "sending";
    state.room = true;
    state.toEnd += 1;
    changed();
    const body = { parent_id: parentId, content, model: state.modelId, thinking: effort() };
    const { user, assistant } = await call("POST", `api/chats/${chat.id}/messages`, body);
    chat.messages.delete("sending");
    if (state.chat !== chat) return; // the reader went on to another chat; the server answers all the same
    begin([user, assistant]);
  } catch (error) {
    if (chat) chat.leaf = before;
    chat?.messages.delete("sending");
    if (state.chat !== chat) return;
    restoreDraft(content);
    fail(error, () => {
      restoreDraft("");
      send(content, parentId);
    });
  }
}

/** @param {string} question its first line is the title @returns {Promise<import("./store.js").Chat>} */
async function createChat(question) {
  const title = question.trim().split("\n")[0].slice(0, 80);
  const made = await call("POST", "api/chats", { title, model: state.modelId });
  const chat = { ...made, title: made.title || title, messages: new Map(), leaf: null, lastEvent: 0 };
  state.chat = chat;
  history.replaceState(null, "", `#${chat.id}`);
  return chat;
}

/** @param {Message[]} messages the last of them is the answer that now runs */
function begin(messages) {
  const chat = /** @type {import("./store.js").Chat} */ (state.chat);
  for (const message of messages) adopt(message);
  chat.leaf = messages[messages.length - 1].id;
  state.room = true;
  state.toEnd += 1;
  sessionStorage.removeItem(`leaf:${chat.id}`);
  followRunning();
  listChats();
  changed();
}

/** Another answer to the same question, beside the first. @param {Message} message */
export async function regenerate(message) {
  const chat = state.chat;
  if (!chat || runningMessage()) return;
  state.failure = null;
  try {
    const body = { model: state.modelId, thinking: effort() };
    const { assistant } = await call("POST", `api/chats/${chat.id}/messages/${message.id}/regenerate`, body);
    if (state.chat === chat) begin([assistant]);
  } catch (error) {
    fail(error, () => regenerate(message));
  }
}

/** Stop what runs; what was written stays. */
export async function stop() {
  const message = runningMessage();
  if (!message || !state.chat) return;
  const live = state.live.get(message.id);
  if (live) live.stopping = true;
  changed();
  try {
    await call("POST", `api/chats/${state.chat.id}/messages/${message.id}/stop`);
  } catch (error) {
    fail(error, stop);
  }
}

/** Show the path through another version of a message. @param {Message} version */
export function choose(version) {
  if (!state.chat) return;
  state.chat.leaf = leafBelow(state.chat.messages, version.id);
  sessionStorage.setItem(`leaf:${state.chat.id}`, state.chat.leaf ?? "");
  changed();
}
