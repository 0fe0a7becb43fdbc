// @ts-check
// The page as a whole: header, thread, composer; and what happens when it opens.
import { html, Icon, render, useEffect, useRef, useState } from "./lib.js";
import { send, stop } from "./ask.js";
import { openChat } from "./chat.js";
import { Composer } from "./composer.js";
import { Dialogs } from "./dialogs.js";
import { listChats, pin, remove } from "./history.js";
import { languageOf, preferredLanguage, setLanguage, t } from "./i18n.js";
import { listenToKeys } from "./keys.js";
import { listen } from "./live.js";
import { warmUp } from "./markdown.js";
import { Menu } from "./menu.js";
import { examples, loadModel, readState, words } from "./models.js";
import { keepShell } from "./offline.js";
import { IconButton, Notice } from "./parts.js";
import { LoadProgress } from "./picker.js";
import { Follower } from "./scroll.js";
import { NewChat, Sidebar, focusSearch, show, toggleSidebar } from "./sidebar.js";
import { changed, model, onPaint, openDialog, runningMessage, state } from "./store.js";
import { applyTheme } from "./theme.js";
import { Thread } from "./thread.js";

/** A new chat: who answers, what it can do, and three questions it really answers. */
function Empty() {
  const chosen = model();
  const about = state.temporary ? t("temporary.about") : chosen ? words(chosen.description) : state.moreModelsHint;
  const ask = (/** @type {string} */ question) =>
    html`<li><button type="button" onClick=${() => send(question)}>${question}</button></li>`;
  return html`<div class="empty">
    <img src="static/mark.svg" alt="" width="72" height="72" />
    <h1>${chosen?.name ?? t("empty.noModel")}</h1>
    <p lang=${languageOf(about)}>${about}</p>
    <ul>${examples(chosen).slice(0, 3).map(ask)}</ul>
  </div>`;
}

/** @type {any} the view to come in by, once it is loaded */
let Login;

/** The page could not start: the server is away, or wants to know who asks. */
function StartError() {
  const error = state.startError;
  if (!error) return null;
  if (!error.needsKey) {
    return html`<${Notice} error words=${error.message} hint=${error.hint} action=${t("action.retry")} onAction=${start} />`;
  }
  if (Login) return html`<${Login} onDone=${start} />`;
  import("./account/login.js").then((file) => {
    Login = file.Login;
    changed();
  });
  return null;
}

/** A question that did not get through. */
function Failure() {
  const failed = state.failure;
  if (!failed) return null;
  return html`<${Notice} error words=${failed.message} hint=${failed.hint} action=${t("action.retry")} onAction=${failed.retry} />`;
}

/** What can be done with the open chat. */
function ChatMenu() {
  const chat = state.chat;
  if (!chat) return null;
  const row = state.chats.find(({ id }) => id === chat.id);
  const items = () => [
    row && { icon: row.pinned ? "pin-off" : "pin", name: t(row.pinned ? "history.unpin" : "history.pin"), run: () => pin(row) },
    { icon: "sliders-horizontal", name: t("settings.open"), run: () => openDialog("settings") },
    { icon: "receipt-text", name: t("receipt.chat"), run: () => openDialog("chatReceipt") },
    { icon: "download", name: t("export.open"), run: () => openDialog("export") },
    row && { icon: "trash-2", name: t("action.delete"), danger: true, run: () => remove(row, show) },
  ];
  return html`<${Menu} kind="quiet" place="below" label=${t("action.more")} button=${html`<${Icon} name="ellipsis" />`} items=${items} />`;
}

/** Whether the chat that begins now leaves nothing behind. */
function TemporarySwitch() {
  if (state.chat) return state.chat.temporary && html`<span class="temporary"><${Icon} name="ghost" />${t("temporary.name")}</span>`;
  const toggle = () => {
    state.temporary = !state.temporary;
    changed();
  };
  return html`<${IconButton} icon="ghost" name=${t("temporary.name")} pressed=${state.temporary} onClick=${toggle} />`;
}

