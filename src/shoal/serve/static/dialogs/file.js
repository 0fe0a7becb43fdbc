// @ts-check
// The text of an attached file, as the model gets it.
import { html } from "../lib.js";
import { Frame } from "../dialogs.js";
import { languageOf } from "../i18n.js";
import { CopyButton } from "../parts.js";
import { t } from "../i18n.js";

/** @param {{file: import("../store.js").TextFile}} props */
export function File({ file }) {
  return html`<${Frame} title=${file.name} wide>
    ${file.cut && html`<p>${t("files.cut")}</p>`}
    <pre class="sheet" tabindex="0" lang=${languageOf(file.text)}>${file.text}</pre>
    <div class="buttons"><${CopyButton} text=${() => file.text} name=${t("action.copy")} label /></div>
  <//>`;
}
