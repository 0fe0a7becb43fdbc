// @ts-check
// The small things many views are made of: buttons with a name, notices, bars.
import { html, Icon, useState } from "./lib.js";
import { errorWords } from "./api.js";
import { t } from "./i18n.js";

/** What the server said of a failure, in words for people. @param {unknown} error */
export const said = (error) => errorWords(error).message || t("error.unreachable");

/**
 * A button that shows only an icon, unless `label`; its name is for the tooltip and the screen reader.
 * @param {{icon: string, name: string, keys?: string, kind?: string, type?: string, onClick?: () => void,
 *   pressed?: boolean, disabled?: boolean, label?: boolean}} props
 */
export function IconButton({ icon, name, keys, kind = "quiet", type = "button", onClick, pressed, disabled, label }) {
  const title = keys ? `${name} (${keys})` : name;
  return html`<button
    type=${type}
    class=${kind}
    aria-label=${name}
    title=${title}
    aria-pressed=${pressed}
    disabled=${disabled}
    onClick=${onClick}
  >
    <${Icon} name=${icon} />${label && html`<span>${name}</span>`}
  </button>`;
}

/** A button that copies, and says so. @param {{text: () => string, name: string, label?: boolean}} props */
export function CopyButton({ text, name, label = false }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text());
    setCopied(true);
    setTimeout(() => setCopied(false), 1_500);
  };
  const shown = copied ? t("action.copied") : name;
  return html`<button type="button" class="quiet" aria-label=${shown} title=${shown} onClick=${copy}>
    <${Icon} name=${copied ? "check" : "copy"} />${label && html`<span>${shown}</span>`}
  </button>`;
}

let speaking = ""; // the message that is read aloud

/** Reads an answer aloud, where the browser can. @param {{message: import("./store.js").Message}} props */
export function Speak({ message }) {
  const [on, setOn] = useState(speaking === message.id);
  if (!("speechSynthesis" in globalThis)) return null;
  const toggle = async () => {
    speechSynthesis.cancel();
    const start = speaking !== message.id;
    speaking = start ? message.id : "";
    setOn(start);
    if (!start) return;
    const { speak } = await import("./speak.js");
    speak(message.content, () => {
      if (speaking === message.id) speaking = "";
      setOn(false);
    });
  };
  const name = t(on ? "action.speakStop" : "action.speak");
  return html`<${IconButton} icon="volume-2" name=${name} pressed=${on} onClick=${toggle} />`;
}

/**
 * Something the reader has to know, in the server's own words where it has any, and what can be done about it.
 * @param {{words: string, hint?: string, error?: boolean, action?: string, onAction?: () => void, disabled?: boolean}} props
 */
export function Notice({ words, hint, error = false, action, onAction, disabled = false }) {
  return html`<div class=${error ? "notice error" : "notice"} role=${error ? "alert" : undefined}>
    <${Icon} name="circle-alert" />
    <div>${words}${hint && html`<p>${hint}</p>`}</div>
    ${action && html`<button type="button" class="button" disabled=${disabled} onClick=${onAction}>${action}</button>`}
  </div>`;
}

/** A bar with its numbers in words. @param {{words: string, done?: number, total?: number, kind?: string}} props */
export function Progress({ words, done = 0, total = 0, kind = "loading" }) {
  return html`<div class=${kind}>
    <span>${words}</span><progress max=${total || 1} value=${done} aria-label=${words}></progress>
  </div>`;
}
