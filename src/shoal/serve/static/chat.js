// @ts-check
// The open chat: read it, and follow what the server writes in it. The server owns the answers.
import { ApiError, call, follow, readSettled } from "./api.js";
import { t } from "./i18n.js";
import { listChats } from "./history.js";
import { modelOf, readState } from "./models.js";
import { changed, isRunning, runningMessage, setOnline, showToast, state, touch } from "./store.js";
import { leafBelow } from "./tree.js";

/** @typedef {import("./store.js").Message} Message */

let unfollow = () => {};
/** @param {Message} message as the server sends it @returns {Message} */
export function adopt(message) {
  const known = state.chat?.messages.get(message.id);
  const merged = Object.assign(known ?? {}, { reasoning: "" }, message, { revision: (known?.revision ?? 0) + 1 });
  merged.content ??= "";
  merged.reasoning ??= "";
  state.chat?.messages.set(message.id, merged);
  return merged;
}

/** A temporary chat that is left is gone. @param {string | null} next */
function leave(next) {
  const chat = state.chat;
  if (!chat?.temporary || chat.id === next) return;
  state.temporary = false;
  call("DELETE", `api/chats/${chat.id}`).catch(() => {}); // else the server forgets it by itself
}

/** @param {string | null} id null: a new chat */
export async function openChat(id) {
  unfollow();
  leave(id);
  Object.assign(state, { chat: null, failure: null, editing: null, beside: null });
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
    state.temporary = chat.temporary;
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

/** What of a message others can change. @type {(keyof Message)[]} */
const SHARED = ["status", "feedback", "edited", "note", "preference", "tool_calls"];

/**
 * Take over what another tab or device did in the open chat; an answer that was begun there comes into view.
 * @returns {Promise<boolean>} false: the server did not say
 */
export async function refresh() {
  const chat = state.chat;
  if (!chat) return true;
  let found;
  try {
    found = await readSettled(`api/chats/${chat.id}`);
  } catch (error) {
    const gone = /** @type {ApiError} */ (error).status === 404;
    if (!gone || state.chat !== chat) return gone;
    showToast(t("history.deleted"));
    openChat(null);
    return true;
  }
  if (state.chat !== chat) return true;
  const { title, settings, pinned, messages, last_event: lastEvent = 0 } = found;
  Object.assign(chat, { title: title || chat.title, settings, pinned });
  const differs = (/** @type {Message} */ message) => {
    const known = chat.messages.get(message.id);
    const text = (/** @type {any} */ value) => JSON.stringify(value ?? null);
    return !known || SHARED.some((name) => text(known[name]) !== text(message[name]));
  };
  const begun = messages.findLast((/** @type {Message} */ each) => isRunning(each) && !chat.messages.has(each.id));
  for (const message of messages) if (differs(message) || isRunning(message)) adopt(message);
  for (const id of [...state.live.keys()]) if (!messages.some((/** @type {Message} */ each) => each.id === id && isRunning(each))) state.live.delete(id);
  const leaf = begun && !state.editing ? begun.id : leafBelow(chat.messages, chat.leaf);
  if (leaf !== chat.leaf) {
    Object.assign(state, { toEnd: state.toEnd + 1, room: Boolean(begun) });
    chat.leaf = leaf;
  }
  chat.lastEvent = lastEvent;
  followRunning();
  changed();
  return true;
}

/** Follow what is running from where we know it. */
function followRunning() {
  unfollow();
  const chat = state.chat;
  const running = [...(chat?.messages.values() ?? [])].filter(isRunning);
  if (!chat || running.length === 0) return;
  for (const message of running) {
    const { stopping, hurried, thinkingSince } = state.live.get(message.id) ?? {}; // the server does not tell these
    state.live.set(message.id, { ...liveOf(message), stopping, hurried, ...(thinkingSince && { thinkingSince }) });
  }
  const onEvent = (/** @type {any} */ event, /** @type {number} */ number) => {
    chat.lastEvent = number;
    receive(event);
  };
  unfollow = follow(chat.id, chat.lastEvent, onEvent, async (online, closed) => {
    setOnline(online);
    if (!closed) return;
    do await new Promise((resolve) => setTimeout(resolve, 1_000));
    while (state.chat === chat && runningMessage() && !(await refresh())); // it ended without the answer's end
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
  } else if (event.type === "tool_call") {
    const { id: called, name, text } = event;
    const calls = (message.tool_calls ??= []);
    if (calls[calls.length - 1]?.id !== called) calls.push({ id: called, name, arguments: "" });
    calls[calls.length - 1].arguments += text;
    say("writing", live);
  } else if (event.type === "done" || event.type === "error") {
    state.live.delete(id);
    if (event.type === "done") adopt(event.message);
    else Object.assign(message, { status: "error", error: event.error });
    state.announcement = message.status === "error" ? "" : `${t("status.finished")} ${message.content}`;
    if (!runningMessage()) unfollow();
    listChats();
    if (!modelOf(message)?.loaded) readState();
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
export function fail(error, retry) {
  const known = error instanceof ApiError ? error : new ApiError(String(error), "", -1);
  const message = known.status === 0 ? t("error.unreachable") : known.message;
  state.failure = { message, hint: known.status === 0 ? "" : known.hint, retry };
  changed();
}

/** @param {Message[]} messages the last of them is an answer that now runs */
export function begin(messages) {
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
