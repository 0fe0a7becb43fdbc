// @ts-check
// What an answer is doing before and while it is written, always with numbers; and the thoughts before it.
import { html, Icon, useState } from "./lib.js";
import { answerNow } from "./ask.js";
import { Blocks } from "./blocks.js";
import { bytes, number, percent, seconds, t } from "./i18n.js";
import { able, modelOf } from "./models.js";
import { Progress } from "./parts.js";
import { isRunning } from "./store.js";

/** @typedef {import("./store.js").Message} Message @typedef {import("./store.js").Live} Live */

/** @param {Live} live how far the prompt has been read */
function promptWords(live) {
  const { processed = 0, total = 0, cached = 0, seconds: spent = 0 } = live;
  const speed = spent > 0 ? Math.max(0, processed - cached) / spent : 0;
  const parts = [t("wait.prompt", { percent: percent(total ? processed / total : 0), done: processed, total })];
  if (speed > 0) parts.push(t("unit.speed", { n: number(speed, speed < 10 ? 1 : 0) }));
  if (speed > 0 && total > processed) parts.push(t("wait.left", { time: seconds((total - processed) / speed) }));
  if (cached > 0) parts.push(t("wait.cached", { count: cached }));
  return parts.join(" · ");
}

/** @param {{message: Message, live: Live | undefined}} props */
export function Waiting({ message, live }) {
  if (!isRunning(message) || !live || live.state === "thinking") return null;
  const spent = seconds(Math.floor((Date.now() - live.since) / 1_000));
  if (live.stopping) return html`<p class="waiting"><i class="pulse"></i>${t("wait.stopping")}</p>`;
  if (live.state === "loading") {
    const { bytes_done: done = 0, bytes_total: total = 0 } = live;
    const words = t("wait.loading", { name: modelName(message), done: bytes(done), total: bytes(total) });
    return html`<${Progress} kind="waiting loading" words=${words} done=${done} total=${total} />`;
  }
  if (live.state === "prompt") {
    const { processed, total } = live;
    return html`<${Progress} kind="waiting loading" words=${promptWords(live)} done=${processed} total=${total} />`;
  }
  const words =
    live.state === "writing"
      ? t("wait.writing", { time: spent })
      : live.position
        ? t("wait.queued", { n: live.position, time: spent })
        : t("wait.starting", { time: spent });
  return html`<p class="waiting"><i class="pulse"></i>${words}</p>`;
}

/** @param {Message} message */
export function modelName(message) {
  return modelOf(message)?.name ?? message.model ?? "";
}

/** A button for readers who have waited enough. @param {{message: Message, live: Live | undefined}} props */
function AnswerNow({ message, live }) {
  const words = t(live?.hurried ? "think.hurried" : "think.answerNow");
  const click = () => answerNow(message);
  return html`<button type="button" class="quiet hurry" disabled=${live?.hurried} title=${t("think.answerNowHint")} onClick=${click}>
    <${Icon} name="skip-forward" /><span>${words}</span>
  </button>`;
}

/**
 * The thoughts: the last lines while they are written, folded away when the answer begins, unless the reader chose.
 * @param {{message: Message, live: Live | undefined, onToggle: () => void}} props
 */
export function Reasoning({ message, live, onToggle }) {
  const key = `thoughts:${message.id}`;
  const [choice, setChoice] = useState(sessionStorage.getItem(key));
  if (!message.reasoning && live?.state !== "thinking") return null;
  const thinking = live?.state === "thinking" && isRunning(message);
  const view = choice ?? (thinking ? "peek" : "folded");
  const toggle = () => {
    const next = view === "full" ? "folded" : "full";
    sessionStorage.setItem(key, next);
    onToggle();
    setChoice(next);
  };
  const spent = message.thinking_seconds ?? 0;
  const parts = [];
  if (thinking)
    parts.push(
      t("think.now", { time: seconds(Math.floor((Date.now() - (live?.thinkingSince ?? Date.now())) / 1_000)) }),
    );
  else if (message.status === "stopped" && !message.content) parts.push(t("think.stopped"));
  else if (!spent) parts.push(t("think.thoughts"));
  else parts.push(spent < 2 ? t("think.moment") : t("think.done", { time: seconds(spent) }));
  if (!thinking && message.reasoning_tokens) parts.push(t("unit.tokens", { count: message.reasoning_tokens }));
  return html`<section class=${`thoughts ${view}`}>
    <button type="button" class=${thinking ? "shimmer" : ""} aria-expanded=${view === "full"} onClick=${toggle}>
      <${Icon} name="brain" /><span>${parts.join(" · ")}</span><${Icon} name="chevron-down" /></button>
    ${thinking && able(message, "answer_now") && html`<${AnswerNow} message=${message} live=${live} />`}
    ${
      view !== "folded" &&
      html`<div class="inside"><div><${Blocks} text=${message.reasoning} finished=${!thinking} /></div></div>`
    }
  </section>`;
}
