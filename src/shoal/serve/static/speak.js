// @ts-check
// Reading an answer aloud, by the browser's own voices; nothing leaves the machine unless the voice does so by itself.
import { html, useState } from "./lib.js";
import { language, languageOf, t } from "./i18n.js";
import { lex } from "./markdown.js";
import { IconButton } from "./parts.js";

const PIECE_CHARACTERS = 200; // Chromium goes silent in long utterances
let speaking = "";

/** The words of markdown tokens, without their marks and without code. @param {any[]} tokens @returns {string} */
export function spoken(tokens) {
  const inside = (/** @type {any} */ token) => {
    if (token.type === "code" || token.type === "html") return "";
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

/** @param {{message: import("./store.js").Message}} props */
export function Speak({ message }) {
  const [on, setOn] = useState(speaking === message.id);
  if (!("speechSynthesis" in globalThis)) return null;
  const toggle = () => {
    speechSynthesis.cancel();
    const start = speaking !== message.id;
    speaking = start ? message.id : "";
    setOn(start);
    if (!start) return;
    const done = () => {
      if (speaking === message.id) speaking = "";
      setOn(false);
    };
    const pieces = sentences(spoken(lex(message.content)));
    for (const [index, piece] of pieces.entries()) {
      const utterance = new SpeechSynthesisUtterance(piece);
      utterance.lang = languageOf(piece) ?? (language === "en" ? "en" : (languageOf(message.content) ?? "en"));
      utterance.onerror = done;
      if (index === pieces.length - 1) utterance.onend = done;
      speechSynthesis.speak(utterance);
    }
  };
  return html`<${IconButton} icon="volume-2" name=${t(on ? "action.speakStop" : "action.speak")} pressed=${on} onClick=${toggle} />`;
}
