// @ts-check
// What the planner answered, in words, bars, plots and a table.
import { ComparePlot, ScanPlot } from "./plots.js";
import { bytes, compact, language, money, number, percent, t } from "../i18n.js";
import { html } from "../lib.js";

/** 20 s, 4.2 h, 54 days. @param {number} hours */
export function duration(hours) {
  const [value, unit] = hours < 1 / 60 ? [hours * 3600, "second"] : hours < 2 ? [hours * 60, "minute"]
    : hours < 72 ? [hours, "hour"] : [hours / 24, "day"];
  const form = { style: /** @type {const} */ ("unit"), unit, unitDisplay: /** @type {const} */ ("short"), maximumSignificantDigits: 3 };
  return new Intl.NumberFormat(language, form).format(value);
}

/** 3.74 YFLOP, 250 GFLOP: powers of a thousand by their SI letters in every language. @param {number} value */
export function flops(value) {
  const steps = Math.min(Math.floor(Math.log10(Math.max(value, 1)) / 3), 8);
  const digits = { maximumSignificantDigits: 3 };
  return `${new Intl.NumberFormat(language, digits).format(value / 1000 ** steps)} ${"kMGTPEZY"[steps - 1] ?? ""}FLOP`;
}

/** `routed experts` -> the words for it. @param {string} name */
function part(name) {
  const key = name.replace(/[^A-Za-z]+(\w)/g, (_, first) => first.toUpperCase());
  const words = t(`part.${key}`);
  return words.startsWith("part.") ? name : words;
}

/** Parts of a whole as one bar and its legend. @param {{parts: Record<string, number>, whole?: number, show: (n: number) => string}} props */
function Bar({ parts, whole, show }) {
  const shown = Object.entries(parts).filter(([, value]) => value > 0).sort((a, b) => b[1] - a[1]);
  const total = Math.max(whole ?? 0, shown.reduce((sum, [, value]) => sum + value, 0));
  let x = 0;
  return html`<svg class="bar" viewBox="0 0 1000 22" preserveAspectRatio="none" aria-hidden="true">
      ${shown.map(([, value], i) => {
        const width = (1000 * value) / total;
        x += width;
        return html`<rect class=${`tone${i % 8}`} x=${x - width} y="0" width=${Math.max(width - 1, 0.5)} height="22" />`;
      })}
    </svg>
    <ul class="legend">${shown.map(([name, value], i) =>
      html`<li><i class=${`tone${i % 8}`}></i>${part(name)} ${show(value)}</li>`)}</ul>`;
}

/** @param {{title: string, value: string, notes?: any[]}} props */
function Figure({ title, value, notes = [] }) {
  return html`<div class="figure"><h2>${title}</h2><b>${value}</b>${notes.filter(Boolean).map((note) => html`<small>${note}</small>`)}</div>`;
}

