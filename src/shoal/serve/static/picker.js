// @ts-check
// The choice of a model, with its size and how far it is loaded.
import { html, Icon, useEffect, useRef, useState } from "./lib.js";
import { bytes, compact, t } from "./i18n.js";
import { errorWords } from "./api.js";
import { chooseModel, loadModel, words } from "./models.js";
import { Notice, Progress } from "./parts.js";
import { model, state } from "./store.js";

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

export function ModelPicker() {
  const [open, setOpen] = useState(false);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const chosen = model();
  useEffect(() => {
    if (!open) return undefined;
    /** @param {Event} event */
    const away = (event) => {
      if (!box.current?.contains(/** @type {Node} */ (event.target))) setOpen(false);
    };
    /** @type {HTMLElement | null | undefined} */ (box.current?.querySelector('[aria-checked="true"]'))?.focus();
    addEventListener("pointerdown", away);
    addEventListener("focusin", away);
    return () => {
      removeEventListener("pointerdown", away);
      removeEventListener("focusin", away);
    };
  }, [open]);
  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    if (!open) return;
    const items = /** @type {HTMLElement[]} */ ([...(box.current?.querySelectorAll('[role="menuitemradio"]') ?? [])]);
    const at = items.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) items[(at + step + items.length) % items.length]?.focus();
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const close = () => {
    setOpen(false);
    /** @type {HTMLElement | null | undefined} */ (box.current?.querySelector(".chip"))?.focus();
  };
  if (!chosen) return html`<span class="chip">${t("model.none")}</span>`;
  const choose = (/** @type {string} */ id) => () => {
    chooseModel(id);
    close();
  };
  const items = state.models.map((each) => {
    const checked = each.id === chosen.id;
    const facts = each.error ? t("model.loadFailed", { name: each.name }) : sizes(each);
    return html`<button type="button" key=${each.id} role="menuitemradio" aria-checked=${checked} onClick=${choose(each.id)}>
      <span class="tick">${checked && html`<${Icon} name="check" />`}</span>
      <span class="about">
        <b>${each.name}</b>${each.loaded && html`<i>${t("model.loaded")}</i>`}
        <span>${words(each.description)}</span><span class="numbers" title=${each.error ?? ""}>${facts}</span>
      </span>
    </button>`;
  });
  const label = t("model.choose", { name: chosen.name });
  const toggle = () => setOpen(!open);
  return html`<div class="picker" ref=${box} onKeyDown=${onKeyDown}>
    <button type="button" class="chip" aria-haspopup="menu" aria-expanded=${open} aria-label=${label} onClick=${toggle}>
      <span class="name">${chosen.name}</span><${Icon} name="chevron-down" />
    </button>
    ${
      open &&
      html`<div class="menu" role="menu" aria-label=${t("model.title")}>
      ${items}${state.moreModelsHint && html`<p>${state.moreModelsHint}</p>`}
    </div>`
    }
  </div>`;
}
