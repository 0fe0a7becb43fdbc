// @ts-check
// What other tabs and devices of the same person do: heard while the page is in view, and asked for when it comes back.
import { TAB } from "./api.js";
import { refresh } from "./chat.js";
import { listChats } from "./history.js";
import { setOnline, state } from "./store.js";

const AGAIN_MS = 10_000;
/** @type {EventSource | undefined} */
let source;

/** @param {MessageEvent<string>} event */
function hear({ data, lastEventId }) {
  state.lastChange = Number(lastEventId);
  const { missed, chats = [] } = JSON.parse(data);
  if (missed === false) return;
  if (missed || chats.includes(state.chat?.id)) refresh();
  listChats();
}

/** Listen while there is somebody to see it: a tab in the background holds no connection. */
export function listen() {
  if (document.hidden) {
    source?.close();
    source = undefined;
  }
  if (source || document.hidden || !state.ready || state.startError) return;
  const opened = new EventSource(`api/changes?after=${state.lastChange}&tab=${TAB}`);
  source = opened;
  opened.onopen = () => setOnline(true);
  opened.onmessage = hear;
  opened.onerror = () => {
    if (opened.readyState === EventSource.CONNECTING) return setOnline(false); // the browser tries again by itself
    if (source === opened) source = undefined;
    setTimeout(listen, AGAIN_MS);
  };
}
document.addEventListener("visibilitychange", listen);
