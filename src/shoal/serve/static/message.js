// @ts-check
// One message: a question in its bubble, or an answer with its thoughts, its state and its quiet line of numbers.
import { html, memo, useLayoutEffect, useRef, useState } from "./lib.js";
import { errorWords } from "./api.js";
import { Blocks } from "./blocks.js";
import { choose, goOn, judge, regenerate, send } from "./ask.js";
import { Calls } from "./calls.js";
import { grow } from "./composer.js";
import { FileChips } from "./files.js";
import { languageOf, money, number, seconds, t } from "./i18n.js";
import { isComposing, sends } from "./keys.js";
import { able } from "./models.js";
import { CopyButton, IconButton, Notice, Speak } from "./parts.js";
import { changed, isRunning, openDialog, state } from "./store.js";
import { Reasoning, Waiting, modelName } from "./waiting.js";

/** @typedef {import("./store.js").Message} Message */

/** ‹ 2/3 › between the versions of a message. @param {{message: Message, versions: Message[], busy: boolean}} props */
function Versions({ message, versions, busy }) {
  if (versions.length < 2) return null;
  const at = versions.indexOf(message);
  const last = versions.length - 1;
  const go = (/** @type {number} */ index) => () => choose(versions[index]);
  const [previous, next] = [t("action.previousVersion"), t("action.nextVersion")];
  return html`<span class="versions" role="group" aria-label=${t("answer.versions")}>
    <${IconButton} icon="chevron-left" name=${previous} disabled=${at === 0 || busy} onClick=${go(at - 1)} />
    <span>${number(at + 1)}/${number(versions.length)}</span>
    <${IconButton} icon="chevron-right" name=${next} disabled=${at === last || busy} onClick=${go(at + 1)} />
  </span>`;
}

/** @param {{message: Message}} props */
function EditQuestion({ message }) {
  const [text, setText] = useState(message.content);
  const node = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  useLayoutEffect(() => grow(node.current, 16), [text]);
  useLayoutEffect(() => {
    node.current?.focus();
    node.current?.setSelectionRange(text.length, text.length);
  }, []);
  const cancel = () => {
    state.editing = null;
    changed();
    document.getElementById("question")?.focus();
  };
  const files = message.files ?? [];
  const submit = () => send(text, message.parent_id, files);
  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    if (sends(event)) submit();
    else if (event.key === "Escape" && !isComposing(event)) cancel();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  /** @param {any} event */
  const onInput = (event) => setText(event.target.value);
  return html`<div class="edit">
    <${FileChips} files=${files} />
    <textarea ref=${node} rows="1" value=${text} aria-label=${t("action.edit")} onKeyDown=${onKeyDown} onInput=${onInput}></textarea>
    <div class="buttons">
      <button type="button" class="button" onClick=${cancel}>${t("action.cancel")}</button>
      <button type="button" class="button primary" disabled=${!text.trim() && !files.length} onClick=${submit}>${t("action.send")}</button>
    </div>
  </div>`;
}

/** @param {{message: Message, versions: Message[], busy: boolean, editing: boolean}} props */
function Question({ message, versions, busy, editing }) {
  if (editing) return html`<${EditQuestion} message=${message} />`;
  const edit = () => {
    state.editing = message.id;
    changed();
  };
  return html`<div class="question">
    <${FileChips} files=${message.files ?? []} />
    ${message.content && html`<div class="bubble" lang=${languageOf(message.content)}>${message.content}</div>`}
    <div class="actions">
      <${Versions} message=${message} versions=${versions} busy=${busy} />
      <${CopyButton} text=${() => message.content} name=${t("action.copy")} />
      <${IconButton} icon="pencil" name=${t("action.edit")} disabled=${busy} onClick=${edit} />
    </div>
  </div>`;
}

/**
 * Tokens per second, tokens, seconds to the first, cost: what is known of them.
 * @param {Message} message @returns {string[]}
 */
export function numbersOf(message) {
  const { usage, timings, cost } = message;
  const parts = [];
  const count = usage?.completion_tokens;
  if (count > 1 && timings?.decode_seconds > 0) {
    const speed = (count - 1) / timings.decode_seconds; // the first token belongs to the reading of the prompt
    parts.push(t("unit.speed", { n: number(speed, speed < 100 ? 1 : 0) }));
  }
  if (count !== undefined) parts.push(t("unit.tokens", { count }));
  const first = timings?.first_token_seconds;
  if (first !== undefined) parts.push(t("unit.toFirst", { time: seconds(first) }));
  if (typeof cost?.usd === "number") parts.push(money(cost.usd, cost.currency));
  return parts;
}

