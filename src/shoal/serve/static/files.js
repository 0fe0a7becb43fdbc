// @ts-check
// Files of a question as texts: what was picked, dropped or pasted becomes {name, text}. Nothing is uploaded as a file.
import { call } from "./api.js";
import { html, Icon } from "./lib.js";
import { compact, language, t } from "./i18n.js";
import { changed, openDialog, showToast, state } from "./store.js";

/** @typedef {import("./store.js").TextFile} TextFile */

export const LONG_PASTE = 2_000; // characters from which on a pasted text becomes a file
const FILE_CHARACTERS = 1_000_000;
const ALL_CHARACTERS = 3_000_000; // the server takes 8 MB, and a character may need three bytes
const MAX_FILES = 200;
const PDF_BYTES = 6 << 20;
const SKIPPED = /(^|\/)(\.[^/]*|node_modules|__pycache__|venv|target|dist|build)\//;

/** The text of bytes in any of the usual encodings; null when they are no text. @param {Uint8Array} bytes */
export function decode(bytes) {
  const marks = bytes[0] === 0xff && bytes[1] === 0xfe ? ["utf-16le"] : bytes[0] === 0xfe && bytes[1] === 0xff ? ["utf-16be"] : [];
  if (!marks.length && bytes.subarray(0, 8_192).includes(0)) return null;
  const older = language === "zh" ? ["gb18030", "shift_jis"] : ["shift_jis", "gb18030"];
  for (const encoding of [...marks, "utf-8", ...older]) {
    try {
      return new TextDecoder(encoding, { fatal: true }).decode(bytes);
    } catch {
      continue;
    }
  }
  return null;
}

/** @param {Uint8Array} bytes @returns {Promise<TextFile & {why?: string}>} */
async function readPdf(bytes) {
  if (bytes.length > PDF_BYTES) return { name: "", text: "", why: t("files.tooLarge") };
  let binary = "";
  for (let at = 0; at < bytes.length; at += 32_768) binary += String.fromCharCode(...bytes.subarray(at, at + 32_768));
  const { text, cut } = await call("POST", "api/pdf", { pdf: btoa(binary) });
  return text.trim() ? { name: "", text, cut } : { name: "", text: "", why: t("files.pdfWithoutText") };
}

/** @param {File} file @returns {Promise<TextFile & {why?: string}>} `why`: it cannot be attached */
async function read(file) {
  const name = file.webkitRelativePath || file.name;
  try {
    if (file.size > 4 * FILE_CHARACTERS && !/\.pdf$/i.test(name)) return { name, text: "", why: t("files.tooLarge") };
    const bytes = new Uint8Array(await file.arrayBuffer());
    const pdf = bytes.length > 4 && String.fromCharCode(...bytes.subarray(0, 5)) === "%PDF-";
    if (pdf) return { ...(await readPdf(bytes)), name };
    const text = decode(bytes);
    if (text === null) return { name, text: "", why: t("files.noText") };
    return { name, text: text.slice(0, FILE_CHARACTERS), cut: text.length > FILE_CHARACTERS };
  } catch (error) {
    return { name, text: "", why: /** @type {Error} */ (error).message || t("error.unreachable") };
  }
}

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

/** Read files and hang them on a draft; what cannot be read is told, the rest is there. @param {string} key @param {Iterable<File>} picked */
export async function addFiles(key, picked) {
  const chosen = [...picked].filter((file) => !SKIPPED.test(`${file.webkitRelativePath}`));
  const wrong = [];
  for (const file of chosen.slice(0, MAX_FILES)) {
    const { why, ...found } = await read(file);
    const before = attached(key);
    const room = ALL_CHARACTERS - before.reduce((sum, each) => sum + each.text.length, 0);
    if (why) wrong.push(t("files.refused", { name: file.name, why }));
    else if (room <= 0 || before.length >= MAX_FILES) wrong.push(t("files.refused", { name: file.name, why: t("files.full") }));
    else attach(key, [...before, { ...found, text: found.text.slice(0, room), cut: found.cut || found.text.length > room }]);
  }
  if (chosen.length > MAX_FILES) wrong.push(t("files.tooMany", { count: MAX_FILES }));
  if (wrong.length) showToast(wrong.slice(0, 3).join("\n"));
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
