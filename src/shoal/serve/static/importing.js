// @ts-check
// Chats from a file: our own export, or the conversations.json of ChatGPT's. One chat at a time goes to the server.
import { ApiError, call } from "./api.js";
import { t } from "./i18n.js";
import { listChats } from "./history.js";

const CHARACTERS = 1_000_000; // of one message; the server takes no more

/**
 * A conversation of ChatGPT's export: a tree `mapping` of nodes; what is neither question nor answer is left out, and
 * its children hang on what stands above it.
 * @param {any} conversation
 */
export function fromChatGpt(conversation) {
  const { mapping = {} } = conversation;
  /** @type {any[]} */
  const messages = [];
  /** @type {[any, string | null][]} */
  const open = Object.values(mapping).flatMap((node) => (!node.parent || !mapping[node.parent] ? [[node, null]] : []));
  const seen = new Set();
  while (open.length) {
    const [node, above] = /** @type {[any, string | null]} */ (open.pop());
    if (seen.has(node.id)) continue;
    seen.add(node.id);
    const { message } = node;
    const role = message?.author?.role;
    const parts = message?.content?.parts ?? [message?.content?.text];
    const content = parts.filter((/** @type {any} */ part) => typeof part === "string").join("\n").trim();
    const hidden = message?.metadata?.is_visually_hidden_from_conversation || (message?.recipient ?? "all") !== "all";
    const kept = (role === "user" || role === "assistant") && content && !hidden;
    if (kept) {
      messages.push({
        id: node.id,
        parent_id: above,
        role,
        content: content.slice(0, CHARACTERS),
        created_at: message.create_time ?? null,
        model: message.metadata?.model_slug ?? null,
      });
    }
    for (const child of [...(node.children ?? [])].reverse()) if (mapping[child]) open.push([mapping[child], kept ? node.id : above]);
  }
  const { title, create_time: created_at, update_time: updated_at } = conversation;
  return { title: String(title ?? "").slice(0, 300), created_at: created_at ?? null, updated_at: updated_at ?? null, messages };
}

/** The chats of a file in the form the server takes. @param {any} data @returns {any[]} */
export function chatsOf(data) {
  if (Array.isArray(data) && data.every((each) => each?.mapping)) return data.map(fromChatGpt);
  if (data?.mapping) return [fromChatGpt(data)];
  if (data?.format === "shoal-chats-1" && Array.isArray(data.chats)) return data.chats;
  throw new Error(t("options.notChats"));
}

/** @param {File} file @param {(done: number, total: number) => void} onStep */
export async function importFile(file, onStep) {
  let data;
  try {
    data = JSON.parse(await file.text());
  } catch {
    throw new Error(t("options.notChats"));
  }
  const chats = chatsOf(data).filter(({ messages }) => messages?.length);
  let skipped = 0;
  for (const [index, chat] of chats.entries()) {
    onStep(index, chats.length);
    try {
      await call("POST", "api/imports", chat);
    } catch (error) {
      if (!(/** @type {ApiError} */ (error).status)) throw error;
      skipped += 1; // one that is too large or damaged does not hold up the others
    }
  }
  await listChats();
  return { count: chats.length - skipped, skipped };
}
