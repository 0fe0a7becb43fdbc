// @ts-check
// The list of chats: read, search, rename, pin, delete with a way back.
import { call } from "./api.js";
import { t } from "./i18n.js";
import { changed, showToast, state } from "./store.js";

/** @typedef {import("./store.js").ChatRow} ChatRow */

const PAGE = 40;
let latest = 0;

/**
 * Read the newest chats (those that match state.query), or the page after the last one shown.
 * @param {boolean} [more]
 */
export async function listChats(more = false) {
  const turn = ++latest;
  const before = more ? String(state.chats[state.chats.length - 1]?.updated_at ?? "") : "";
  const wanted = new URLSearchParams({
    limit: String(PAGE),
    ...(state.query ? { q: state.query } : {}),
    ...(before ? { before } : {}),
  });
  try {
    const { chats } = await call("GET", `api/chats?${wanted}`);
    if (turn !== latest) return; // a later search has been asked
    state.moreChats = chats.filter((/** @type {ChatRow} */ chat) => state.query || !chat.pinned).length === PAGE;
    state.chats = more ? state.chats.concat(chats) : chats;
    const open = state.chats.find(({ id }) => id === state.chat?.id);
    if (open && state.chat) state.chat.title = open.title;
  } catch {
    return; // the list is not worth a message of its own: the next action that fails says so
  }
  changed();
}

/** @param {string} query */
export function search(query) {
  state.query = query.trim();
  return listChats();
}

/** @param {ChatRow} chat @param {string} title */
export async function rename(chat, title) {
  const before = chat.title;
  if (!title.trim() || title.trim() === before) return;
  chat.title = title.trim();
  if (state.chat?.id === chat.id) state.chat.title = chat.title;
  changed();
  try {
    await call("PATCH", `api/chats/${chat.id}`, { title: chat.title });
  } catch {
    chat.title = before;
    showToast(t("error.unreachable"), t("action.retry"), () => rename(chat, title));
  }
}

/** @param {ChatRow} chat kept at the top of the list, or no longer */
export async function pin(chat) {
  try {
    await call("PATCH", `api/chats/${chat.id}`, { pinned: !chat.pinned });
  } catch {
    showToast(t("error.unreachable"), t("action.retry"), () => pin(chat));
  }
  return listChats();
}

/** @param {ChatRow} chat @param {(id: string | null) => void} open what to show afterwards */
export async function remove(chat, open) {
  const wasOpen = state.chat?.id === chat.id;
  try {
    await call("DELETE", `api/chats/${chat.id}`);
  } catch {
    showToast(t("error.unreachable"), t("action.retry"), () => remove(chat, open));
    return;
  }
  state.chats = state.chats.filter(({ id }) => id !== chat.id);
  if (wasOpen) open(null);
  showToast(t("history.deleted"), t("action.undo"), async () => {
    state.toast = null;
    await call("POST", `api/chats/${chat.id}/restore`);
    await listChats();
    if (wasOpen) open(chat.id);
  });
}
