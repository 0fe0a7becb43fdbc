// @ts-check
// What was used, as a table: answers, tokens, seconds of work, money.
import { html } from "../lib.js";
import { compact, money, number, seconds, t } from "../i18n.js";

/** @typedef {{name: string, answers: number, prompt_tokens: number, completion_tokens: number, seconds: number, usd: number,
 *   unpriced: number}} Used */

/** @param {{rows: Used[], first: string}} props `first` heads the column of the rows' names */
export function Figures({ rows, first }) {
  if (!rows.length) return html`<p>${t("account.nothingUsed")}</p>`;
  const price = (/** @type {Used} */ { usd, unpriced, answers }) => (unpriced === answers ? "–" : money(usd));
  const row = (/** @type {Used} */ used) => html`<tr key=${used.name}>
    <th scope="row">${used.name || t("team.gone")}</th><td>${number(used.answers)}</td>
    <td>${compact(used.prompt_tokens)}</td><td>${compact(used.completion_tokens)}</td>
    <td>${seconds(used.seconds)}</td><td>${price(used)}</td>
  </tr>`;
  return html`<div class="table" role="region" aria-label=${t("account.usage")} tabindex="0"><table class="figures">
    <thead><tr>
      <th scope="col">${first}</th><th scope="col">${t("account.answers")}</th><th scope="col">${t("account.read")}</th>
      <th scope="col">${t("account.written")}</th><th scope="col">${t("account.time")}</th><th scope="col">${t("account.cost")}</th>
    </tr></thead>
    <tbody>${rows.map(row)}</tbody>
  </table></div>`;
}
