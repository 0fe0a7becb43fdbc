// @ts-check
// The history: groups by day, search, rename, pin, delete; the page's settings at the foot.
import { html, Icon, memo, useLayoutEffect, useRef, useState } from "./lib.js";
import { openChat } from "./chat.js";
import { listChats, pin, remove, rename, search } from "./history.js";
import { dayGroup, language, languageOf, t } from "./i18n.js";
import { isComposing } from "./keys.js";
import { IconButton } from "./parts.js";
import { changed, openDialog, state } from "./store.js";

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

export function NewChat() {
  const open = () => show(null);
  return html`<${IconButton} icon="square-pen" name=${t("action.newChat")} keys="Ctrl+Shift+O" onClick=${open} />`;
}

/** The text with the first of the words searched for marked in it. @param {{text: string, query: string}} props */
function Marked({ text, query }) {
  const lower = text.toLowerCase();
  const word = [query, ...query.split(/\s+/)].find((each) => each && lower.includes(each.toLowerCase()));
  if (!word) return text;
  const at = lower.indexOf(word.toLowerCase());
  return html`${text.slice(0, at)}<mark>${text.slice(at, at + word.length)}</mark>${text.slice(at + word.length)}`;
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
  return html`<input
    ref=${node}
    class="rename"
    value=${chat.title}
    maxlength="200"
    aria-label=${t("history.rename")}
    onKeyDown=${onKeyDown}
    onBlur=${finish}
  />`;
}

/** @param {{chat: ChatRow, title: string, query: string, open: boolean}} props */
const Row = memo(({ chat, query, open }) => {
  const [renaming, setRenaming] = useState(false);
  if (renaming) return html`<li><${RenameField} chat=${chat} done=${() => setRenaming(false)} /></li>`;
  const title = chat.title || t("history.untitled");
  /** @param {Event} event */
  const onClick = (event) => {
    event.preventDefault();
    show(chat.id);
  };
  const edit = () => setRenaming(true);
  const current = open ? "page" : undefined;
  const pinning = chat.pinned ? "history.unpinNamed" : "history.pinNamed";
  const snippet = query && chat.snippet && html`<small><${Marked} text=${chat.snippet} query=${query} /></small>`;
  return html`<li class=${open ? "open" : ""}>
    <a href=${`#${chat.id}`} aria-current=${current} title=${title} lang=${languageOf(title)} onClick=${onClick} onDblClick=${edit}>
      <span><${Marked} text=${title} query=${query} /></span>${snippet}
    </a>
    <span class="row-actions">
      <${IconButton} icon=${chat.pinned ? "pin-off" : "pin"} name=${t(pinning, { title })} onClick=${() => pin(chat)} />
      <${IconButton} icon="pencil" name=${t("history.renameNamed", { title })} onClick=${edit} />
      <${IconButton} icon="trash-2" name=${t("history.deleteNamed", { title })} onClick=${() => remove(chat, show)} />
    </span>
  </li>`;
});

function Groups() {
  const now = new Date();
  /** @type {Map<string, ChatRow[]>} */
  const groups = new Map();
  for (const chat of state.chats) {
    const name = chat.pinned && !state.query ? t("history.pinned") : dayGroup(new Date(chat.updated_at * 1_000), now);
    groups.set(name, [...(groups.get(name) ?? []), chat]);
  }
  if (groups.size === 0) return html`<p class="none">${t(state.query ? "history.notFound" : "history.empty")}</p>`;
  const row = (/** @type {ChatRow} */ chat) =>
    html`<${Row}
      key=${chat.id}
      chat=${chat}
      title=${chat.title}
      snippet=${chat.snippet}
      query=${state.query}
      open=${chat.id === state.chat?.id}
      language=${language}
    />`;
  return [...groups].map(
    ([name, chats]) => html`<section key=${name}><h2>${name}</h2><ul>${chats.map(row)}</ul></section>`,
  );
}

export function Sidebar() {
  const timer = useRef(0);
  /** @param {any} event */
  const onSearch = (event) => {
    clearTimeout(timer.current);
    const query = event.target.value;
    timer.current = setTimeout(() => search(query), 120);
  };
  const hide = () => toggleSidebar(false);
  const older = html`<button type="button" class="button" onClick=${() => listChats(true)}>${t("history.older")}</button>`;
  const words = t("history.search");
  return html`<nav class="sidebar" aria-label=${t("history.title")} inert=${!state.sidebar}>
    <div class="top">
      <img src="static/mark.svg" alt="" width="28" height="28" /><b>Shoal</b><span class="space"></span>
      <${NewChat} />
      <${IconButton} icon="panel-left" name=${t("action.hideSidebar")} keys="Ctrl+B" onClick=${hide} />
    </div>
    <label class="search">
      <${Icon} name="search" />
      <input id="search" type="search" placeholder=${words} aria-label=${words} onInput=${onSearch} />
    </label>
    <div class="chats"><${Groups} />${state.moreChats && older}</div>
    <div class="foot">
      <${IconButton} icon="settings" name=${t("options.title")} label onClick=${() => openDialog("options")} />
      <span class="space"></span>
      ${state.user && html`<${IconButton} icon="user-round" name=${state.user.name} onClick=${() => openDialog("account")} />`}
      <${IconButton} icon="keyboard" name=${t("keys.title")} keys="Ctrl+/" onClick=${() => openDialog("keys")} />
    </div>
  </nav>`;
}
