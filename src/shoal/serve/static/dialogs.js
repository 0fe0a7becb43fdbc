// @ts-check
// The three things that open over the page: the keys, an answer's receipt, and a better answer.
import { html, useLayoutEffect, useRef, useState } from "./lib.js";
import { grow } from "./composer.js";
import { giveFeedback } from "./feedback.js";
import { money, number, seconds, t } from "./i18n.js";
import { SHORTCUTS } from "./keys.js";
import { IconButton } from "./parts.js";
import { changed, state } from "./store.js";
import { modelName } from "./waiting.js";

/** @typedef {import("./store.js").Message} Message */

function close() {
  state.dialog = null;
  changed();
}

/** @param {{title: string, children?: any}} props */
function Frame({ title, children }) {
  const node = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useLayoutEffect(() => node.current?.showModal(), []);
  /** @param {Event} event a click on the backdrop is a click on the dialog itself */
  const onClick = (event) => event.target === node.current && close();
  return html`<dialog ref=${node} aria-labelledby="dialog-title" onClose=${close} onClick=${onClick}>
    <div class="inside">
      <header>
        <h2 id="dialog-title">${title}</h2>
        <${IconButton} icon="x" name=${t("action.close")} onClick=${close} />
      </header>
      ${children}
    </div>
  </dialog>`;
}

function Keys() {
  return html`<${Frame} title=${t("keys.title")}><dl class="keys">${SHORTCUTS.map(
    ([keys, words]) => html`<div>
    <dt>${t(words)}</dt><dd>${keys.split("+").map((key) => html`<kbd>${key || "+"}</kbd>`)}</dd></div>`,
  )}</dl><//>`;
}

/** Everything that was measured about one answer. @param {{message: Message}} props */
function Receipt({ message }) {
  const { usage = {}, timings = {}, cost = {} } = message;
  const count = (/** @type {any} */ n) => (n === undefined || n === null ? undefined : number(n));
  const time = (/** @type {any} */ n) =>
    n === undefined || n === null ? undefined : t("unit.seconds", { n: number(n, 2) });
  const speed = (/** @type {number} */ tokens, /** @type {number} */ spent) =>
    tokens > 0 && spent > 0 ? t("unit.speed", { n: number(tokens / spent, 1) }) : undefined;
  const joules =
    cost.joules === undefined || cost.joules === null
      ? undefined
      : t(cost.energy_source === "measured" ? "receipt.measured" : "receipt.estimated", {
          n: number(cost.joules, cost.joules < 10 ? 2 : 0),
          source: cost.energy_source ?? "",
        });
  const rows = [
    ["receipt.model", modelName(message)],
    ["receipt.prompt", count(usage.prompt_tokens)],
    ["receipt.cached", usage.cached_tokens ? count(usage.cached_tokens) : undefined],
    ["receipt.written", count(usage.completion_tokens)],
    ["receipt.thoughts", message.reasoning_tokens ? count(message.reasoning_tokens) : undefined],
    ["receipt.queue", time(timings.queue_seconds)],
    ["receipt.reading", time(timings.prompt_seconds)],
    ["receipt.first", time(timings.first_token_seconds)],
    ["receipt.writing", time(timings.decode_seconds)],
    ["receipt.readSpeed", speed(usage.prompt_tokens - (usage.cached_tokens ?? 0), timings.prompt_seconds)],
    ["receipt.writeSpeed", speed(usage.completion_tokens - 1, timings.decode_seconds)],
    ["receipt.flops", cost.flops ? t("receipt.gflop", { n: number(cost.flops / 1e9, 1) }) : undefined],
    ["receipt.energy", joules],
    ["receipt.cost", cost.usd === undefined ? undefined : money(cost.usd, cost.currency)],
    ["receipt.device", cost.device],
    ["receipt.priceDate", cost.price_date],
  ].filter(([, value]) => value);
  const lines = rows.map(([name, value]) => html`<div><dt>${t(String(name))}</dt><dd>${value}</dd></div>`);
  return html`<${Frame} title=${t("receipt.title")}><dl class="receipt">${lines}</dl><//>`;
}

/**
 * The reader writes the answer they wanted; it is kept beside the model's, for training.
 * @param {{message: Message}} props
 */
function Improve({ message }) {
  const [text, setText] = useState(message.edited || message.content);
  const node = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useLayoutEffect(() => grow(node.current, 16), [text]);
  const save = () => {
    giveFeedback(message, message.feedback ?? 0, text);
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

export function Dialogs() {
  const open = state.dialog;
  if (!open) return null;
  if (open.kind === "keys") return html`<${Keys} />`;
  return open.kind === "receipt"
    ? html`<${Receipt} message=${open.message} />`
    : html`<${Improve} message=${open.message} />`;
}
