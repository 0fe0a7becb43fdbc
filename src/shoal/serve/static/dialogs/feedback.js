// @ts-check
// What a reader can say about an answer: a better one, and why this one was bad.
import { html, useLayoutEffect, useRef, useState } from "../lib.js";
import { giveFeedback } from "../ask.js";
import { grow } from "../composer.js";
import { Frame, close } from "../dialogs.js";
import { t } from "../i18n.js";

/** @typedef {import("../store.js").Message} Message */

/**
 * The reader writes the answer they wanted; it is kept beside the model's, for training.
 * @param {{message: Message}} props
 */
export function Improve({ message }) {
  const [text, setText] = useState(message.edited || message.content);
  const node = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useLayoutEffect(() => grow(node.current, 16), [text]);
  const save = () => {
    giveFeedback(message, message.feedback ?? 0, { edited: text });
    close();
  };
  /** @param {any} event */
  const onInput = (event) => setText(event.target.value);
  return html`<${Frame} title=${t("improve.title")}>
    <p>${t("improve.about")}</p>
    <textarea ref=${node} rows="6" value=${text} aria-label=${t("improve.title")} onInput=${onInput}></textarea>
    <div class="buttons">
      <button type="button" class="button" onClick=${close}>${t("action.cancel")}</button>
      <button type="button" class="button primary" disabled=${!text.trim()} onClick=${save}>${t("action.save")}</button>
    </div>
  <//>`;
}

const REASONS = ["reason.wrong", "reason.missed", "reason.long", "reason.short", "reason.style", "reason.harm"];

/** Why an answer was bad: usual reasons to press, and words of one's own. @param {{message: Message}} props */
export function Reason({ message }) {
  const [picked, setPicked] = useState(/** @type {string[]} */ ([]));
  const [own, setOwn] = useState("");
  const note = [...picked.map((key) => t(key)), own.trim()].filter(Boolean).join("; ");
  const save = (/** @type {Event} */ event) => {
    event.preventDefault();
    giveFeedback(message, -1, { note });
    close();
  };
  const chip = (/** @type {string} */ key) => {
    const on = picked.includes(key);
    const press = () => setPicked(on ? picked.filter((each) => each !== key) : [...picked, key]);
    return html`<button type="button" class="chip" aria-pressed=${on} onClick=${press}>${t(key)}</button>`;
  };
  /** @param {any} event */
  const onInput = (event) => setOwn(event.target.value);
  return html`<${Frame} title=${t("reason.title")}>
    <form onSubmit=${save}>
      <div class="chips">${REASONS.map(chip)}</div>
      <input class="field" value=${own} maxlength="2000" placeholder=${t("reason.own")} aria-label=${t("reason.own")} onInput=${onInput} />
      <div class="buttons">
        <button type="button" class="button" onClick=${close}>${t("action.skip")}</button>
        <button class="button primary" disabled=${!note}>${t("action.save")}</button>
      </div>
    </form>
  <//>`;
}
