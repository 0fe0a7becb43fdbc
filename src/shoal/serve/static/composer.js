// @ts-check
// Where people write: text and files with a draft per chat, the choices below, send and stop.
import { html, useEffect, useLayoutEffect, useRef, useState } from "./lib.js";
import { onRestoreDraft, send, stop } from "./ask.js";
import { FileChips, LONG_PASTE, addFiles, addPaste, attach, attached } from "./files.js";
import { AddMenu, ContextRing, SettingsChip, contextUse, pick, useDrop } from "./extras.js";
import { t } from "./i18n.js";
import { isComposing, sends } from "./keys.js";
import { IconButton } from "./parts.js";
import { Beside, EffortPicker, ModelPicker } from "./picker.js";
import { PromptList, promptsFor } from "./prompts.js";
import { changed, draftKey, openDialog, runningMessage, showToast, state } from "./store.js";
import { pathTo } from "./tree.js";

const LINES = 8;

/** Let a textarea grow with its text. @param {HTMLTextAreaElement | null} node @param {number} lines at most */
export function grow(node, lines) {
  if (!node) return;
  node.style.height = "auto";
  const line = parseFloat(getComputedStyle(node).lineHeight);
  node.style.height = `${Math.min(node.scrollHeight, Math.ceil(line * lines) + 24)}px`;
}

export function Composer() {
  const node = useRef(/** @type {HTMLTextAreaElement | null} */ (null));
  const key = draftKey();
  const [draft, setDraft] = useState({ key, text: localStorage.getItem(key) ?? "" });
  const [at, setAt] = useState(0); // in the list of prompts
  const text = draft.key === key ? draft.text : (localStorage.getItem(key) ?? "");
  const files = attached(key);
  const running = runningMessage();
  const context = contextUse();
  const prompts = promptsFor(text);
  const over = useDrop((dropped) => addFiles(draftKey(), dropped));

  /** @param {string} next */
  const write = (next) => {
    const now = draftKey();
    if (next && !state.temporary) localStorage.setItem(now, next);
    else localStorage.removeItem(now);
    setDraft({ key: now, text: next });
    setAt(0);
  };
  const submit = () => {
    if (running || !(text.trim() || files.length)) return;
    write("");
    attach(key, []);
    send(text, undefined, files);
  };
  /** @param {import("./store.js").Entry} [prompt] its first {{blank}} is selected, to be written over */
  const insert = (prompt) => {
    if (!prompt) return openDialog("library", { entry: "prompt" });
    write(prompt.text);
    requestAnimationFrame(() => {
      const blank = /\{\{.*?\}\}/.exec(prompt.text);
      node.current?.focus();
      node.current?.setSelectionRange(blank?.index ?? prompt.text.length, blank ? blank.index + blank[0].length : prompt.text.length);
    });
  };
  useEffect(
    () =>
      onRestoreDraft((words, hung) => {
        write(words);
        attach(draftKey(), hung);
      }),
    [],
  );
  useLayoutEffect(() => grow(node.current, LINES), [text, key]);
  useEffect(() => {
    const elsewhere = document.activeElement?.matches("input, textarea, dialog *"); // a reader who writes is not moved
    if (matchMedia("(hover: hover)").matches && !elsewhere) node.current?.focus();
  }, [key]);

  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    if (isComposing(event)) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (prompts && (step || event.key === "Tab" || event.key === "Enter" || event.key === "Escape")) {
      event.preventDefault();
      event.stopPropagation();
      if (step) setAt((at + step + prompts.length + 1) % (prompts.length + 1));
      else if (event.key === "Escape") write("");
      else insert(prompts[at]);
    } else if (sends(event)) {
      event.preventDefault();
      submit();
    } else if (event.key === "ArrowUp" && !text) {
      const path = pathTo(state.chat?.messages ?? new Map(), state.chat?.leaf ?? null);
      const last = path.findLast(({ role }) => role === "user");
      if (!last || running) return;
      event.preventDefault();
      state.editing = last.id;
      changed();
    }
  };
  /** @param {ClipboardEvent} event */
  const onPaste = (event) => {
    const pasted = event.clipboardData;
    const words = pasted?.getData("text/plain") ?? "";
    if (pasted?.files.length && !words) {
      event.preventDefault();
      addFiles(key, pasted.files);
    } else if (words.length >= LONG_PASTE) {
      event.preventDefault();
      addPaste(key, words);
      showToast(t("files.pasted"), t("files.pasteAsText"), () => {
        state.toast = null;
        attach(key, attached(key).slice(0, -1));
        write(text + words);
      });
    }
  };
  /** @param {any} event */
  const onInput = (event) => write(event.target.value);
  /** @param {Event} event */
  const onSubmit = (event) => {
    event.preventDefault();
    submit();
  };
  const empty = !(text.trim() || files.length);
  const round = running
    ? html`<${IconButton} kind="round stop" icon="square" name=${t("action.stop")} keys="Esc" onClick=${stop} />`
    : html`<${IconButton} kind="round" type="submit" icon="arrow-up" name=${t("action.send")} disabled=${empty} />`;
  const placeholder = t(state.temporary ? "composer.temporary" : "composer.placeholder");
  return html`<form class=${over ? "composer over" : "composer"} onSubmit=${onSubmit}>
    ${prompts && html`<${PromptList} prompts=${prompts} at=${at} onChoose=${insert} />`}
    <${FileChips} files=${files} onRemove=${(/** @type {number} */ index) => attach(key, files.toSpliced(index, 1))} />
    <textarea
      ref=${node}
      id="question"
      rows="1"
      value=${text}
      placeholder=${over ? t("files.drop") : placeholder}
      aria-label=${placeholder}
      aria-controls=${prompts ? "prompts" : undefined}
      aria-activedescendant=${prompts ? `prompt-${at}` : undefined}
      enterkeyhint="enter"
      autocomplete="off"
      onInput=${onInput}
      onKeyDown=${onKeyDown}
      onPaste=${onPaste}
    ></textarea>
    <div class="tools">
      <${AddMenu} onPick=${(/** @type {boolean} */ folder) => pick(folder, (chosen) => addFiles(key, chosen))} />
      <${ModelPicker} /><${Beside} /><${EffortPicker} /><${SettingsChip} /><span class="space"></span>
      ${context && html`<${ContextRing} ...${context} />`} ${round}
    </div>
  </form>`;
}
