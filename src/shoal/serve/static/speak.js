// @ts-check
// Reading an answer aloud, by the browser's own voices; nothing leaves the machine unless the voice does so by itself.
import { language, languageOf } from "./i18n.js";
import { lex } from "./markdown.js";

const PIECE_CHARACTERS = 200; // Chromium goes silent in long utterances

/** The words of markdown tokens, without their marks and without code. @param {any[]} tokens @returns {string} */
export function spoken(tokens) {
  const inside = (/** @type {any} */ token) => {
    if (["code", "html", "space"].includes(token.type)) return "";
    if (token.type === "table") return [...token.header, ...token.rows.flat()].map((cell) => spoken(cell.tokens)).join(", ");
    if (token.items) return token.items.map((/** @type {any} */ item) => spoken(item.tokens)).join(". ");
    return token.tokens ? spoken(token.tokens) : (token.text ?? " ");
  };
  const blocks = ["heading", "paragraph", "list", "blockquote", "table"];
  return tokens.map((token) => inside(token) + (blocks.includes(token.type) ? "\n" : "")).join("");
}

/** @param {string} text @returns {string[]} pieces that end where a sentence does, if one does */
export function sentences(text) {
  return text.match(new RegExp(`[^\\n]{1,${PIECE_CHARACTERS}}(?:[.!?。！？…]+|\\s|$)|[^\\n]{1,${PIECE_CHARACTERS}}`, "g")) ?? [];
}

/** @param {string} text markdown @param {() => void} done it was read to its end, or could not be */
export function speak(text, done) {
  const pieces = sentences(spoken(lex(text)));
  for (const [index, piece] of pieces.entries()) {
    const utterance = new SpeechSynthesisUtterance(piece);
    utterance.lang = languageOf(piece) ?? (language === "en" ? "en" : (languageOf(text) ?? "en"));
    utterance.onerror = done;
    if (index === pieces.length - 1) utterance.onend = done;
    speechSynthesis.speak(utterance);
  }
}
