// @ts-check
// One's own account: what was used, API keys, the password, the way out.
import { addStyle, html, useEffect, useRef, useState } from "../lib.js";
import { call } from "../api.js";
import { Frame } from "../dialogs.js";
import { dateTime, number, t, withWords } from "../i18n.js";
import { CopyButton, IconButton, Notice, said } from "../parts.js";
import { openDialog, state } from "../store.js";
import { Figures } from "./figures.js";

await Promise.all([withWords("account"), addStyle("./account/account.css")]);

/** A secret that is shown once. @param {{words: string, text: string}} props */
export function Secret({ words, text }) {
  return html`<div role="status"><p>${words}</p>
    <div class="secret"><code>${text}</code><${CopyButton} text=${() => text} name=${t("action.copy")} /></div></div>`;
}

/** @param {{used_today: number, tokens_a_day: number}} limits */
export const usedOf = ({ used_today, tokens_a_day }) =>
  t("account.usedOf", { used: number(used_today), limit: number(tokens_a_day) });

/** @typedef {{id: string, name: string, created_at: number, used_at: number | null, tokens_a_day: number | null,
 *   parallel: number | null, used_today: number}} Key */

function Keys() {
  const [keys, setKeys] = useState(/** @type {Key[]} */ ([]));
  const [made, setMade] = useState("");
  const [told, setTold] = useState("");
  const form = useRef(/** @type {HTMLFormElement | null} */ (null));
  /** @param {() => Promise<any>} [work] */
  const after = async (work) => {
    setTold("");
    try {
      await work?.();
      setKeys((await call("GET", "api/account/keys")).keys);
    } catch (error) {
      setTold(said(error));
    }
  };
  useEffect(() => void after(), []);
  /** @param {Event} event */
  const add = (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(/** @type {HTMLFormElement} */ (form.current)));
    const limit = (/** @type {any} */ value) => (value ? Number(value) : null);
    after(async () => {
      const body = { name: given.name, tokens_a_day: limit(given.tokens), parallel: limit(given.parallel) };
      setMade((await call("POST", "api/account/keys", body)).key);
      form.current?.reset();
    });
  };
  const about = (/** @type {Key} */ { tokens_a_day, parallel, used_today, used_at }) =>
    [
      tokens_a_day
        ? usedOf({ used_today, tokens_a_day })
        : t("account.usedToday", { used: number(used_today) }),
      parallel && t("account.atOnce", { n: number(parallel) }),
      used_at ? t("account.lastUsed", { when: dateTime(used_at) }) : t("account.neverUsed"),
    ].filter(Boolean).join(" · ");
  const row = (/** @type {Key} */ key) => html`<li key=${key.id}>
    <div><b>${key.name}</b><p>${about(key)}</p></div>
    <${IconButton} icon="trash-2" name=${t("account.revoke", { name: key.name })} onClick=${() => after(() => call("DELETE", `api/account/keys/${key.id}`))} />
  </li>`;
  return html`<h3>${t("account.keys")}</h3>
    <p>${t("account.keysAbout")}</p>
    ${told && html`<${Notice} error words=${told} />`}
    <ul class="library">${keys.map(row)}</ul>
    ${made && html`<${Secret} words=${t("account.keyOnce")} text=${made} />`}
    <form class="inline" ref=${form} onSubmit=${add}>
      <label>${t("account.keyName")}<input class="field" name="name" required maxlength="100" /></label>
      <label>${t("account.tokensADay")}<input class="field" name="tokens" type="number" min="1" max="1000000000000" placeholder=${t("account.noLimit")} /></label>
      <label>${t("account.parallel")}<input class="field" name="parallel" type="number" min="1" max="1000" placeholder=${t("account.noLimit")} /></label>
      <button class="button">${t("account.addKey")}</button>
    </form>`;
}

function Password() {
  const [told, setTold] = useState(/** @type {{words: string, error: boolean} | null} */ (null));
  const form = useRef(/** @type {HTMLFormElement | null} */ (null));
  /** @param {Event} event */
  const change = async (event) => {
    event.preventDefault();
    try {
      await call("POST", "api/account/password", Object.fromEntries(new FormData(/** @type {HTMLFormElement} */ (form.current))));
      form.current?.reset();
      setTold({ words: t("account.passwordChanged"), error: false });
    } catch (error) {
      const wrong = /** @type {any} */ (error).status === 401;
      setTold({ words: wrong ? t("account.passwordWrong") : said(error), error: true });
    }
  };
  return html`<h3>${t("account.password")}</h3>
    ${told && html`<${Notice} error=${told.error} words=${told.words} />`}
    <form class="inline" ref=${form} onSubmit=${change}>
      <input type="text" name="" value=${state.user?.name} autocomplete="username" hidden />
      <label>${t("account.oldPassword")}<input class="field" name="old" type="password" required autocomplete="current-password" /></label>
      <label>${t("account.newPassword")}<input class="field" name="new" type="password" required minlength="10" maxlength="1000" autocomplete="new-password" /></label>
      <button class="button">${t("action.save")}</button>
    </form>`;
}

async function signOut() {
  await call("DELETE", "api/session");
  for (const key of Object.keys(localStorage)) if (key.startsWith("draft:")) localStorage.removeItem(key); // the next one is another
  sessionStorage.clear();
  location.assign("./");
  if (!location.hash) location.reload();
}

export function Account() {
  const [usage, setUsage] = useState(/** @type {any} */ (null));
  const [told, setTold] = useState("");
  useEffect(() => void call("GET", "api/account/usage?days=30").then(setUsage, (error) => setTold(said(error))), []);
  const { name = "", admin = false } = state.user ?? {};
  return html`<${Frame} title=${name} wide>
    ${told && html`<${Notice} error words=${told} />`}
    <div class="buttons start">
      ${admin && html`<button type="button" class="button" onClick=${() => openDialog("team")}>${t("team.title")}</button>`}
      <button type="button" class="button" onClick=${() => signOut().catch((error) => setTold(said(error)))}>${t("account.signOut")}</button>
    </div>
    <h3>${t("account.usage")}</h3>
    ${usage && html`<${Figures} rows=${usage.models} first=${t("account.model")} />`}
    ${usage?.limits?.tokens_a_day && html`<p>${usedOf(usage.limits)}</p>`}
    <${Keys} /><${Password} />
  <//>`;
}