/** Why an answer ended where it did, if that needs saying. @param {{message: Message, busy: boolean}} props */
function Ending({ message, busy }) {
  if (message.status === "error") {
    const { message: words, hint } = errorWords(message.error);
    const again = () => regenerate(message);
    const told = words || t("error.unknown");
    return html`<${Notice} error words=${told} hint=${hint} action=${t("action.retry")} onAction=${again} disabled=${busy} />`;
  }
  const more = () => goOn(message);
  if (message.status === "length") {
    const told = t(message.content ? "answer.outOfRoom" : "answer.outOfRoomThinking");
    const action = message.tool_calls || !able(message, "continue") ? undefined : t("action.goOn");
    return html`<${Notice} words=${told} action=${action} onAction=${more} disabled=${busy} />`;
  }
  if (message.status === "stopped") {
    return html`<p class="ending">${t("answer.stopped")}
      ${!message.tool_calls && able(message, "continue") && html`<button type="button" class="link" disabled=${busy} onClick=${more}>${t("action.goOn")}</button>`}</p>`;
  }
  if (message.status === "done" && !message.content.trim() && !message.tool_calls) return html`<p class="ending">${t("answer.empty")}</p>`;
  return null;
}

/** What can be done with an answer, and its numbers. @param {{message: Message, versions: Message[], busy: boolean}} props */
function Actions({ message, versions, busy }) {
  const numbers = numbersOf(message).join(" · ");
  const show = (/** @type {string} */ kind) => () => openDialog(kind, { message });
  const thumb = (/** @type {1 | -1} */ value) => () => judge(message, value);
  const again = () => regenerate(message);
  const [good, bad, better] = [t("action.good"), t("action.bad"), t("action.improve")];
  const judging = html`
    <${IconButton} icon="thumbs-up" name=${good} pressed=${message.feedback === 1} onClick=${thumb(1)} />
    <${IconButton} icon="thumbs-down" name=${bad} pressed=${message.feedback === -1} onClick=${thumb(-1)} />
    <${IconButton} icon="file-pen-line" name=${better} pressed=${Boolean(message.edited)} onClick=${show("improve")} />
    ${able(message, "tokens") && html`<${IconButton} icon="scan-text" name=${t("tokens.open")} onClick=${show("tokens")} />`}
    <${Speak} message=${message} />
  `;
  return html`<footer class="actions">
    <${Versions} message=${message} versions=${versions} busy=${busy} />
    ${message.content && html`<${CopyButton} text=${() => message.content} name=${t("action.copy")} />`}
    ${
      message.status !== "error" &&
      html`<${IconButton} icon="refresh-cw" name=${t("action.regenerate")} disabled=${busy} onClick=${again} />`
    }
    ${message.content && judging}
    ${
      numbers &&
      html`<button type="button" class="numbers" title=${t("receipt.open")} onClick=${show("receipt")}>${numbers}</button>`
    }
  </footer>`;
}

/** @param {{message: Message, versions: Message[], busy: boolean, paired: boolean, onToggle: () => void}} props */
function Answer({ message, versions, busy, paired, onToggle }) {
  const live = state.live.get(message.id);
  const running = isRunning(message);
  return html`<article class="answer" aria-label=${t("answer.of", { name: modelName(message) })} aria-busy=${running}>
    <${Reasoning} message=${message} live=${live} onToggle=${onToggle} />
    ${message.content && html`<${Blocks} text=${message.content} finished=${!running} />`}
    ${message.tool_calls?.length && html`<${Calls} message=${message} busy=${busy} running=${running} />`}
    <${Waiting} message=${message} live=${live} />
    <${Ending} message=${message} busy=${busy} />
    ${!running && html`<${Actions} message=${message} versions=${paired ? [] : versions} busy=${busy || paired} />`}
  </article>`;
}

/** A message far from what is in view: its text only, so that the browser's own search finds it. @param {Message} message */
function far({ role, content }) {
  if (role === "user") return html`<div class="question"><div class="bubble">${content}</div></div>`;
  return html`<article class="answer"><div class="markdown far">${content}</div></article>`;
}

/** Drawn again only when one of the scalar props changes: `revision`, `tick` and `count` stand for the objects. */
export const MessageView = memo(
  (/** @type {any} */ props) => {
    if (!props.near) return far(props.message);
    return props.message.role === "user" ? html`<${Question} ...${props} />` : html`<${Answer} ...${props} />`;
  },
  ["versions", "onToggle"],
);
