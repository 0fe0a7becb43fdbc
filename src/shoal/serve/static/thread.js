// @ts-check
// The conversation in view: turns of a question and its answer, of which only those near the reader are drawn in full.
import { html, useEffect, useRef, useState } from "./lib.js";
import { prefer } from "./ask.js";
import { language, t } from "./i18n.js";
import { MessageView } from "./message.js";
import { changed, isRunning, runningMessage, state } from "./store.js";
import { byParent, pathTo } from "./tree.js";
import { modelName } from "./waiting.js";

/** @typedef {import("./store.js").Message} Message */

const NEAR_PX = 1_500;
const TURNS_PER_PAINT = 20; // of a long chat that is opened: its end first, the rest above it in the next paints
let begun = { chat: "", turns: 0 };

/** @type {IntersectionObserver | undefined} */
let watcher;
/** @type {WeakMap<Element, () => void>} */
const arrivals = new WeakMap();

/** Call back once, when an element comes near what is in view. @param {Element} element @param {() => void} arrived */
function whenNear(element, arrived) {
  watcher ??= new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        watcher?.unobserve(target);
        arrivals.get(target)?.();
      }
    },
    { root: element.closest(".scroll"), rootMargin: `${NEAR_PX}px 0px` },
  );
  arrivals.set(element, arrived);
  watcher.observe(element);
  return () => watcher?.unobserve(element);
}

/**
 * Questions with their answers, so that the last pair can hold the room for what is to come.
 * @param {Message[]} path
 */
function turnsOf(path) {
  /** @type {Message[][]} */
  const turns = [];
  for (const message of path) {
    if (message.role === "user" || turns.length === 0) turns.push([message]);
    else turns[turns.length - 1].push(message);
  }
  return turns;
}

/** @param {{kind: string, atOnce: boolean, view: (near: boolean) => any}} props */
function Turn({ kind, atOnce, view }) {
  const node = useRef(/** @type {Element | null} */ (null));
  const [arrived, setArrived] = useState(false);
  const drawn = useRef(false); // what was drawn in full once stays so
  drawn.current ||= arrived || atOnce;
  const near = drawn.current;
  useEffect(() => (near ? undefined : whenNear(/** @type {Element} */ (node.current), () => setArrived(true))), [near]);
  return html`<section ref=${node} class=${kind}>${view(near)}</section>`;
}

/** Two answers to one question, and the choice between them. @param {{pair: Message[], view: (message: Message) => any}} props */
function Pair({ pair, view }) {
  const ready = !pair.some(isRunning);
  const side = (/** @type {Message} */ message, /** @type {number} */ index) => html`<div key=${message.id}>
    <h2>${modelName(message)}</h2>
    ${view(message)}
    <button type="button" class="button better" disabled=${!ready} onClick=${() => prefer(message, pair[1 - index])}>
      ${t("beside.better")}
    </button>
  </div>`;
  return html`<div class="pair" role="group" aria-label=${t("beside.title")}>${pair.map(side)}</div>`;
}

/** @param {{onToggle: () => void, failure: any}} props `onToggle`: the reader opened or folded something */
export function Thread({ onToggle, failure }) {
  const chat = /** @type {import("./store.js").Chat} */ (state.chat);
  const busy = Boolean(runningMessage());
  const second = Math.floor(Date.now() / 1_000);
  const versionsOf = byParent(chat.messages);
  const turns = turnsOf(pathTo(chat.messages, chat.leaf));
  const show = (/** @type {Message} */ message, /** @type {boolean} */ near, paired = false) => {
    const versions = versionsOf.get(message.parent_id ?? null) ?? [message];
    return html`<${MessageView}
      key=${message.id}
      message=${message}
      revision=${message.revision}
      versions=${versions}
      count=${versions.length}
      busy=${busy}
      near=${near}
      paired=${paired}
      editing=${state.editing === message.id}
      tick=${isRunning(message) ? second : 0}
      language=${language}
      onToggle=${onToggle}
    />`;
  };
  if (begun.chat !== chat.id) begun = { chat: chat.id, turns: 0 };
  const opening = begun.turns === 0;
  if (begun.turns < turns.length) {
    begun.turns += opening ? 1 : TURNS_PER_PAINT;
    setTimeout(changed);
  }
  const first = Math.max(0, turns.length - begun.turns);
  return turns.slice(first).map((turn, place) => {
    const index = first + place;
    const last = index === turns.length - 1;
    const view = (/** @type {boolean} */ near) => {
      const parts = turn.map((message) => {
        const pair = message.params?.beside && !message.preference
          ? (versionsOf.get(message.parent_id ?? null) ?? []).filter(({ params }) => params?.beside)
          : [];
        if (pair.length !== 2) return show(message, near);
        return html`<${Pair} key=${message.parent_id} pair=${pair} view=${(/** @type {Message} */ each) => show(each, near, true)} />`;
      });
      return html`${parts}${last && failure}`;
    };
    const kind = last ? (state.room ? "turn last room" : "turn last") : "turn";
    return html`<${Turn} key=${index} kind=${kind} atOnce=${!opening && index === turns.length - 1} view=${view} />`;
  });
}
