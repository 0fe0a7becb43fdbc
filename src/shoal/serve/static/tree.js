// @ts-check
// A chat is a tree of messages by parent_id: an edit or a regenerated answer is a sibling. Pure functions.

/** @typedef {import("./store.js").Message} Message */
/** @typedef {Map<string, Message>} Messages in the order they were made */

/** All versions of all messages, by their parent. @param {Messages} messages @returns {Map<string | null, Message[]>} */
export function byParent(messages) {
  const found = new Map();
  for (const message of messages.values()) {
    const parent = message.parent_id ?? null;
    const versions = found.get(parent);
    if (versions) versions.push(message);
    else found.set(parent, [message]);
  }
  return found;
}

/**
 * Follow the newest child down to the end. From null: the newest end of the whole chat.
 * @param {Messages} messages @param {string | null} id @returns {string | null}
 */
export function leafBelow(messages, id) {
  /** @type {Map<string | null, string>} */
  const newest = new Map();
  for (const message of messages.values()) newest.set(message.parent_id ?? null, message.id);
  let leaf = id;
  for (let next = newest.get(leaf); next !== undefined; next = newest.get(leaf)) leaf = next;
  return leaf;
}

/**
 * The messages from the first one to `leaf`.
 * @param {Messages} messages @param {string | null} leaf @returns {Message[]}
 */
export function pathTo(messages, leaf) {
  const path = [];
  const seen = new Set();
  for (let message = messages.get(leaf ?? ""); message && !seen.has(message.id);) {
    seen.add(message.id);
    path.push(message);
    message = messages.get(message.parent_id ?? "");
  }
  return path.reverse();
}
