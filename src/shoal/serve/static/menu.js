// @ts-check
// A button that opens a menu: arrows move in it, Escape closes it, a choice closes it.
import { html, Icon, useEffect, useRef, useState } from "./lib.js";

/**
 * @typedef {{key?: string, icon?: string, name?: string, about?: string, view?: any, checked?: boolean, run: () => void,
 *   danger?: boolean, keys?: string} | null | false | undefined | ""} Item what is nothing is left out
 * @param {{label: string, button: any, kind?: string, title?: string, items: () => Item[], foot?: any, place?: "above" | "below",
 *   pressed?: boolean}} props
 *   `label` names button and menu, `button` is what the button shows
 */
export function Menu({ label, button, kind = "chip", title, items, foot, place = "above" }) {
  const [open, setOpen] = useState(false);
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const nodes = () => /** @type {HTMLElement[]} */ ([...(box.current?.querySelectorAll('[role^="menuitem"]') ?? [])]);
  useEffect(() => {
    if (!open) return undefined;
    /** @param {Event} event */
    const away = (event) => {
      if (!box.current?.contains(/** @type {Node} */ (event.target))) setOpen(false);
    };
    (nodes().find((node) => node.ariaChecked === "true") ?? nodes()[0])?.focus();
    addEventListener("pointerdown", away);
    addEventListener("focusin", away);
    return () => {
      removeEventListener("pointerdown", away);
      removeEventListener("focusin", away);
    };
  }, [open]);
  const close = () => {
    setOpen(false);
    /** @type {HTMLElement | null | undefined} */ (box.current?.querySelector("button"))?.focus();
  };
  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    if (!open) return;
    const all = nodes();
    const at = all.indexOf(/** @type {HTMLElement} */ (document.activeElement));
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (to !== undefined) all.at(to % all.length)?.focus();
    else if (event.key === "Escape") close();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  const shown = (open ? items() : []).filter(Boolean).map((each) => {
    const item = /** @type {Exclude<Item, null | false | undefined | "">} */ (each);
    const choose = () => {
      close();
      item.run();
    };
    const radio = item.checked !== undefined;
    return html`<button
      type="button"
      key=${item.key ?? item.name}
      class=${item.danger ? "danger" : ""}
      role=${radio ? "menuitemradio" : "menuitem"}
      aria-checked=${radio ? item.checked : undefined}
      onClick=${choose}
    >
      ${radio && html`<span class="tick">${item.checked && html`<${Icon} name="check" />`}</span>`}
      ${item.icon && html`<${Icon} name=${item.icon} />`}
      <span class="about">${item.view ?? html`<b>${item.name}</b>`}${item.about && html`<span>${item.about}</span>`}</span>
      ${item.keys && html`<kbd>${item.keys}</kbd>`}
    </button>`;
  });
  return html`<div class="picker" ref=${box} onKeyDown=${onKeyDown}>
    <button
      type="button"
      class=${kind}
      aria-haspopup="menu"
      aria-expanded=${open}
      aria-label=${label}
      title=${title ?? label}
      onClick=${() => setOpen(!open)}
    >
      ${button}
    </button>
    ${open && html`<div class=${`menu ${place}`}><div role="menu" aria-label=${label}>${shown}</div>${foot}</div>`}
  </div>`;
}
