// @ts-check
// The chain of receipts of a model: from what it was last trained for down to the electricity of the network below.
import { call } from "../api.js";
import { duration, flops } from "./results.js";
import { compact, money, number, percent, t } from "../i18n.js";
import { html, useEffect, useState } from "../lib.js";

/** @param {{name: string, value: any}} props */
function Entry({ name, value }) {
  return value === null || value === undefined ? null : html`<div><dt>${name}</dt><dd>${value}</dd></div>`;
}

/** @param {{link: any}} props one receipt */
function Link({ link }) {
  const unknown = t("cost.unknown");
  const kwh = link.joules === null ? unknown : `${number(link.joules / 3.6e6, 4)} kWh`;
  const [stage, source] = [t(`stage.${link.kind}`), t(`basis.${link.energy_source}`)];
  return html`<li><h2>${stage.startsWith("stage.") ? link.kind : stage}
      <span class="tag">${t(`basis.${link.energy_basis}`)}</span></h2>
    <dl>
      <${Entry} name=${t("cost.device")} value=${link.device} />
      <${Entry} name=${t("cost.time")} value=${duration(link.seconds / 3600)} />
      <${Entry} name=${t("cost.tokensTitle")} value=${compact(link.tokens)} />
      <${Entry} name=${t("cost.work")} value=${flops(link.flops)} />
      <${Entry} name=${t("cost.peakShare")} value=${link.utilisation === null ? unknown
        : link.utilisation > 1 ? t("cost.peakDoubt") : percent(link.utilisation)} />
      <${Entry} name=${t("cost.energy")} value=${html`${kwh} <small>(${source.startsWith("basis.") ? link.energy_source : source})</small>`} />
      <${Entry} name=${t("cost.money")} value=${link.usd === null ? unknown : html`${money(link.usd)} <small>(${t(`basis.${link.price_basis}`)}, ${link.price_date})</small>`} />
    </dl>
    ${link.details.note && html`<p class="soft" lang="en">${link.details.note}</p>`}
    ${link.price_note && html`<p class="soft" lang="en">${link.price_note}</p>`}</li>`;
}

/** @param {{run: any}} props what its makers published */
function Published({ run }) {
  return html`<li><h2>${run.run} <span class="tag">${t("basis.published")}</span></h2>
    <dl>
      <${Entry} name=${t("cost.device")} value=${run.device} />
      <${Entry} name=${t("cost.deviceHoursAxis")} value=${number(run.hours)} />
      <${Entry} name=${t("cost.tokensTitle")} value=${compact(run.tokens)} />
      <${Entry} name=${t("cost.work")} value=${flops(run.flops)} />
      <${Entry} name=${t("cost.energy")} value=${run.kwh === null ? t("cost.unknown") : html`${compact(run.kwh)} kWh <small>(${t("basis.estimated")})</small>`} />
      <${Entry} name=${t("cost.money")} value=${run.usd === null ? t("cost.unknown") : html`${money(run.usd)} <small>(${t("basis.estimated")}, ${run.price_date})</small>`} />
    </dl>
    <p class="soft" lang="en">${run.source}</p></li>`;
}

/** @param {{options: any, start: string | undefined, toAddress: (values: any) => void}} props */
export function Receipts({ options, start, toAddress }) {
  const first = options.receipts.includes(start) ? start : options.receipts[0];
  const [model, setModel] = useState(first);
  const [found, setFound] = useState(/** @type {any} */ (null));
  const [wrong, setWrong] = useState("");
  useEffect(() => {
    if (!model) return;
    toAddress({ receipts: model });
    setWrong("");
    call("GET", `api/cost/receipts/${model}`).then(setFound, (error) => setWrong(error.message));
  }, [model]);
  if (!model) return html`<p>${t("cost.noModels")}</p>`;
  return html`<div>
    <p><label>${t("cost.model")}
      <select class="narrow" onChange=${(/** @type {any} */ e) => setModel(e.target.value)}>
        ${options.receipts.map((/** @type {string} */ name) => html`<option value=${name} selected=${name === model}>${name}</option>`)}
      </select></label></p>
    ${wrong && html`<p class="wrong" role="alert">${wrong}</p>`}
    ${found && html`<section>
      <p>${t("cost.chainAbout")} ${found.total_usd !== null && html`<b>${t("cost.together", { sum: money(found.total_usd) })}</b>`}</p>
      ${!found.links.length && !found.published && html`<p class="soft">${t("cost.noReceipt")}</p>`}
      <ol class="chain">
        ${found.links.map((/** @type {any} */ link) => html`<${Link} key=${link.id} link=${link} />`)}
        ${found.published && html`<${Published} run=${found.published} />`}
      </ol>
      <p class="soft">${t("cost.leftOut")}</p></section>`}
  </div>`;
}
