// @ts-check
// Coming in: a name and a password where there are users, else the key of the server. Both become a cookie that scripts
// cannot read.
import { html, useEffect, useRef, useState } from "../lib.js";
import { call } from "../api.js";
import { t, withWords } from "../i18n.js";
import { Notice, said } from "../parts.js";

await withWords("account");

/** @param {{onDone: () => void}} props */
export function Login({ onDone }) {
  const [way, setWay] = useState(/** @type {"password" | "key" | null} */ (null));
  const [told, setTold] = useState("");
  const [busy, setBusy] = useState(false);
  const form = useRef(/** @type {HTMLFormElement | null} */ (null));
  useEffect(() => {
    call("GET", "api/session").then((answer) => setWay(answer.way === "password" ? "password" : "key"), () => setWay("key"));
  }, []);
  useEffect(() => form.current?.querySelector("input")?.focus(), [way]);
  /** @param {Event} event */
  const submit = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      await call("POST", "api/session", Object.fromEntries(new FormData(/** @type {HTMLFormElement} */ (form.current))));
      onDone();
    } catch (refusal) {
      const { status } = /** @type {any} */ (refusal);
      setTold(status === 401 ? t(`login.wrong_${way}`) : said(refusal));
      form.current?.querySelector(`input[type="password"]`)?.select();
    }
    setBusy(false);
  };
  if (!way) return null;
  const name = html`<label>${t("login.name")}<input name="name" required maxlength="64" autocomplete="username" autocapitalize="none" spellcheck=${false} /></label>`;
  return html`<form class="key" ref=${form} onSubmit=${submit}>
    <h1>${t("login.title")}</h1>
    ${told && html`<${Notice} error words=${told} />`}
    ${way === "password" && name}
    <label>${t(`login.${way}`)}<input name=${way} type="password" required maxlength="1000" autocomplete="current-password" /></label>
    <button class="button primary" disabled=${busy}>${t("login.open")}</button>
    ${way === "password" && html`<p>${t("login.forgotten")}</p>`}
  </form>`;
}
