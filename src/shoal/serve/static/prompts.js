// @ts-check
// The library of prompts and personas: read once, offered after a slash.
import { call } from "./api.js";
import { html, Icon, useEffect } from "./lib.js";
import { t } from "./i18n.js";
import { changed, state } from "./store.js";

/** @typedef {import("./store.js").Entry} Entry */

let asked = false;

/** @param {boolean} [again] */
export async function readLibrary(again = false) {
  if (asked && !again) return;
  asked = true;
  try {
    state.library = (await call("GET", "api/library")).entries;
  } catch {
    asked = false; // the next slash asks again
  }
  changed();
}

/**
 * The prompts that match what stands after a slash at the text's beginning; null when there is none.
 * @param {string} text @returns {Entry[] | null}
 */
export function promptsFor(text) {
  if (!/^\/[^\s/]*$/.test(text)) return null;
  const wanted = text.slice(1).toLowerCase();
  return state.library.filter(({ kind, name }) => kind === "prompt" && name.toLowerCase().includes(wanted)).slice(0, 8);
}

/** @param {{prompts: Entry[], at: number, onChoose: (prompt?: Entry) => void}} props */
export function PromptList({ prompts, at, onChoose }) {
  useEffect(() => void readLibrary(), []);
  const option = (/** @type {Entry | undefined} */ prompt, /** @type {number} */ index) => html`<button
    type="button"
    key=${prompt?.id ?? "manage"}
    id=${`prompt-${index}`}
    role="option"
    aria-selected=${index === at}
    tabindex="-1"
    onClick=${() => onChoose(prompt)}
  >
    <${Icon} name=${prompt ? "book-open" : "plus"} />
    <span class="about"><b>${prompt?.name ?? t("library.manage")}</b>${prompt && html`<span>${prompt.text.slice(0, 80)}</span>`}</span>
  </button>`;
  return html`<div class="menu above wide" role="listbox" id="prompts" aria-label=${t("library.prompts")}>
    ${[...prompts.map(option), option(undefined, prompts.length)]}
  </div>`;
}
