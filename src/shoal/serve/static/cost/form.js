// @ts-check
// The calculator's form: what is asked, with which bounds. It works nothing out.
import { compact, number, t } from "../i18n.js";
import { html } from "../lib.js";

const KINDS = ["pretrain", "extend", "sft", "lora", "grpo", "distill", "serve"];
const BY = ["tokens", "budget", "hours", "flops"];
/** Exponents of ten between which a slider moves. */
const SPAN = { tokens: [5, 14], budget: [0, 9], hours: [0, 5], flops: [12, 27], prompts: [0, 9] };
const UNITS = /** @type {Record<string, number>} */ ({ k: 1e3, m: 1e6, g: 1e9, b: 1e9, t: 1e12, p: 1e15 });

/** @type {Record<string, any>} */
const FIRST = {
  model: "deepseek-v3", kind: "pretrain", device: "h800", count: 2048, by: "tokens", value: 14.8e12, currency: "USD",
  sequence: 4096, stack: "tuned", like: "", recompute: "selective", teacher: "", prompts: 1e5, samples: 8,
  prompt_tokens: 512, answer_tokens: 512, cached: 0, speed: 10, bits: 8, rule: "2026-01",
};

/** The article's run, with what the address says laid over it. @param {Record<string, string>} words @param {any} options */
export function startFields(words, options) {
  const fields = { ...FIRST };
  for (const [key, text] of Object.entries(words)) {
    if (!(key in FIRST)) continue;
    fields[key] = typeof FIRST[key] === "number" ? Number(text) || FIRST[key] : text;
  }
  const has = (/** @type {any[]} */ list, /** @type {string} */ key, /** @type {string} */ value) =>
    list.some((one) => one[key] === value);
  if (!has(options.models, "name", fields.model)) fields.model = FIRST.model;
  if (!has(options.devices, "key", fields.device)) fields.device = FIRST.device;
  if (!KINDS.includes(fields.kind)) fields.kind = FIRST.kind;
  return fields;
}

/** The request for these fields. @param {Record<string, any>} fields */
export function wanted(fields) {
  const { by, value, teacher, ...rest } = fields;
  /** @type {Record<string, any>} */
  const body = { ...rest };
  if (fields.kind === "distill") body.teacher = teacher || "llama-3.1-70b";
  if (!["grpo", "serve"].includes(fields.kind)) body[by] = value;
  return body;
}

/** `14.8T` or 14800000000000 as a number, NaN for what is none. @param {string} text */
export function readNumber(text) {
  const found = /^\s*([\d.,]+(?:e[+-]?\d+)?)\s*([kmgbtp]?)\s*$/i.exec(text);
  return found ? Number(found[1].replaceAll(",", "")) * (UNITS[found[2].toLowerCase()] ?? 1) : NaN;
}

/** @param {{name: string, label: string, value: number, span: number[], whole?: boolean, change: any}} props */
function Amount({ name, label, value, span, whole, change }) {
  const set = (/** @type {number} */ next) => next > 0 && change({ [name]: whole ? Math.round(next) : next });
  return html`<label>${label}
    <input type="text" inputmode="text" value=${value >= 1e5 ? compact2(value) : String(value)}
      onChange=${(/** @type {any} */ e) => set(readNumber(e.target.value))} />
    <input type="range" min=${span[0]} max=${span[1]} step=${(span[1] - span[0]) / 180} value=${Math.log10(value)}
      aria-label=${label} aria-valuetext=${compact(value)}
      onInput=${(/** @type {any} */ e) => set(rounded(10 ** Number(e.target.value)))} />
  </label>`;
}

