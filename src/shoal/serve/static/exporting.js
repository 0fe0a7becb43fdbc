// @ts-check
// Chats as files: Markdown and a web page to read, JSON to keep and bring back, JSONL to train on.
import { call } from "./api.js";
import { dateTime, t } from "./i18n.js";
import { state } from "./store.js";
import { pathTo } from "./tree.js";

/** @typedef {import("./store.js").Message} Message */

const FORMAT = "shoal-chats-1";
const NO_RESULT = "(no result was given)"; // as the server tells the model
const KEPT = ["id", "parent_id", "role", "content", "reasoning", "model", "created_at", "thinking_seconds", "reasoning_tokens",
  "files", "tool_calls", "feedback", "edited", "note"]; // prettier-ignore

/** @param {string} name @param {string} type @param {string} text */
function download(name, type, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** The server notes that chats were taken out, not which. @param {number} chats */
const note = (chats) => call("POST", "api/account/exported", { chats }).catch(() => {});

/** A file's name from a title. @param {string} title @param {string} ending */
const fileName = (title, ending) => `${title.replace(/[\\/:*?"<>|\s]+/g, " ").trim().slice(0, 60) || "chat"}.${ending}`;

/** @param {any} chat @param {Message[]} messages every branch */
function asJson(chat, messages) {
  const { title, model, created_at, updated_at, pinned, settings } = chat;
  const rows = messages.map((message) => Object.fromEntries(KEPT.map((key) => [key, /** @type {any} */ (message)[key] ?? null])));
  for (const row of rows) row.feedback ??= 0;
  return { title, model, created_at, updated_at, pinned: Boolean(pinned), settings, messages: rows };
}

/** @param {Message} message with its files before its text, as the model got it */
const withFiles = (message) =>
  (message.files ?? []).map(({ name, text }) => `[file name]: ${name}\n[file content begin]\n${text}\n[file content end]\n`).join("") +
  message.content;

/**
 * A row for `shoal train`: the path in view, with the answers people corrected in their words.
 * @param {Message[]} path @param {boolean} thoughts
 */
function asTraining(path, thoughts) {
  const { system } = state.chat?.settings ?? {};
  const rows = path.flatMap((message) => {
    const calls = message.status === "done" && !message.edited ? (message.tool_calls ?? []) : [];
    const tool_calls = calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
    const row = {
      role: message.role,
      content: message.role === "user" ? withFiles(message) : message.edited || message.content,
      ...(calls.length ? { tool_calls } : {}),
      ...(thoughts && message.reasoning && !message.edited ? { reasoning_content: message.reasoning } : {}),
    };
    return [row, ...calls.map(({ id, result }) => ({ role: "tool", content: result || NO_RESULT, tool_call_id: id }))];
  });
  return JSON.stringify({ messages: [...(system ? [{ role: "system", content: system }] : []), ...rows] }) + "\n";
}

/** @param {Message[]} path @param {boolean} thoughts */
function asMarkdown(path, thoughts) {
  const quote = (/** @type {string} */ text) => text.replace(/^/gm, "> ");
  const fence = (/** @type {string} */ text) => "`".repeat(Math.max(3, ...[...text.matchAll(/`+/g)].map(([run]) => run.length + 1)));
  const parts = path.map((message) => {
    const who = message.role === "user" ? t("export.you") : (message.model ?? "");
    const files = (message.files ?? []).map(({ name, text }) => `**${name}**\n\n${fence(text)}\n${text}\n${fence(text)}\n\n`).join("");
    const before = thoughts && message.reasoning ? `${quote(message.reasoning)}\n\n` : "";
    const calls = (message.tool_calls ?? []).map(({ name, arguments: text, result }) => {
      const given = result ? `\n\n${fence(result)}\n${result}\n${fence(result)}` : "";
      return `\n\n**${name}**\n\n${fence(text)}json\n${text}\n${fence(text)}${given}`;
    });
    return `## ${who}\n\n${files}${before}${message.content}${calls.join("")}\n`;
  });
  return `# ${state.chat?.title ?? ""}\n\n${parts.join("\n")}`;
}

/** @param {"markdown" | "html" | "json" | "jsonl"} form @param {boolean} thoughts */
export async function exportChat(form, thoughts) {
  const chat = state.chat;
  if (!chat) return;
  const path = pathTo(chat.messages, chat.leaf);
  const name = (/** @type {string} */ ending) => fileName(chat.title, ending);
  if (form === "markdown") download(name("md"), "text/markdown", asMarkdown(path, thoughts));
  else if (form === "jsonl") download(name("jsonl"), "application/jsonl", asTraining(path, thoughts));
  else if (form === "json") {
    const all = [...chat.messages.values()].map((message) => (thoughts ? message : { ...message, reasoning: "" }));
    download(name("json"), "application/json", JSON.stringify({ format: FORMAT, chats: [asJson(chat, all)] }, null, 1));
  } else {
    const { asPage } = await import("./webpage.js");
    download(name("html"), "text/html", await asPage(chat.title, path, thoughts, dateTime(chat.created_at)));
  }
  note(1);
}

/** Every chat in one JSON file. @param {(done: number, total: number) => void} onStep @returns {Promise<number>} how many */
export async function exportAll(onStep) {
  const rows = [];
  for (let before = ""; ;) {
    const { chats } = await call("GET", `api/chats?limit=200${before}`);
    rows.push(...chats);
    const plain = chats.filter((/** @type {any} */ chat) => !chat.pinned);
    if (plain.length < 200) break;
    before = `&before=${plain[plain.length - 1].updated_at}`;
  }
  const chats = [];
  for (const row of rows) {
    onStep(chats.length, rows.length);
    const { messages, ...chat } = await call("GET", `api/chats/${row.id}`);
    chats.push(asJson(chat, messages));
  }
  download(`shoal-chats-${new Date().toISOString().slice(0, 10)}.json`, "application/json", JSON.stringify({ format: FORMAT, chats }));
  if (chats.length) note(chats.length);
  return chats.length;
}
