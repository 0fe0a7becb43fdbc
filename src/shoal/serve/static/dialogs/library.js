// @ts-check
// The library: prompts that are offered after a slash, and personas that a chat can have. Written, changed, deleted here.
import { html, useEffect, useLayoutEffect, useRef, useState } from "../lib.js";
import { call } from "../api.js";
import { grow } from "../composer.js";
import { Frame } from "../dialogs.js";
import { t } from "../i18n.js";
import { IconButton, said } from "../parts.js";
import { readLibrary } from "../prompts.js";
import { showToast, state } from "../store.js";

/** @typedef {import("../store.js").Entry} Entry */

/** @param {() => Promise<any>} work */
async function kept(work) {
  try {
    await work();
  } catch (error) {
    showToast(said(error));
  }
  await readLibrary(true);
}

/** @param {{entry: Partial<Entry>, kind: "prompt" | "persona", done: () => void}} props */
function Form({ entry, kind, done }) {
  const [name, setName] = useState(entry.name ?? "");
  const [text, setText] = useState(entry.text ?? "");
  const node = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useLayoutEffect(() => grow(node.current, 14), [text]);
  /** @param {Event} event */
  const save = async (event) => {
    event.preventDefault();
    await kept(() => call("POST", entry.id ? `api/library/${entry.id}` : "api/library", { kind, name: name.trim(), text }));
    done();
  };
  return html`<form onSubmit=${save}>
    <input class="field" value=${name} maxlength="100" placeholder=${t("library.name")} aria-label=${t("library.name")}
      onInput=${(/** @type {any} */ event) => setName(event.target.value)} />
    <textarea ref=${node} rows="4" value=${text} placeholder=${t(`library.${kind}Hint`)} aria-label=${t(`library.${kind}Hint`)}
      onInput=${(/** @type {any} */ event) => setText(event.target.value)}></textarea>
    <div class="buttons">
      <button type="button" class="button" onClick=${done}>${t("action.cancel")}</button>
      <button class="button primary" disabled=${!name.trim() || !text.trim()}>${t("action.save")}</button>
    </div>
  </form>`;
}

/** @param {{entry: "prompt" | "persona", text?: string}} props `text`: words to make an entry of */
export function Library({ entry: kind, text }) {
  const [editing, setEditing] = useState(/** @type {Partial<Entry> | null} */ (text ? { text } : null));
  useEffect(() => void readLibrary(), []);
  const entries = state.library.filter((each) => each.kind === kind);
  const remove = async (/** @type {Entry} */ gone) => {
    await kept(() => call("DELETE", `api/library/${gone.id}`));
    const { name, text: words } = gone;
    showToast(t("library.deleted", { name }), t("action.undo"), () => {
      state.toast = null;
      kept(() => call("POST", "api/library", { kind, name, text: words }));
    });
  };
  const row = (/** @type {Entry} */ each) => html`<li key=${each.id}>
    <div><b>${each.name}</b><p>${each.text}</p></div>
    <${IconButton} icon="pencil" name=${t("library.edit", { name: each.name })} onClick=${() => setEditing(each)} />
    <${IconButton} icon="trash-2" name=${t("library.delete", { name: each.name })} onClick=${() => remove(each)} />
  </li>`;
  const title = t(kind === "prompt" ? "library.prompts" : "library.personas");
  if (editing) {
    return html`<${Frame} title=${title} wide><${Form} entry=${editing} kind=${kind} done=${() => setEditing(null)} /><//>`;
  }
  return html`<${Frame} title=${title} wide>
    <p>${t(`library.${kind}About`)}</p>
    <ul class="library">${entries.map(row)}</ul>
    <div class="buttons"><button type="button" class="button primary" onClick=${() => setEditing({})}>${t("library.add")}</button></div>
  <//>`;
}
