// @ts-check
// The history: groups by day, search, rename, delete; language and help at the foot.
import { html, Icon, memo, useLayoutEffect, useRef, useState } from "./lib.js";
import { openChat } from "./chat.js";
import { listChats, remove, rename, search } from "./history.js";
import { LANGUAGES, dayGroup, language, languageOf, setLanguage, t } from "./i18n.js";
import { isComposing } from "./keys.js";
import { changed, state } from "./store.js";

/** @typedef {import("./store.js").ChatRow} ChatRow */

const NARROW = matchMedia("(max-width: 767px)");

export function toggleSidebar(open = !state.sidebar) {
  state.sidebar = open;
  if (!NARROW.matches) localStorage.setItem("sidebar", open ? "open" : "closed");
  changed();
}

/** Open a chat; on a phone the list makes room for it. @param {string | null} id */
export function show(id) {
  if (NARROW.matches) state.sidebar = false;
  changed();
  return id && id === state.chat?.id ? undefined : openChat(id);
}

export function focusSearch() {
  toggleSidebar(true);
  setTimeout(() => document.getElementById("search")?.focus(), 60); // after the paint that shows it
}

/** The text with what was searched for marked in it. @param {{text: string, query: string}} props */
function Marked({ text, query }) {
  const at = query ? text.toLowerCase().indexOf(query.toLowerCase()) : -1;
  if (at < 0) return text;
  return html`${text.slice(0, at)}<mark>${text.slice(at, at + query.length)}</mark>${text.slice(at + query.length)}`;
}

/** @param {{chat: ChatRow, done: () => void}} props */
function RenameField({ chat, done }) {
  const node = useRef(/** @type {HTMLInputElement | null} */ (null));
  useLayoutEffect(() => node.current?.select(), []);
  const finish = () => {
    rename(chat, node.current?.value ?? "");
    done();
  };
  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    if (isComposing(event)) return;
    if (event.key === "Enter") finish();
    if (event.key === "Escape") {
      event.stopPropagation();
      done();
    }
  };
  return html`<input ref=${node} class="rename" value=${chat.title} maxlength="200" aria-label=${t("history.rename")} onKeyDown=${onKeyDown} onBlur=${finish} />`;
}

/** @param {{chat: ChatRow, title: string, query: string, open: boolean}} props */
const Row = memo(({ chat, query, open }) => {
  const [renaming, setRenaming] = useState(false);
  if (renaming) return html`<li><${RenameField} chat=${chat} done=${() => setRenaming(false)} /></li>`;
  const title = chat.title || t("history.untitled");
  return html`<li class=${open ? "open" : ""}>
    <a href=${`#${chat.id}`} aria-current=${open ? "page" : undefined} title=${title} lang=${languageOf(title)}
      onClick=${(/** @type {Event} */ event) => { event.preventDefault(); show(chat.id); }} onDblClick=${() => setRenaming(true)}>
      <span><${Marked} text=${title} query=${query} /></span>${query && chat.snippet && html`<small><${Marked} text=${chat.snippet} query=${query} /></small>`}</a>
    <span class="row-actions">
      <button type="button" class="quiet" aria-label=${t("history.renameNamed", { title })} title=${t("history.rename")} onClick=${() => setRenaming(true)}><${Icon} name="pencil" /></button>
      <button type="button" class="quiet" aria-label=${t("history.deleteNamed", { title })} title=${t("history.delete")} onClick=${() => remove(chat, show)}><${Icon} name="trash-2" /></button>
    </span></li>`;
});

function Groups() {
  const now = new Date();
  /** @type {Map<string, ChatRow[]>} */
  const groups = new Map();
  for (const chat of state.chats) {
    const name = dayGroup(new Date(chat.updated_at * 1_000), now);
    groups.set(name, [...(groups.get(name) ?? []), chat]);
  }
  if (groups.size === 0) return html`<p class="none">${t(state.query ? "history.notFound" : "history.empty")}</p>`;
  return [...groups].map(([name, chats]) => html`<section key=${name}><h2>${name}</h2><ul>
    ${chats.map((chat) => html`<${Row} key=${chat.id} chat=${chat} title=${chat.title} snippet=${chat.snippet} query=${state.query} open=${chat.id === state.chat?.id} language=${language} />`)}
  </ul></section>`);
}

/** @param {any} event */
async function chooseLanguage(event) {
  localStorage.setItem("language", event.target.value);
  await setLanguage(event.target.value);
  changed();
}

export function Sidebar() {
  const timer = useRef(0);
  /** @param {any} event */
  const onSearch = (event) => {
    clearTimeout(timer.current);
    const query = event.target.value;
    timer.current = setTimeout(() => search(query), 120);
  };
  return html`<nav class="sidebar" aria-label=${t("history.title")} inert=${!state.sidebar}>
    <div class="top"><img src="static/mark.svg" alt="" width="28" height="28" /><b>Shoal</b><span class="space"></span>
      <button type="button" class="quiet" aria-label=${t("action.newChat")} title=${`${t("action.newChat")} (Ctrl+Shift+O)`} onClick=${() => show(null)}><${Icon} name="square-pen" /></button>
      <button type="button" class="quiet" aria-label=${t("action.hideSidebar")} title=${`${t("action.hideSidebar")} (Ctrl+B)`} onClick=${() => toggleSidebar(false)}><${Icon} name="panel-left" /></button></div>
    <label class="search"><${Icon} name="search" /><input id="search" type="search" placeholder=${t("history.search")} aria-label=${t("history.search")} onInput=${onSearch} /></label>
    <div class="chats"><${Groups} />${state.moreChats && html`<button type="button" class="button" onClick=${() => listChats(true)}>${t("history.older")}</button>`}</div>
    <div class="foot"><label><${Icon} name="languages" /><select aria-label=${t("language.choose")} value=${language} onChange=${chooseLanguage}>
        ${Object.entries(LANGUAGES).map(([code, name]) => html`<option value=${code} lang=${code} selected=${code === language}>${name}</option>`)}</select></label>
      <span class="space"></span>
      <button type="button" class="quiet" aria-label=${t("keys.title")} title=${`${t("keys.title")} (Ctrl+/)`} onClick=${() => { state.dialog = { kind: "keys" }; changed(); }}><${Icon} name="keyboard" /></button></div>
  </nav>`;
}
