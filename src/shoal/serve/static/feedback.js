// @ts-check
// What readers think of an answer. Every judgement is stored; a later one stands beside it, not in its place.
import { call, errorWords } from "./api.js";
import { t } from "./i18n.js";
import { showToast, state, touch } from "./store.js";

/** @typedef {import("./store.js").Message} Message */

/**
 * Thumbs, and a better answer in the reader's own words.
 * @param {Message} message @param {-1 | 0 | 1} value @param {string} [edited]
 */
export async function giveFeedback(message, value, edited) {
  const before = { feedback: message.feedback, edited: message.edited };
  Object.assign(message, { feedback: value }, edited === undefined ? {} : { edited });
  touch(message);
  try {
    const body = { value, ...(edited === undefined ? {} : { edited }) };
    await call("POST", `api/chats/${state.chat?.id}/messages/${message.id}/feedback`, body);
  } catch (error) {
    Object.assign(message, before);
    touch(message);
    const { message: words } = errorWords(error);
    showToast(words || t("error.unreachable"), t("action.retry"), () => giveFeedback(message, value, edited));
  }
}
