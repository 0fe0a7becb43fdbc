// @ts-check
// The choices on the composer's lower edge: the model, with its size and how far it is loaded; how hard it thinks.
import { html, Icon } from "./lib.js";
import { bytes, compact, money, t } from "./i18n.js";
import { errorWords } from "./api.js";
import { Menu } from "./menu.js";
import { chooseModel, loadModel, words } from "./models.js";
import { Notice, Progress } from "./parts.js";
import { EFFORTS, changed, model, openDialog, state } from "./store.js";

/** @typedef {import("./store.js").Model} Model */

/** The numbers of a model in one line. @param {Model} each */
export function sizes(each) {
  const parts = [];
  if (each.parameters) {
    const active = each.parameters_active && each.parameters_active < each.parameters;
    const key = active ? "model.parametersActive" : "model.parameters";
    parts.push(t(key, { total: compact(each.parameters), active: compact(each.parameters_active ?? 0) }));
  }
  if (each.size_bytes) parts.push(bytes(each.size_bytes));
  if (each.context) parts.push(t("model.context", { n: each.context }));
  if (each.thinking !== "none") parts.push(t("model.thinks"));
  if (each.upstream) parts.push(t("model.via", { name: each.upstream }));
  const { price } = each;
  if (price) parts.push(t("model.price", { input: money(price.input), output: money(price.output) }));
  return parts.join(" · ");
}

/** The bar of a model that is being loaded, or why it could not be. */
export function LoadProgress() {
  const load = state.modelLoad;
  if (!load || load.id !== model()?.id) return null;
  const name = model()?.name ?? "";
  if (load.status === "error") {
    const { message, hint } = errorWords(load.error);
    const failed = t("model.loadFailed", { name });
    const why = [message, hint].filter(Boolean).join("\n");
    return html`<${Notice} error words=${failed} hint=${why} action=${t("action.retry")} onAction=${loadModel} />`;
  }
  const { bytes_done: done = 0, bytes_total: total = 0 } = load;
  const words = t("wait.loading", { name, done: bytes(done), total: bytes(total) });
  return html`<${Progress} words=${words} done=${done} total=${total} />`;
}

/** A model in a menu: name, what it is, its numbers or why it does not work. @param {Model} each */
export function ModelFacts(each) {
  const trouble = each.upstream ? each.error : t("model.loadFailed", { name: each.name });
  const facts = each.error ? trouble : sizes(each);
  return html`<b>${each.name}</b>${each.loaded && !each.upstream && html`<i>${t("model.loaded")}</i>`}
    ${!each.upstream && html`<span>${words(each.description)}</span>`}<span class="numbers" title=${each.error ?? ""}>${facts}</span>`;
}

export function ModelPicker() {
  const chosen = model();
  if (!chosen) return html`<span class="chip">${t("model.none")}</span>`;
  const item = (/** @type {Model} */ each) => ({
    key: each.id,
    checked: each.id === chosen.id,
    view: ModelFacts(each),
    run: () => chooseModel(each.id),
  });
  const items = () => state.models.map(item);
  const button = html`<span class="name">${chosen.name}</span><${Icon} name="chevron-down" />`;
  const manages = !state.user || state.user.admin;
  const manage = html`<button type="button" class="link" onClick=${() => openDialog("models", {})}>${t("model.manage")}</button>`;
  const foot = manages ? html`<p>${manage}</p>` : state.moreModelsHint && html`<p>${state.moreModelsHint}</p>`;
  return html`<${Menu} label=${t("model.choose", { name: chosen.name })} button=${button} items=${items} foot=${foot} />`;
}

/** The second model, that answers beside the first, and a way to send it away. */
export function Beside() {
  const other = state.models.find(({ id }) => id === state.beside);
  if (!other) return null;
  const end = () => {
    state.beside = null;
    changed();
  };
  return html`<button type="button" class="chip beside" aria-label=${t("beside.end", { name: other.name })} onClick=${end}>
    <${Icon} name="columns-2" /><span class="name">${other.name}</span><${Icon} name="x" />
  </button>`;
}

/** @param {import("./store.js").Effort} effort */
function setEffort(effort) {
  state.effort = effort;
  localStorage.setItem("effort", effort);
  if (effort !== "off") localStorage.setItem("effortLast", effort);
  changed();
}

/** On and off by one press; how much, by the menu beside it. */
export function EffortPicker() {
  if ((model()?.thinking ?? "none") === "none") return null;
  const on = state.effort !== "off";
  const last = /** @type {import("./store.js").Effort} */ (localStorage.getItem("effortLast") ?? "high");
  const toggle = () => setEffort(on ? "off" : EFFORTS.includes(last) ? last : "high");
  const item = (/** @type {import("./store.js").Effort} */ effort) => ({
    key: effort,
    name: t(`effort.${effort}`),
    about: t(`effort.${effort}About`),
    checked: effort === state.effort,
    run: () => setEffort(effort),
  });
  const items = () => EFFORTS.map(item);
  const effort = t(`effort.${state.effort}`);
  const label = on ? t("composer.thinkHard", { effort }) : t("composer.think");
  return html`<span class=${on ? "split on" : "split"}>
    <button type="button" class="chip" aria-pressed=${on} aria-label=${label} title=${t("composer.thinkHint")} onClick=${toggle}>
      <${Icon} name="brain" /><span class="long">${label}</span>${on && html`<span class="short">${effort}</span>`}
    </button>
    <${Menu} kind="chip narrow" label=${t("effort.choose")} button=${html`<${Icon} name="chevron-down" />`} items=${items} />
  </span>`;
}
