// @ts-check
// One message: a question in its bubble, or an answer with its thoughts, its state and its quiet line of numbers.
import { html, Icon, memo, useLayoutEffect, useRef, useState } from "./lib.js";
import { errorWords } from "./api.js";
import { Blocks, CopyButton } from "./blocks.js";
import { choose, giveFeedback, regenerate, send } from "./chat.js";
import { grow } from "./composer.js";
import { languageOf, money, number, seconds, t } from "./i18n.js";
import { isComposing, sends } from "./keys.js";
import { changed, isRunning, state } from "./store.js";
import { Reasoning, Waiting } from "./waiting.js";

/** @typedef {import("./store.js").Message} Message */

/** @param {{name: string, icon: string, onClick: () => void, pressed?: boolean, disabled?: boolean}} props */
function Action({ name, icon, onClick, pressed, disabled }) {
  return html`<button type="button" class="quiet" aria-label=${name} title=${name} aria-pressed=${pressed} disabled=${disabled} onClick=${onClick}><${Icon} name=${icon} /></button>`;
}

/** ‹ 2/3 › between the versions of a message. @param {{message: Message, versions: Message[], busy: boolean}} props */
function Versions({ message, versions, busy }) {
  if (versions.length < 2) return null;
  const at = versions.indexOf(message);
  return html`<span class="versions" role="group" aria-label=${t("answer.versions")}>
    <${Action} icon="chevron-left" name=${t("action.previousVersion")} disabled=${at === 0 || busy} onClick=${() => choose(versions[at - 1])} />
    <span>${number(at + 1)}/${number(versions.length)}</span>
    <${Action} icon="chevron-right" name=${t("action.nextVersion")} disabled=${at === versions.length - 1 || busy} onClick=${() => choose(versions[at + 1])} />
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
  const submit = () => send(text, message.parent_id);
  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    if (sends(event)) submit();
    else if (event.key === "Escape" && !isComposing(event)) cancel();
    else return;
    event.preventDefault();
    event.stopPropagation();
  };
  return html`<div class="edit"><textarea ref=${node} rows="1" value=${text} aria-label=${t("action.edit")} onKeyDown=${onKeyDown}
      onInput=${(/** @type {any} */ event) => setText(event.target.value)}></textarea>
    <div class="buttons"><button type="button" class="button" onClick=${cancel}>${t("action.cancel")}</button>
      <button type="button" class="button primary" disabled=${!text.trim()} onClick=${submit}>${t("action.send")}</button></div></div>`;
}

/** @param {{message: Message, versions: Message[], busy: boolean, editing: boolean}} props */
function Question({ message, versions, busy, editing }) {
  if (editing) return html`<${EditQuestion} message=${message} />`;
  const edit = () => {
    state.editing = message.id;
    changed();
  };
  return html`<div class="question"><div class="bubble" lang=${languageOf(message.content)}>${message.content}</div>
    <div class="actions"><${Versions} message=${message} versions=${versions} busy=${busy} />
      <${CopyButton} text=${() => message.content} name=${t("action.copy")} />
      <${Action} icon="pencil" name=${t("action.edit")} disabled=${busy} onClick=${edit} /></div></div>`;
}

/** Tokens per second, tokens, seconds to the first, cost: what is known of them. @param {Message} message @returns {string[]} */
export function numbersOf(message) {
  const { usage, timings, cost } = message;
  const parts = [];
  const count = usage?.completion_tokens;
  if (count > 1 && timings?.decode_seconds > 0) {
    const speed = (count - 1) / timings.decode_seconds; // the first token belongs to the reading of the prompt
    parts.push(t("unit.speed", { n: number(speed, speed < 100 ? 1 : 0) }));
  }
  if (count !== undefined) parts.push(t("unit.tokens", { count }));
  if (timings?.first_token_seconds !== undefined) parts.push(t("unit.toFirst", { time: seconds(timings.first_token_seconds) }));
  if (cost?.usd !== undefined) parts.push(money(cost.usd, cost.currency));
  return parts;
}

/** Why an answer ended where it did, if that needs saying. @param {{message: Message, busy: boolean}} props */
function Ending({ message, busy }) {
  if (message.status === "error") {
    const { message: words, hint } = errorWords(message.error);
    return html`<div class="notice error" role="alert"><${Icon} name="circle-alert" /><div>${words || t("error.unknown")}${hint && html`<p>${hint}</p>`}</div>
      <button type="button" class="button" disabled=${busy} onClick=${() => regenerate(message)}>${t("action.retry")}</button></div>`;
  }
  if (message.status === "length") {
    return html`<div class="notice"><${Icon} name="circle-alert" /><div>${t(message.content ? "answer.outOfRoom" : "answer.outOfRoomThinking")}</div>
      <button type="button" class="button" disabled=${busy} onClick=${() => send(t("answer.goOn"), message.id)}>${t("action.goOn")}</button></div>`;
  }
  if (message.status === "stopped") return html`<p class="ending">${t("answer.stopped")}</p>`;
  if (message.status === "done" && !message.content.trim()) return html`<p class="ending">${t("answer.empty")}</p>`;
  return null;
}

/** @param {{message: Message, versions: Message[], busy: boolean, onToggle: () => void}} props */
function Answer({ message, versions, busy, onToggle }) {
  const live = state.live.get(message.id);
  const running = isRunning(message);
  const numbers = numbersOf(message);
  /** @param {"receipt" | "improve"} kind */
  const show = (kind) => () => {
    state.dialog = { kind, message };
    changed();
  };
  /** @param {1 | -1} value */
  const thumb = (value) => () => giveFeedback(message, message.feedback === value ? 0 : value);
  return html`<article class="answer" aria-label=${t("answer.of", { name: state.models.find(({ id }) => id === message.model)?.name ?? "Shoal" })} aria-busy=${running}>
    <${Reasoning} message=${message} live=${live} onToggle=${onToggle} />
    ${message.content && html`<${Blocks} text=${message.content} finished=${!running} />`}
    <${Waiting} message=${message} live=${live} />
    <${Ending} message=${message} busy=${busy} />
    ${!running && html`<footer class="actions"><${Versions} message=${message} versions=${versions} busy=${busy} />
      ${message.content && html`<${CopyButton} text=${() => message.content} name=${t("action.copy")} />`}
      ${message.status !== "error" && html`<${Action} icon="refresh-cw" name=${t("action.regenerate")} disabled=${busy} onClick=${() => regenerate(message)} />`}
      ${message.content && html`
        <${Action} icon="thumbs-up" name=${t("action.good")} pressed=${message.feedback === 1} onClick=${thumb(1)} />
        <${Action} icon="thumbs-down" name=${t("action.bad")} pressed=${message.feedback === -1} onClick=${thumb(-1)} />
        <${Action} icon="file-pen-line" name=${t("action.improve")} pressed=${Boolean(message.edited)} onClick=${show("improve")} />`}
      ${numbers.length > 0 && html`<button type="button" class="numbers" title=${t("receipt.open")} onClick=${show("receipt")}>${numbers.join(" · ")}</button>`}
    </footer>`}
  </article>`;
}

/** Drawn again only when the message, what runs, or its neighbours change (`revision`, `tick` and `count` stand for them). */
export const MessageView = memo((/** @type {any} */ props) =>
  props.message.role === "user" ? html`<${Question} ...${props} />` : html`<${Answer} ...${props} />`, ["versions", "onToggle"]);
