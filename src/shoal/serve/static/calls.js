// @ts-check
// The tools that an answer calls: name, arguments, and the result, which the reader gives. The server runs no tool.
import { html, Icon, useState } from "./lib.js";
import { giveResults } from "./ask.js";
import { t } from "./i18n.js";
import { CopyButton } from "./parts.js";

/** @typedef {import("./store.js").Message} Message @typedef {import("./store.js").ToolCall} ToolCall */

/** Arguments as people read them: one to a line, where they are whole. @param {string} text */
function laidOut(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** @param {{name: string, text: string}} props */
const Sheet = ({ name, text }) => html`<figure class="code">
  <figcaption><span>${name}</span><${CopyButton} text=${() => text} name=${t("action.copy")} /></figcaption>
  <pre tabindex="0"><code translate="no">${text}</code></pre>
</figure>`;

/** @param {{message: Message, busy: boolean, running: boolean}} props */
export function Calls({ message, busy, running }) {
  const [typed, setTyped] = useState(/** @type {Record<string, string>} */ ({}));
  const calls = message.tool_calls ?? [];
  const open = message.status === "done" && !calls.some(({ result }) => result !== undefined && result !== null);
  const given = calls.filter(({ id }) => typed[id]?.trim()).map(({ id }) => ({ id, result: typed[id] }));
  /** @param {Event} event */
  const submit = (event) => {
    event.preventDefault();
    giveResults(message, given);
  };
  const field = (/** @type {ToolCall} */ { id, name }) => html`<textarea
    rows="2"
    value=${typed[id] ?? ""}
    placeholder=${t("call.resultHint")}
    aria-label=${t("call.resultOf", { name })}
    onInput=${(/** @type {any} */ event) => setTyped({ ...typed, [id]: event.target.value })}
  ></textarea>`;
  const one = (/** @type {ToolCall} */ call) => html`<li key=${call.id}>
    <p><${Icon} name="sliders-horizontal" /><b>${call.name}</b></p>
    <${Sheet} name=${t("call.arguments")} text=${laidOut(call.arguments)} />
    ${
      call.result
        ? html`<${Sheet} name=${t("call.result")} text=${call.result} />`
        : open
          ? field(call)
          : !running && html`<small>${t("call.noResult")}</small>`
    }
  </li>`;
  return html`<form class="calls" onSubmit=${submit}>
    <ul aria-label=${t("call.title")}>${calls.map(one)}</ul>
    ${open && html`<button class="button primary" disabled=${busy || !given.length}>${t("call.send")}</button>`}
  </form>`;
}
