// @ts-check
// What stands around the text being written: what can be added to it, what holds for it, and how full the context is.
import { html, Icon, useEffect, useState } from "./lib.js";
import { percent, t } from "./i18n.js";
import { Menu } from "./menu.js";
import { changed, model, openDialog, settings, state } from "./store.js";
import { pathTo } from "./tree.js";

/** How full the model's context is, as a ring and in words. @param {{used: number, total: number}} props */
export function ContextRing({ used, total }) {
  const share = Math.min(1, used / total);
  const words = t("context.used", { used, total, percent: percent(share) });
  const level = share >= 0.9 ? "full" : share >= 0.75 ? "high" : "";
  return html`<span class=${`ring ${level}`} role="img" aria-label=${words} title=${words}>
    <svg viewBox="0 0 20 20" aria-hidden="true">
      <circle cx="10" cy="10" r="8" />
      <circle class="used" cx="10" cy="10" r="8" pathLength="100" stroke-dasharray=${`${share * 100} 100`} />
    </svg>
    ${share >= 0.75 && html`<span>${percent(share)}</span>`}</span>`;
}

export function contextUse() {
  const path = pathTo(state.chat?.messages ?? new Map(), state.chat?.leaf ?? null);
  const usage = path.findLast((message) => message.usage)?.usage;
  const total = model()?.context ?? 0;
  return usage && total ? { used: (usage.prompt_tokens ?? 0) + (usage.completion_tokens ?? 0), total } : null;
}

/** What can be added to a question, and who else may answer it. @param {{onPick: (folder: boolean) => void}} props */
export function AddMenu({ onPick }) {
  const others = state.models.filter(({ id, error }) => id !== model()?.id && !error);
  const beside = (/** @type {import("./store.js").Model} */ each) => ({
    key: each.id,
    icon: "columns-2",
    name: t("beside.with", { name: each.name }),
    run: () => {
      state.beside = each.id;
      changed();
    },
  });
  const items = () => [
    { icon: "paperclip", name: t("files.attach"), run: () => onPick(false) },
    { icon: "folder", name: t("files.attachFolder"), run: () => onPick(true) },
    { icon: "book-open", name: t("library.prompts"), keys: "/", run: () => openDialog("library", { entry: "prompt" }) },
    { icon: "sliders-horizontal", name: t("settings.open"), run: () => openDialog("settings") },
    ...(state.beside ? [] : others.slice(0, 4).map(beside)),
  ];
  return html`<${Menu} kind="chip icon-only" label=${t("composer.add")} button=${html`<${Icon} name="plus" />`} items=${items} />`;
}

/** That the chat has a persona or parameters of its own. */
export function SettingsChip() {
  const own = settings();
  if (!Object.keys(own).length) return null;
  const name = own.persona ?? (own.system ? t("settings.ownSystem") : t("settings.own"));
  return html`<button type="button" class="chip own" title=${t("settings.open")} onClick=${() => openDialog("settings")}>
    <${Icon} name=${own.system ? "user-round" : "sliders-horizontal"} /><span class="name">${name}</span>
  </button>`;
}

/** Ask the browser for files. @param {boolean} folder @param {(files: File[]) => void} then */
export function pick(folder, then) {
  const input = document.createElement("input");
  Object.assign(input, { type: "file", multiple: true, webkitdirectory: folder });
  input.onchange = () => then([...(input.files ?? [])]);
  input.click();
}

/** Files that are dropped anywhere on the page. @param {(files: File[]) => void} then */
export function useDrop(then) {
  const [over, setOver] = useState(false);
  useEffect(() => {
    const carries = (/** @type {DragEvent} */ event) => event.dataTransfer?.types.includes("Files");
    const onOver = (/** @type {DragEvent} */ event) => {
      if (!carries(event)) return;
      event.preventDefault();
      setOver(true);
    };
    const onLeave = (/** @type {DragEvent} */ event) => !event.relatedTarget && setOver(false);
    const onDrop = (/** @type {DragEvent} */ event) => {
      if (!carries(event)) return;
      event.preventDefault();
      setOver(false);
      then([...(event.dataTransfer?.files ?? [])]);
    };
    addEventListener("dragover", onOver);
    addEventListener("dragleave", onLeave);
    addEventListener("drop", onDrop);
    return () => {
      removeEventListener("dragover", onOver);
      removeEventListener("dragleave", onLeave);
      removeEventListener("drop", onDrop);
    };
  }, []);
  return over;
}
