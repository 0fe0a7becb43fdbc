// @ts-check
// Files that people give become texts: any usual encoding, folders without what nobody means, PDF by the server.
import { call } from "./api.js";
import { attach, attached, FILE_CHARACTERS } from "./files.js";
import { language, t, withWords } from "./i18n.js";
import { showToast } from "./store.js";

/** @typedef {import("./store.js").TextFile} TextFile */

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

/** Read files and hang them on a draft; what cannot be read is told, the rest is there. @param {string} key @param {Iterable<File>} picked */
export async function addFiles(key, picked) {
  const chosen = [...picked].filter((file) => !SKIPPED.test(`${file.webkitRelativePath}`));
  await withWords("dialogs");
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
