// @ts-check
// An answer token by token: how likely each was where it stands, and what else could have stood there.
import { html, useEffect, useState } from "../lib.js";
import { call, errorWords } from "../api.js";
import { Frame } from "../dialogs.js";
import { number, t } from "../i18n.js";
import { Notice } from "../parts.js";
import { state } from "../store.js";

/** @typedef {{text: string, logprob: number, top: [string, number][]}} Token */

/** @param {string} text a token as it can be seen */
const shown = (text) => text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
/** @param {number} logprob */
const chance = (logprob) => {
  const p = Math.exp(logprob);
  return p > 0.001 ? t("tokens.percent", { n: number(100 * p, p > 0.1 ? 0 : 1) }) : t("tokens.tiny");
};
/** How sure the model was, in five steps. @param {number} logprob */
const step = (logprob) => [0.9, 0.6, 0.3, 0.1].findIndex((edge) => Math.exp(logprob) >= edge) % 5;

/** @param {{message: import("../store.js").Message}} props */
export function Tokens({ message }) {
  const [tokens, setTokens] = useState(/** @type {Token[] | null} */ (null));
  const [error, setError] = useState(/** @type {any} */ (null));
  const [at, setAt] = useState(0);
  useEffect(() => {
    call("POST", `api/chats/${state.chat?.id}/messages/${message.id}/tokens`).then((answer) => setTokens(answer.tokens), setError);
  }, []);
  if (error) {
    const { message: words, hint } = errorWords(error);
    return html`<${Frame} title=${t("tokens.title")}><${Notice} error words=${words || t("error.unreachable")} hint=${hint} /><//>`;
  }
  if (!tokens) return html`<${Frame} title=${t("tokens.title")}><p class="waiting"><i class="pulse"></i>${t("tokens.reading")}</p><//>`;
  const one = tokens[at];
  const sum = tokens.reduce((total, { logprob }) => total + logprob, 0);
  /** @param {KeyboardEvent} event */
  const onKeyDown = (event) => {
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: tokens.length - 1 }[event.key];
    if (to === undefined || !tokens[to]) return;
    event.preventDefault();
    setAt(to);
    /** @type {HTMLElement | undefined} */ (/** @type {HTMLElement} */ (event.currentTarget).children[to])?.focus();
  };
  const button = (/** @type {Token} */ token, /** @type {number} */ index) => html`<button
    type="button"
    class=${`token step${step(token.logprob) < 0 ? 4 : step(token.logprob)}`}
    aria-pressed=${index === at}
    tabindex=${index === at ? 0 : -1}
    title=${chance(token.logprob)}
    onClick=${() => setAt(index)}
  >${token.text.includes("\n") ? `${shown(token.text)}\n` : token.text || "∅"}</button>`;
  const row = ([text, logprob], /** @type {number} */ index) => html`<tr key=${index} class=${text === one.text ? "this" : ""}>
    <th scope="row"><code>${shown(text)}</code></th>
    <td><meter min="0" max="1" value=${Math.exp(logprob)} aria-hidden="true"></meter></td><td>${chance(logprob)}</td></tr>`;
  const others = one.top.some(([text]) => text === one.text) ? one.top : [...one.top, [one.text, one.logprob]];
  return html`<${Frame} title=${t("tokens.title")} wide>
    <p>${t("tokens.about", { count: tokens.length, perplexity: number(Math.exp(-sum / tokens.length), 2) })}</p>
    <div class="tokens" role="group" aria-label=${t("tokens.title")} onKeyDown=${onKeyDown}>${tokens.map(button)}</div>
    <table class="alternatives" aria-live="polite">
      <caption>${t("tokens.place", { n: at + 1, text: shown(one.text), chance: chance(one.logprob) })}</caption>
      <tbody>${others.map(row)}</tbody>
    </table>
  <//>`;
}
