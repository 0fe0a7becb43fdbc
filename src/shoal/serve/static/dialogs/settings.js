// @ts-check
// How the answers of this chat are made: whose words come first, and the parameters of the sampler.
import { html, Icon, useEffect, useLayoutEffect, useRef, useState } from "../lib.js";
import { saveSettings } from "../ask.js";
import { grow } from "../composer.js";
import { Frame, close } from "../dialogs.js";
import { number, t } from "../i18n.js";
import { readLibrary } from "../prompts.js";
import { model, openDialog, settings, state } from "../store.js";

/** @typedef {{name: string, least: number, most: number, step: number, whole?: boolean}} Parameter */

/** @type {Parameter[]} the four that people change, and the rest */
const FIRST = [
  { name: "temperature", least: 0, most: 2, step: 0.05 },
  { name: "top_p", least: 0, most: 1, step: 0.01 },
  { name: "max_tokens", least: 1, most: 2 ** 31 - 1, step: 1, whole: true },
  { name: "seed", least: -(2 ** 53), most: 2 ** 53, step: 1, whole: true },
];
/** @type {Parameter[]} */
const REST = [
  { name: "top_k", least: 0, most: 1_000_000, step: 1, whole: true },
  { name: "min_p", least: 0, most: 1, step: 0.01 },
  { name: "repetition_penalty", least: 0.01, most: 10, step: 0.01 },
  { name: "presence_penalty", least: -2, most: 2, step: 0.05 },
  { name: "frequency_penalty", least: -2, most: 2, step: 0.05 },
];

/** @param {{parameter: Parameter, value: any, onChange: (value: string) => void}} props */
function NumberField({ parameter, value, onChange }) {
  const { name, least, most, step } = parameter;
  const own = model()?.defaults?.[name];
  const hint = own === undefined || own === null ? t(`parameter.${name}Default`) : number(own, 3);
  const slider = most <= 2 && least >= 0 && html`<input
    type="range"
    tabindex="-1"
    aria-hidden="true"
    min=${least}
    max=${most}
    step=${step}
    value=${value ?? own ?? 1}
    onInput=${(/** @type {any} */ event) => onChange(event.target.value)}
  />`;
  return html`<label class="parameter">
    <span>${t(`parameter.${name}`)}<small>${t(`parameter.${name}About`)}</small></span>
    ${slider}
    <input
      type="number"
      inputmode="decimal"
      min=${least}
      max=${most}
      step=${parameter.whole ? 1 : "any"}
      placeholder=${hint}
      value=${value ?? ""}
      onInput=${(/** @type {any} */ event) => onChange(event.target.value)}
    />
  </label>`;
}

/** The tools in a text: a JSON list of functions, each as the API has it or without its wrapping. @param {string} text */
function toolsIn(text) {
  const found = text.trim() ? JSON.parse(text) : [];
  if (!Array.isArray(found)) throw new SyntaxError("no list");
  return found.map((tool) => (tool?.function ? tool : { type: "function", function: tool }));
}

/** @param {string} text */
function isList(text) {
  try {
    return Boolean(toolsIn(text));
  } catch {
    return false;
  }
}

export function Settings() {
  const [now, setNow] = useState(settings());
  const [tools, setTools] = useState(now.tools ? JSON.stringify(now.tools, null, 1) : "");
  const node = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useEffect(() => void readLibrary(), []);
  useLayoutEffect(() => grow(node.current, 12), [now.system]);
  const personas = state.library.filter(({ kind }) => kind === "persona");
  /** @param {Record<string, any>} change what is "" or undefined is the model's own again */
  const set = (change) =>
    setNow(Object.fromEntries(Object.entries({ ...now, ...change }).filter(([, value]) => value !== "" && value !== undefined)));
  const wear = (/** @type {any} */ event) => {
    const persona = personas.find(({ id }) => id === event.target.value);
    set({ persona: persona?.name, system: persona?.text });
  };
  const field = (/** @type {Parameter} */ parameter) => html`<${NumberField}
    key=${parameter.name}
    parameter=${parameter}
    value=${now[parameter.name]}
    onChange=${(/** @type {string} */ text) => set({ [parameter.name]: text === "" || Number.isNaN(Number(text)) ? "" : Number(text) })}
  />`;
  const reset = () => {
    setNow({});
    setTools("");
  };
  /** @param {Event} event */
  const save = (event) => {
    event.preventDefault();
    const { tools: _, ...rest } = now;
    const list = toolsIn(tools);
    saveSettings(list.length ? { ...rest, tools: list } : rest);
    close();
  };
  const worn = personas.find(({ name, text }) => name === now.persona && text === now.system)?.id ?? "";
  return html`<${Frame} title=${t("settings.title")} wide>
    <form onSubmit=${save}>
      <p>${t("settings.about")}</p>
      <div class="line">
        <label>${t("settings.persona")}
          <select value=${worn} onChange=${wear}>
            <option value="">${t("settings.noPersona")}</option>
            ${personas.map(({ id, name }) => html`<option value=${id} selected=${id === worn}>${name}</option>`)}
          </select>
        </label>
        <button type="button" class="button" onClick=${() => openDialog("library", { entry: "persona", text: now.system })}>${t("library.managePersonas")}</button>
      </div>
      <textarea
        ref=${node}
        rows="3"
        value=${now.system ?? ""}
        aria-label=${t("settings.system")}
        placeholder=${t("settings.systemHint")}
        onInput=${(/** @type {any} */ event) => set({ system: event.target.value, persona: undefined })}
      ></textarea>
      ${FIRST.map(field)}
      <details open=${REST.some(({ name }) => now[name] !== undefined)}>
        <summary><${Icon} name="chevron-right" />${t("settings.more")}</summary>${REST.map(field)}
      </details>
      <details open=${Boolean(now.tools)}>
        <summary><${Icon} name="chevron-right" />${t("settings.tools")}</summary>
        <p>${t("settings.toolsAbout")}</p>
        <textarea
          class="source"
          rows="6"
          spellcheck="false"
          value=${tools}
          aria-label=${t("settings.tools")}
          aria-invalid=${!isList(tools)}
          placeholder=${'[{"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]'}
          onInput=${(/** @type {any} */ event) => setTools(event.target.value)}
        ></textarea>
        ${!isList(tools) && html`<p role="alert">${t("settings.toolsWrong")}</p>`}
      </details>
      <div class="buttons">
        <button type="button" class="button" disabled=${!Object.keys(now).length && !tools} onClick=${reset}>${t("settings.reset")}</button>
        <span class="space"></span>
        <button type="button" class="button" onClick=${close}>${t("action.cancel")}</button>
        <button class="button primary" disabled=${!isList(tools)}>${t("action.save")}</button>
      </div>
    </form>
  <//>`;
}
