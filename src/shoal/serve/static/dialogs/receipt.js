// @ts-check
// The receipt of an answer, and that of a whole chat: the sum of its answers, those on other branches included.
import { html } from "../lib.js";
import { Frame } from "../dialogs.js";
import { money, number, seconds, t } from "../i18n.js";
import { state } from "../store.js";
import { modelName } from "../waiting.js";

/** @typedef {import("../store.js").Message} Message */

/** @param {number | null | undefined} joules @param {string | undefined} source */
function energy(joules, source) {
  if (source === "unknown") return t("receipt.unknown");
  if (joules === undefined || joules === null) return undefined;
  const digits = joules < 10 ? 2 : 0;
  return t(source === "measured" ? "receipt.measured" : "receipt.estimated", { n: number(joules, digits) });
}

/** @param {{usd?: number | null, currency?: string}} cost */
function price({ usd, currency }) {
  return usd === undefined || usd === null ? undefined : money(usd, currency);
}

/** Names with values; what has none is left out. @param {{rows: any[][]}} props */
function Rows({ rows }) {
  const known = rows.filter(([, value]) => value);
  return html`<dl class="receipt">${known.map(([name, value]) => html`<div><dt>${t(String(name))}</dt><dd>${value}</dd></div>`)}</dl>`;
}

/** Everything that was measured about one answer. @param {{message: Message}} props */
export function Receipt({ message }) {
  const usage = message.usage ?? {};
  const timings = message.timings ?? {};
  const cost = message.cost ?? {};
  const count = (/** @type {any} */ n) => (n === undefined || n === null ? undefined : number(n));
  const time = (/** @type {any} */ n) =>
    n === undefined || n === null ? undefined : t("unit.seconds", { n: number(n, 2) });
  const speed = (/** @type {number} */ tokens, /** @type {number} */ spent) =>
    tokens > 0 && spent > 0 ? t("unit.speed", { n: number(tokens / spent, 1) }) : undefined;
  const rows = [
    ["receipt.model", modelName(message)],
    ["receipt.prompt", count(usage.prompt_tokens)],
    ["receipt.cached", usage.cached_tokens ? count(usage.cached_tokens) : undefined],
    ["receipt.written", count(usage.completion_tokens)],
    ["receipt.thoughts", message.reasoning_tokens ? count(message.reasoning_tokens) : undefined],
    ["receipt.queue", time(timings.queue_seconds)],
    ["receipt.reading", time(timings.prompt_seconds)],
    ["receipt.first", time(timings.first_token_seconds)],
    ["receipt.writing", time(timings.decode_seconds)],
    ["receipt.readSpeed", speed(usage.prompt_tokens - (usage.cached_tokens ?? 0), timings.prompt_seconds)],
    ["receipt.writeSpeed", speed(usage.completion_tokens - 1, timings.decode_seconds)],
    ["receipt.flops", cost.flops ? t("receipt.gflop", { n: number(cost.flops / 1e9, 1) }) : undefined],
    ["receipt.energy", energy(cost.joules, cost.energy_source)],
    ["receipt.cost", price(cost)],
    ["receipt.device", cost.device],
    ["receipt.priceDate", cost.price_date],
  ];
  const below = `cost#receipts=${encodeURIComponent(message.model ?? "")}`;
  return html`<${Frame} title=${t("receipt.title")}><${Rows} rows=${rows} />
    <p><a href=${below} target="_blank" rel="noopener">${t("receipt.chain")}</a></p><//>`;
}


export function ChatReceipt() {
  const answers = [...(state.chat?.messages.values() ?? [])].filter(({ usage }) => usage);
  const sum = (/** @type {(message: Message) => number | null | undefined} */ of) =>
    answers.reduce((total, message) => total + (of(message) ?? 0), 0);
  const count = (/** @type {number} */ n) => (n ? number(n) : undefined);
  const spent = sum(({ timings }) => (timings?.prompt_seconds ?? 0) + (timings?.decode_seconds ?? 0));
  const flops = sum(({ cost }) => cost?.flops);
  const first = answers[0]?.cost ?? {};
  const rows = [
    ["receipt.answers", count(answers.length)],
    ["receipt.model", [...new Set(answers.map(modelName))].join(", ")],
    ["receipt.prompt", count(sum(({ usage }) => usage.prompt_tokens))],
    ["receipt.cached", count(sum(({ usage }) => usage.cached_tokens))],
    ["receipt.written", count(sum(({ usage }) => usage.completion_tokens))],
    ["receipt.thoughts", count(sum((message) => message.reasoning_tokens))],
    ["receipt.work", spent ? seconds(spent) : undefined],
    ["receipt.flops", flops ? t("receipt.gflop", { n: number(flops / 1e9, 1) }) : undefined],
    ["receipt.energy", answers.some(({ cost }) => cost?.joules) ? energy(sum(({ cost }) => cost?.joules), first.energy_source) : undefined],
    ["receipt.cost", answers.some(({ cost }) => cost?.usd) ? money(sum(({ cost }) => cost?.usd), first.currency) : undefined],
    ["receipt.device", [...new Set(answers.map(({ cost }) => cost?.device).filter(Boolean))].join(", ")],
  ];
  return html`<${Frame} title=${t("receipt.chat")}>
    ${answers.length ? html`<${Rows} rows=${rows} />` : html`<p>${t("receipt.none")}</p>`}
  <//>`;
}