/** 14.8T: a number as the field takes it back. @param {number} value */
function compact2(value) {
  for (const [unit, size] of /** @type {[string, number][]} */ ([["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]])) {
    if (value >= size && value < size * 1e6) return `${Number((value / size).toPrecision(4))}${unit}`;
  }
  return String(value);
}

/** Two figures: a slider has no third. @param {number} value */
const rounded = (value) => Number(value.toPrecision(2));

/** @param {{name: string, label: string, value: any, choices: [string, string][], change: any}} props */
function Choice({ name, label, value, choices, change }) {
  return html`<label>${label}
    <select onChange=${(/** @type {any} */ e) => change({ [name]: e.target.value })}>
      ${choices.map(([key, text]) => html`<option value=${key} selected=${key === String(value)}>${text}</option>`)}
    </select>
  </label>`;
}

/** @param {{name: string, label: string, value: number, min?: number, max?: number, step?: any, change: any}} props */
function Small({ name, label, value, min = 1, max = 1e9, step = 1, change }) {
  const set = (/** @type {any} */ e) => e.target.value !== "" && change({ [name]: Number(e.target.value) });
  return html`<label>${label}
    <input type="number" min=${min} max=${max} step=${step} value=${value} onChange=${set} /></label>`;
}

/** @param {{fields: any, options: any, change: (part: any) => void}} props */
export function Form({ fields, options, change }) {
  const models = options.models.map((/** @type {any} */ m) =>
    [m.name, `${m.name} (${compact(m.parameters)}${m.moe ? ` / ${compact(m.parameters_active)}` : ""})`]);
  const devices = options.devices.map((/** @type {any} */ d) => [d.key, d.title]);
  const rolls = fields.kind === "grpo" || fields.kind === "serve";
  const common = { change };
  const tokens = html`<div class="pair">
    <${Small} ...${common} name="prompt_tokens" label=${t("cost.promptTokens")} value=${fields.prompt_tokens} />
    <${Small} ...${common} name="answer_tokens" label=${t("cost.answerTokens")} value=${fields.answer_tokens} />
  </div>`;
  return html`<form onSubmit=${(/** @type {Event} */ e) => e.preventDefault()}>
    <${Choice} ...${common} name="model" label=${t("cost.model")} value=${fields.model} choices=${models} />
    <${Choice} ...${common} name="kind" label=${t("cost.kind")} value=${fields.kind}
      choices=${KINDS.map((kind) => [kind, t(`kind.${kind}`)])} />
    ${fields.kind === "distill" && html`<${Choice} ...${common} name="teacher" label=${t("cost.teacher")}
      value=${fields.teacher || "llama-3.1-70b"} choices=${models} />`}
    ${!rolls && html`<${Choice} ...${common} name="by" label=${t("cost.given")} value=${fields.by}
      choices=${BY.map((by) => [by, t(`by.${by}`)])} />
      <${Amount} change=${(/** @type {any} */ part) => change({ value: part.value })} name="value"
        label=${fields.by === "budget" ? `${t("by.budget")}, ${fields.currency}` : t(`by.${fields.by}`)}
        value=${fields.value} span=${SPAN[/** @type {"tokens"} */ (fields.by)] ?? SPAN.tokens} />`}
    ${rolls && html`<${Amount} ...${common} name="prompts" whole=${true} span=${SPAN.prompts} value=${fields.prompts}
      label=${fields.kind === "serve" ? t("cost.promptsDay") : t("cost.prompts")} />${tokens}`}
    ${fields.kind === "grpo" && html`<${Small} ...${common} name="samples" label=${t("cost.samples")} value=${fields.samples} />`}
    ${fields.kind === "serve" && html`<div class="pair">
      <${Small} ...${common} name="speed" label=${t("cost.speed")} value=${fields.speed} />
      <${Small} ...${common} name="bits" label=${t("cost.bits")} value=${fields.bits} max=${32} />
    </div>
    <label>${t("cost.cached")}: ${number(fields.cached * 100)}%
      <input type="range" min="0" max="0.95" step="0.05" value=${fields.cached}
        onInput=${(/** @type {any} */ e) => change({ cached: Number(e.target.value) })} /></label>`}
    <${Choice} ...${common} name="device" label=${t("cost.device")} value=${fields.device} choices=${devices} />
    <label>${t("cost.count")}
      <input type="number" min="1" max="1048576" value=${fields.count}
        onChange=${(/** @type {any} */ e) => Number(e.target.value) >= 1 && change({ count: Math.round(Number(e.target.value)) })} />
      <input type="range" min="0" max="14" step="1" value=${Math.log2(fields.count)} aria-label=${t("cost.count")}
        aria-valuetext=${number(fields.count)}
        onInput=${(/** @type {any} */ e) => change({ count: 2 ** Number(e.target.value) })} /></label>
    ${!rolls && html`<div class="pair">
      <${Small} ...${common} name="sequence" label=${t("cost.sequence")} value=${fields.sequence} />
      <${Choice} ...${common} name="recompute" label=${t("cost.recompute")} value=${fields.recompute}
        choices=${["none", "selective", "full"].map((way) => [way, t(`recompute.${way}`)])} />
    </div>`}
    ${fields.kind !== "serve" && html`<div class="pair">
      <${Choice} ...${common} name="stack" label=${t("cost.stack")} value=${fields.stack}
        choices=${["tuned", "generic"].map((stack) => [stack, t(`stack.${stack}`)])} />
      <${Choice} ...${common} name="like" label=${t("cost.like")} value=${fields.like}
        choices=${[["", t("cost.byClass")], ...options.runs.map((/** @type {string} */ run) => [run, run])]} />
    </div>`}
    <div class="pair">
      <${Choice} ...${common} name="currency" label=${t("cost.currency")} value=${fields.currency}
        choices=${Object.keys(options.currencies.rates).map((code) => [code, code])} />
      <${Choice} ...${common} name="rule" label=${t("cost.rule")} value=${fields.rule}
        choices=${options.rules.map((/** @type {string} */ rule) => [rule, rule])} />
    </div>
  </form>`;
}
