// @ts-check
// Where people write: text with a draft per chat, the model, the thinking switch, send and stop.
import { html, Icon, useEffect, useLayoutEffect, useRef, useState } from "./lib.js";
import { onRestoreDraft, send, stop } from "./chat.js";
import { percent, t } from "./i18n.js";
import { isComposing, sends } from "./keys.js";
import { IconButton } from "./parts.js";
import { ModelPicker } from "./picker.js";
import { changed, model, runningMessage, state } from "./store.js";
import { pathTo } from "./tree.js";

const LINES = 8;
const draftKey = () => `draft:${state.chat?.id ?? "new"}`;

/** Let a textarea grow with its text. @param {HTMLTextAreaElement | null} node @param {number} lines at most */
export function grow(node, lines) {
  if (!node) return;
  node.style.height = "auto";
  const line = parseFloat(getComputedStyle(node).lineHeight);
  node.style.height = `${Math.min(node.scrollHeight, Math.ceil(line * lines) + 4)}px`;
}

/** How full the model's context is, as a ring and in words. @param {{used: number, total: number}} props */
function ContextRing({ used, total }) {
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

function contextUse() {
  const path = pathTo(state.chat?.messages ?? new Map(), state.chat?.leaf ?? null);
  const usage = path.findLast((message) => message.usage)?.usage;
  const total = model()?.context ?? 0;
  return usage && total ? { used: (usage.prompt_tokens ?? 0) + (usage.completion_tokens ?? 0), total } : null;
}

export function Composer() {
  const node = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const key = draftKey();
  const [draft, setDraft] = useState({ key, text: localStorage.getItem(key) ?? "" });
  const text = draft.key === key ? draft.text : (localStorage.getItem(key) ?? "");
  const running = runningMessage();
  const thinks = (model()?.thinking ?? "none") !== "none";
  const context = contextUse();

  /** @param {string} next */
  const write = (next) => {
    const now = draftKey();
    if (next) localStorage.setItem(now, next);
    else localStorage.removeItem(now);
    setDraft({ key: now, text: next });
  };
  const submit = () => {
    if (running || !text.trim()) return;
    const question = text;
    write("");
    send(question);
  };
  useEffect(() => onRestoreDraft(write), []);
  useLayoutEffect(() => grow(node.current, LINES), [text, key]);
  useEffect(() => {
    const elsewhere = document.activeElement?.matches("input, textarea, dialog *"); // a reader who writes is not moved
    if (matchMedia("(hover: hover)").matches && !elsewhere) node.current?.focus();
  }, [key]);

  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    if (sends(event)) {
      event.preventDefault();
      submit();
    } else if (event.key === "ArrowUp" && !text && !isComposing(event)) {
      const path = pathTo(state.chat?.messages ?? new Map(), state.chat?.leaf ?? null);
      const last = path.findLast(({ role }) => role === "user");
      if (!last || running) return;
      event.preventDefault();
      state.editing = last.id;
      changed();
    }
  };
  const toggleThinking = () => {
    state.thinking = !state.thinking;
    localStorage.setItem("thinking", state.thinking ? "high" : "off");
    changed();
  };
  /** @param {any} event */
  const onInput = (event) => write(event.target.value);
  /** @param {Event} event */
  const onSubmit = (event) => {
    event.preventDefault();
    submit();
  };
  const think = html`<button
    type="button"
    class="chip"
    aria-pressed=${state.thinking}
    title=${t("composer.thinkHint")}
    onClick=${toggleThinking}
  >
    <${Icon} name="brain" /><span>${t("composer.think")}</span>
  </button>`;
  const round = running
    ? html`<${IconButton} kind="round stop" icon="square" name=${t("action.stop")} keys="Esc" onClick=${stop} />`
    : html`<${IconButton} kind="round" type="submit" icon="arrow-up" name=${t("action.send")} disabled=${!text.trim()} />`;
  return html`<form class="composer" onSubmit=${onSubmit}>
    <textarea
      ref=${node}
      id="question"
      rows="1"
      value=${text}
      placeholder=${t("composer.placeholder")}
      aria-label=${t("composer.placeholder")}
      enterkeyhint="enter"
      autocomplete="off"
      onInput=${onInput}
      onKeyDown=${onKeyDown}
    ></textarea>
    <div class="tools">
      <${ModelPicker} />${thinks && think}<span class="space"></span>
      ${context && html`<${ContextRing} ...${context} />`} ${round}
    </div>
  </form>`;
}