function Header() {
  const title = state.chat?.title ?? "";
  const open = () => toggleSidebar(true);
  return html`<header class="head">
    ${!state.sidebar && html`<${IconButton} icon="panel-left" name=${t("action.showSidebar")} keys="Ctrl+B" onClick=${open} />`}
    ${title ? html`<h1 lang=${languageOf(title)}>${title}</h1>` : html`<span class="space"></span>`}
    <${TemporarySwitch} /><${ChatMenu} />
    ${!state.sidebar && html`<${NewChat} />`}
  </header>`;
}

function Main() {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const content = useRef(/** @type {HTMLElement | null} */ (null));
  const follower = useRef(/** @type {Follower | null} */ (null));
  const [away, setAway] = useState(false);
  useEffect(() => {
    const made = new Follower(
      /** @type {HTMLElement} */ (box.current),
      /** @type {HTMLElement} */ (content.current),
      () => setAway(!made.following && made.distance() > 80),
    );
    follower.current = made;
  }, []);
  useEffect(() => follower.current?.toEnd(), [state.toEnd]);
  const toEnd = () => follower.current?.toEnd();
  const failure = html`<${Failure} />`;
  const thread = state.chat?.messages.size
    ? html`<${Thread} onToggle=${() => follower.current?.set(false)} failure=${failure} />`
    : html`<${Empty} />${failure}`;
  return html`<main class="main">
    <${Header} />
    ${!state.online && html`<p class="offline" role="status">${t("error.offline")}</p>`}
    <div class="scroll" ref=${box} tabindex="-1">
      <div class="column" ref=${content}>${state.startError ? html`<${StartError} />` : state.ready && thread}</div>
    </div>
    <div class="dock">
      ${away && html`<${IconButton} kind="round jump" icon="arrow-down" name=${t("action.toEnd")} onClick=${toEnd} />`}
      <${LoadProgress} /><${Composer} />
      <p class="small">${t("composer.note")}</p>
    </div>
  </main>`;
}

function Toast() {
  const { toast } = state;
  if (!toast) return null;
  return html`<div class="toast" role="status">
    <span>${toast.text}</span>
    ${toast.action && html`<button type="button" class="button" onClick=${toast.run}>${toast.action}</button>`}
  </div>`;
}

function App() {
  if (state.startError?.needsKey) {
    return html`<div class="app"><main class="main"><div class="scroll"><div class="column"><${StartError} /></div></div></main></div>`;
  }
  const close = () => toggleSidebar(false);
  return html`<div class=${state.sidebar ? "app with-sidebar" : "app"}>
    <${Sidebar} />
    <button type="button" class="veil" tabindex="-1" aria-label=${t("action.hideSidebar")} onClick=${close}></button>
    <${Main} /><${Toast} /><${Dialogs} />
    <div class="unseen" role="status" aria-live="polite">${state.announcement}</div>
  </div>`;
}

function draw() {
  document.title = state.chat?.title ? t("title.chat", { title: state.chat.title }) : "Shoal";
  render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("page")));
}

async function start() {
  await readState();
  if (state.startError) {
    if (!state.startError.needsKey) setTimeout(() => state.startError && start(), 3_000); // it heals by itself
    return;
  }
  await Promise.all([listChats(), openChat(location.hash.slice(1) || null)]);
  listen();
  loadModel();
}

applyTheme();
await setLanguage(preferredLanguage());
onPaint(draw);
listenToKeys({
  new: () => show(null),
  search: focusSearch,
  sidebar: () => toggleSidebar(),
  help: () => openDialog("keys"),
  escape: () => {
    if (runningMessage()) stop();
    else if (state.sidebar && matchMedia("(max-width: 767px)").matches) toggleSidebar(false);
  },
});
addEventListener(
  "hashchange",
  () => location.hash.slice(1) !== (state.chat?.id ?? "") && openChat(location.hash.slice(1) || null),
);
addEventListener("shoal-signed-out", () => {
  state.startError ??= { message: "", hint: "", needsKey: true };
  changed();
});
keepShell();
setInterval(() => runningMessage() && changed(), 1_000); // the clocks of what runs
draw();
start();
warmUp();