/** @param {any} props */
export function Results({ plan, fields, rows, points, options, old, change }) {
  const serving = plan.kind === "serve";
  const rate = options.currencies.rates[fields.currency] ?? 1;
  const sum = (/** @type {number | null} */ usd) => (usd === null ? t("cost.unknown") : money(usd * rate, fields.currency));
  const span = (/** @type {string} */ low, /** @type {string} */ high) => t("cost.span", { low, high });
  const device = options.devices.find((/** @type {any} */ d) => d.key === fields.device);
  const rule = device?.export[fields.rule];
  const s = plan.serving;
  return html`<div class=${old ? "old" : ""}>
    <div class="figures">
      ${serving
        ? html`<${Figure} title=${t("cost.machines")} value=${number(s.machines)} notes=${[
            t("cost.readers", { n: s.readers }), t("cost.rate", { n: Math.round(s.tokens_per_second) })]} />`
        : html`<${Figure} title=${t("cost.time")} value=${duration(plan.hours)} notes=${[
            span(duration(plan.hours_low), duration(plan.hours_high)),
            t("cost.deviceHours", { n: Math.round(plan.device_hours) })]} />`}
      <${Figure} title=${serving ? t("cost.moneyDay") : t("cost.money")} value=${sum(plan.usd)} notes=${[
        !serving && plan.usd !== null && span(sum(plan.usd_low), sum(plan.usd_high)),
        serving && plan.usd !== null && t("cost.perMillion", { out: sum(s.usd_per_million_out), in: sum(s.usd_per_million_in) }),
        plan.price.basis && t(`price.${plan.price.basis}`, { sum: money(plan.price.usd_per_hour * rate, fields.currency), date: plan.price.date })]} />
      <${Figure} title=${t("cost.energy")} value=${plan.kwh === null ? t("cost.unknown") : `${compact(plan.kwh)} kWh`}
        notes=${[t("cost.noCooling")]} />
      <${Figure} title=${t("cost.memory")} value=${bytes(plan.memory_total)} notes=${[
        plan.memory_device === null ? t("cost.memoryUnknown")
          : plan.fits ? t("cost.fits", { size: bytes(plan.memory_device) }) : t("cost.fitsNot", { size: bytes(plan.memory_device) })]} />
      <${Figure} title=${t("cost.work")} value=${flops(plan.flops)} notes=${[t("cost.tokens", { n: compact(plan.tokens) })]} />
    </div>
    <p class="soft">${t(`limit.${plan.limited_by}`)}
      ${plan.utilisation.class ? ` ${t("cost.class", { name: plan.utilisation.class, share: percent(plan.utilisation.value),
        rows: plan.utilisation.rows.join(", ") })}` : ""}
      ${plan.smallest.length > 0 ? ` ${t("cost.smallest", { list: plan.smallest.slice(0, 3)
        .map((/** @type {any} */ m) => `${m.count} × ${m.name}`).join(", ") })}` : ""}</p>
    <p class="soft">${t(serving ? "cost.leftOutService" : "cost.leftOut")}</p>
    <section><h2>${t("cost.memoryParts")}</h2><${Bar} parts=${plan.memory} whole=${plan.memory_device} show=${bytes} /></section>
    <section><h2>${t("cost.flopParts")}</h2><${Bar} parts=${plan.flops_per_token} show=${flops} /></section>
    ${Object.keys(plan.communication).length > 0 && html`<section><h2>${t("cost.traffic")}</h2>
      <${Bar} parts=${plan.communication} show=${bytes} />
      <p class="soft">${t("cost.trafficTime", { traffic: duration(plan.communication_seconds / 3600), work: duration(plan.step_seconds / 3600) })}</p>
    </section>`}
    ${points?.length > 1 && html`<section><h2>${t("cost.scan")}</h2>
      <${ScanPlot} points=${points} serving=${serving} rate=${rate} currency=${fields.currency} /></section>`}
    ${rows && html`<${Compare} rows=${rows} serving=${serving} sum=${sum} fields=${fields} change=${change} />`}
    ${rule && html`<section><h2>${t("cost.exportRule", { rule: fields.rule })}</h2>
      <p>${device.title}: <b>${rule.name}</b> (${rule.why}). ${rule.review}</p>
      <p class="soft">TPP ${rule.tpp === null ? "?" : number(rule.tpp)} (${rule.tpp_format}) · ${t("cost.density")} ${rule.performance_density === null ? "?" : number(rule.performance_density, 1)}. ${t("cost.noAdvice")}</p></section>`}
    ${plan.suggestions.length > 0 && html`<section><h2>${t("cost.sizes")}</h2><ul>${plan.suggestions.map((/** @type {any} */ one) =>
      html`<li>${t("cost.size", { ratio: one.tokens_per_weight, weights: compact(one.weights), tokens: compact(one.tokens) })}</li>`)}</ul></section>`}
    <details><summary>${t("cost.working")}</summary>
      <ol lang="en">${plan.steps.map((/** @type {string} */ step) => html`<li>${step}</li>`)}</ol>
      <p class="soft" lang="en">${plan.notes.join(". ")}. ${plan.price.source}.</p>
    </details>
  </div>`;
}

/** @param {any} props */
function Compare({ rows, serving, sum, fields, change }) {
  const order = (/** @type {any} */ row) => (row.problem ? Infinity : serving ? row.device_hours : row.hours);
  const sorted = [...rows].sort((a, b) => order(a) - order(b));
  const fit = (/** @type {any} */ row) => row.fits === null ? html`<span class="maybe">?</span>`
    : row.fits ? t("cost.yes") : html`<span class="no">${t("cost.no")}</span>`;
  return html`<section><h2>${t("cost.others")}</h2>
    <div class="scroller" role="region" aria-label=${t("cost.others")} tabindex="0"><${ComparePlot} rows=${sorted.filter((row) => !row.problem)} serving=${serving} /></div>
    <div class="scroller"><table>
      <thead><tr><th>${t("cost.device")}</th><th class="n">${serving ? t("cost.machines") : t("cost.time")}</th>
        <th class="n">${t("cost.money")}</th><th class="n">kWh</th><th>${t("cost.memoryFits")}</th><th>${t("cost.linkBound")}</th>
        <th>${t("cost.exportClass")}</th></tr></thead>
      <tbody>${sorted.map((row) => html`<tr class=${row.device === fields.device ? "chosen" : ""} key=${row.device}>
        <td><button type="button" onClick=${() => change({ device: row.device })}>${row.name}</button></td>
        ${row.problem ? html`<td colspan="5"><span class="no" lang="en">${row.problem}</span></td>` : html`
          <td class="n">${serving ? number(row.serving.machines) : duration(row.hours)}</td>
          <td class="n">${sum(row.usd)} <small class="soft">${row.price.basis && t(`basis.${row.price.basis}`)}</small></td>
          <td class="n">${row.kwh === null ? "?" : compact(row.kwh)}</td><td>${fit(row)}</td>
          <td>${row.link_bound === null ? "-" : row.link_bound ? html`<span class="maybe">${t("cost.yes")}</span>` : t("cost.no")}</td>`}
        <td title=${row.export.why}>${row.export.name}</td></tr>`)}</tbody>
    </table></div>
    <p class="soft">${t("cost.noAdvice")}</p></section>`;
}
