// @ts-check
// What opens over the page. Each kind is a file of its own that is loaded when it is asked for the first time.
import { addStyle, html, useLayoutEffect, useRef } from "./lib.js";
import { t, withWords } from "./i18n.js";
import { IconButton } from "./parts.js";
import { changed, showToast, state } from "./store.js";

/** @type {Record<string, () => Promise<Record<string, any>>>} a file with a view named like the kind */
const FILES = {
  Keys: () => import("./dialogs/help.js"),
  Receipt: () => import("./dialogs/receipt.js"),
  ChatReceipt: () => import("./dialogs/receipt.js"),
  Improve: () => import("./dialogs/feedback.js"),
  Reason: () => import("./dialogs/feedback.js"),
  Settings: () => import("./dialogs/settings.js"),
  Library: () => import("./dialogs/library.js"),
  Options: () => import("./dialogs/options.js"),
  Export: () => import("./dialogs/export.js"),
  File: () => import("./dialogs/file.js"),
  Tokens: () => import("./dialogs/tokens.js"),
  Models: () => import("./dialogs/models.js"),
  Account: () => import("./account/account.js"),
  Team: () => import("./account/team.js"),
};
/** @type {Record<string, any>} views that are loaded */
const views = {};

export function close() {
  state.dialog = null;
  changed();
}

/** @param {{title: string, wide?: boolean, children?: any}} props */
export function Frame({ title, wide = false, children }) {
  const node = useRef(/** @type {HTMLDialogElement | null} */ (null));
  useLayoutEffect(() => node.current?.showModal(), []);
  /** @param {Event} event a click on the backdrop is a click on the dialog itself */
  const onClick = (event) => event.target === node.current && close();
  return html`<dialog ref=${node} class=${wide ? "wide" : ""} aria-labelledby="dialog-title" onClose=${close} onClick=${onClick}>
    <div class="inside">
      <header>
        <h2 id="dialog-title">${title}</h2>
        <${IconButton} icon="x" name=${t("action.close")} onClick=${close} />
      </header>
      ${children}
    </div>
  </dialog>`;
}

/** @type {Promise<unknown> | undefined} */
let style;

/** @param {string} name */
async function load(name) {
  style ??= addStyle("./dialogs.css");
  try {
    const [file] = await Promise.all([FILES[name](), withWords("dialogs"), style]);
    views[name] = file[name];
  } catch {
    state.dialog = null;
    showToast(t("error.unreachable"));
  }
  changed();
}

export function Dialogs() {
  const open = state.dialog;
  if (!open) return null;
  const { kind, ...about } = open;
  const name = kind[0].toUpperCase() + kind.slice(1);
  if (!views[name]) {
    load(name);
    return null;
  }
  return html`<${views[name]} key=${kind} ...${about} />`;
}
