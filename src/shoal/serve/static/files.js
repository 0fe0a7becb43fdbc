// @ts-check
// Files of a question as texts: what was picked, dropped or pasted becomes {name, text}. Nothing is uploaded as a file.
import { html, Icon } from "./lib.js";
import { compact, t } from "./i18n.js";
import { changed, openDialog, state } from "./store.js";

/** @typedef {import("./store.js").TextFile} TextFile */

export const LONG_PASTE = 2_000; // characters from which on a pasted text becomes a file
export const FILE_CHARACTERS = 1_000_000;

/** The files of the draft with this key. @param {string} key @returns {TextFile[]} */
export function attached(key) {
  return state.attached.get(key) ?? [];
}

/** @param {string} key of the draft @param {TextFile[]} files */
export function attach(key, files) {
  if (files.length) state.attached.set(key, files);
  else state.attached.delete(key);
  changed();
}

/** Read files and hang them on a draft. @param {string} key @param {Iterable<File>} picked */
export async function addFiles(key, picked) {
  const files = [...picked]; // a paste's list is empty once its event is over
  const reading = await import("./reading.js");
  return reading.addFiles(key, files);
}

/** A long text that was pasted. @param {string} key @param {string} text */
export function addPaste(key, text) {
  const number = attached(key).filter(({ name }) => name.startsWith("pasted")).length + 1;
  attach(key, [...attached(key), { name: `pasted-${number}.txt`, text: text.slice(0, FILE_CHARACTERS) }]);
}

/** Files as chips; a press shows the text. @param {{files: TextFile[], onRemove?: (index: number) => void}} props */
export function FileChips({ files, onRemove }) {
  if (files.length === 0) return null;
  return html`<ul class="files">${files.map((file, index) => {
    const size = t("files.characters", { n: compact(file.text.length) });
    const remove = () => onRemove?.(index);
    return html`<li key=${index} class=${file.cut ? "cut" : ""}>
      <button type="button" title=${file.cut ? t("files.cut") : file.name} onClick=${() => openDialog("file", { file })}>
        <${Icon} name="file-text" /><span>${file.name}</span><small>${size}${file.cut ? ` · ${t("files.cut")}` : ""}</small>
      </button>
      ${onRemove && html`<button type="button" aria-label=${t("files.remove", { name: file.name })} onClick=${remove}><${Icon} name="x" /></button>`}
    </li>`;
  })}</ul>`;
}
