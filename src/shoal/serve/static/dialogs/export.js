// @ts-check
// The open chat as a file.
import { html, Icon, useState } from "../lib.js";
import { Frame, close } from "../dialogs.js";
import { exportChat } from "../exporting.js";
import { t } from "../i18n.js";

/** @type {("markdown" | "html" | "json" | "jsonl")[]} */
const FORMS = ["markdown", "html", "json", "jsonl"];

export function Export() {
  const [thoughts, setThoughts] = useState(false);
  const save = (/** @type {typeof FORMS[number]} */ form) => async () => {
    await exportChat(form, thoughts);
    close();
  };
  return html`<${Frame} title=${t("export.title")}>
    <ul class="forms">${FORMS.map(
      (form) => html`<li><button type="button" onClick=${save(form)}>
        <${Icon} name="download" /><span class="about"><b>${t(`export.${form}`)}</b><span>${t(`export.${form}About`)}</span></span>
      </button></li>`,
    )}</ul>
    <label class="check"><input type="checkbox" checked=${thoughts} onChange=${() => setThoughts(!thoughts)} />${t("export.thoughts")}</label>
  <//>`;
}
