// @ts-check
// What holds for the whole page: language, appearance, the key that sends; and chats brought in and taken out.
import { html, useRef, useState } from "../lib.js";
import { Frame } from "../dialogs.js";
import { LANGUAGES, language, setLanguage, t } from "../i18n.js";
import { Notice, Progress } from "../parts.js";
import { setTheme } from "../theme.js";
import { changed, state } from "../store.js";

/** One of a few. @param {{name: string, value: string, choices: [string, string][], onChoose: (value: string) => void}} props */
function Choice({ name, value, choices, onChoose }) {
  return html`<label class="choice"><span>${name}</span>
    <select value=${value} onChange=${(/** @type {any} */ event) => onChoose(event.target.value)}>
      ${choices.map(([key, words]) => html`<option value=${key} selected=${key === value}>${words}</option>`)}
    </select></label>`;
}

export function Options() {
  const [, paint] = useState(0);
  const [work, setWork] = useState(/** @type {{words: string, done: number, total: number} | null} */ (null));
  const [told, setTold] = useState(/** @type {{words: string, error: boolean} | null} */ (null));
  const input = useRef(/** @type {HTMLInputElement | null} */ (null));
  const keep = (/** @type {string} */ key, /** @type {string} */ value) => {
    localStorage.setItem(key, value);
    paint(Math.random());
  };
  const speak = async (/** @type {any} */ code) => {
    localStorage.setItem("language", code);
    await setLanguage(code);
    changed();
    paint(Math.random());
  };
  const theme = (/** @type {string} */ value) => {
    setTheme(value);
    paint(Math.random());
  };
  /** @param {() => Promise<string>} task */
  const run = async (task) => {
    setTold(null);
    try {
      setTold({ words: await task(), error: false });
    } catch (error) {
      setTold({ words: /** @type {Error} */ (error).message || t("error.unreachable"), error: true });
    }
    setWork(null);
  };
  const step = (/** @type {string} */ key) => (/** @type {number} */ done, /** @type {number} */ total) =>
    setWork({ words: t(key, { done, total }), done, total });
  const takeOut = () =>
    run(async () => {
      const { exportAll } = await import("../exporting.js");
      return t("options.exported", { count: await exportAll(step("options.exporting")) });
    });
  const bringIn = () =>
    run(async () => {
      const file = input.current?.files?.[0];
      if (!file) return "";
      const { importFile } = await import("../importing.js");
      const { count, skipped } = await importFile(file, step("options.importing"));
      if (input.current) input.current.value = "";
      return t("options.imported", { count }) + (skipped ? ` ${t("options.skipped", { count: skipped })}` : "");
    });
  return html`<${Frame} title=${t("options.title")}>
    <${Choice} name=${t("language.choose")} value=${language} choices=${Object.entries(LANGUAGES)} onChoose=${speak} />
    <${Choice}
      name=${t("options.theme")}
      value=${localStorage.getItem("theme") ?? "system"}
      choices=${[["system", t("options.themeSystem")], ["light", t("options.themeLight")], ["dark", t("options.themeDark")]]}
      onChoose=${theme}
    />
    <${Choice}
      name=${t("options.sendKey")}
      value=${localStorage.getItem("sendKey") ?? "enter"}
      choices=${[["enter", "Enter"], ["ctrl", "Ctrl+Enter"]]}
      onChoose=${(/** @type {string} */ value) => keep("sendKey", value)}
    />
    <h3>${t("options.data")}</h3>
    <p>${t("options.dataAbout")}</p>
    <div class="buttons start">
      <button type="button" class="button" disabled=${Boolean(work)} onClick=${() => input.current?.click()}>${t("options.import")}</button>
      <button type="button" class="button" disabled=${Boolean(work)} onClick=${takeOut}>${t("options.export")}</button>
      <input ref=${input} type="file" accept=".json,application/json" hidden aria-label=${t("options.import")} onChange=${bringIn} />
    </div>
    <div role="status">
      ${work && html`<${Progress} words=${work.words} done=${work.done} total=${work.total} />`}
      ${told?.words && html`<${Notice} words=${told.words} error=${told.error} />`}
    </div>
    <p class="version">Shoal ${state.version}</p>
  <//>`;
}
