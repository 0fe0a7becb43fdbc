// @ts-check
// The keyboard, listed.
import { html } from "../lib.js";
import { Frame } from "../dialogs.js";
import { t } from "../i18n.js";
import { shortcuts } from "../keys.js";

export function Keys() {
  return html`<${Frame} title=${t("keys.title")}><dl class="keys">${shortcuts().map(
    ([keys, words]) => html`<div>
    <dt>${t(words)}</dt><dd>${keys.split("+").map((key) => html`<kbd>${key || "+"}</kbd>`)}</dd></div>`,
  )}</dl><//>`;
}
