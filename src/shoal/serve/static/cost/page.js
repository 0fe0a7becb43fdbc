// @ts-check
// The cost page: a calculator whose every figure comes from /api/cost, and the receipts of the installed models.
import { call } from "../api.js";
import { Form, startFields, wanted } from "./form.js";
import { Receipts } from "./receipts.js";
import { Results } from "./results.js";
import { LANGUAGES, preferredLanguage, setLanguage, t, withWords } from "../i18n.js";
import { html, render, useEffect, useRef, useState } from "../lib.js";

const WAIT_MS = 250;

/** What the address says: `#model=...&tokens=...`, or `#receipts=MODEL`. */
function fromAddress() {
  return Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
}

/** Keep the address a link to what is seen. @param {Record<string, any>} values */
function toAddress(values) {
  const words = new URLSearchParams(Object.entries(values).filter(([, value]) => value !== "" && value !== null));
  history.replaceState(null, "", `#${words}`);
}

/** @param {{options: any}} props */
function Calculator({ options }) {
  const [fields, setFields] = useState(() => startFields(fromAddress(), options));
  const [found, setFound] = useState(/** @type {any} */ ({}));
  const [wrong, setWrong] = useState("");
  const [busy, setBusy] = useState(true);
  const turn = useRef(0);
  useEffect(() => {
    toAddress(fields);
    const mine = ++turn.current;
    setBusy(true);
    const timer = setTimeout(async () => {
      const body = wanted(fields);
      try {
        const plan = await call("POST", "api/cost/plan", body);
        if (mine !== turn.current) return;
        setWrong("");
        setBusy(false);
        setFound((/** @type {any} */ old) => ({ ...old, plan, fields }));
        const [compared, scanned] = await Promise.all([
          call("POST", "api/cost/compare", body),
          call("POST", "api/cost/scan", body),
        ]);
        if (mine === turn.current) setFound({ plan, fields, rows: compared.rows, points: scanned.points });
      } catch (error) {
        if (mine !== turn.current) return;
        setBusy(false);
        setWrong(/** @type {Error} */ (error).message || t("cost.offline"));
      }
    }, WAIT_MS);
    return () => clearTimeout(timer);
  }, [fields]);
  const change = (/** @type {any} */ part) => setFields((/** @type {any} */ old) => ({ ...old, ...part }));
  return html`<div class="sides">
    <${Form} fields=${fields} options=${options} change=${change} />
    <div aria-live="polite" aria-busy=${busy}>
      ${wrong && html`<p class="wrong" role="alert">${wrong}</p>`}
      ${found.plan && html`<${Results} ...${found} options=${options} old=${busy || Boolean(wrong)} change=${change} />`}
    </div>
  </div>`;
}

function Page() {
  const [options, setOptions] = useState(/** @type {any} */ (null));
  const [wrong, setWrong] = useState("");
  const [tab, setTab] = useState("receipts" in fromAddress() ? "receipts" : "calculator");
  const [words, setWords] = useState("");
  useEffect(() => {
    call("GET", "api/cost/options").then(setOptions, (error) =>
      setWrong(error.status === 401 ? t("cost.signIn") : error.message || t("cost.offline")));
  }, []);
  useEffect(() => {
    document.title = `${t("cost.title")} - Shoal`;
  }, [words]);
  const choose = async (/** @type {any} */ event) => {
    localStorage.setItem("language", event.target.value);
    await setLanguage(event.target.value);
    setWords(event.target.value);
  };
  const names = { calculator: t("cost.calculator"), receipts: t("cost.receipts") };
  return html`<main class="cost">
    <header>
      <h1>${t("cost.title")}</h1>
      <a href="./">${t("cost.chat")}</a>
      <select class="narrow" aria-label=${t("cost.language")} onChange=${choose}>
        ${Object.entries(LANGUAGES).map(([code, name]) =>
          html`<option value=${code} selected=${code === document.documentElement.lang}>${name}</option>`)}
      </select>
    </header>
    <nav role="tablist">
      ${Object.entries(names).map(([key, name]) => html`<button type="button" role="tab" aria-selected=${tab === key}
        onClick=${() => setTab(key)}>${name}</button>`)}
    </nav>
    ${wrong && html`<p class="wrong" role="alert">${wrong}</p>`}
    ${options && tab === "calculator" && html`<${Calculator} options=${options} />`}
    ${options && tab === "receipts" &&
      html`<${Receipts} options=${options} start=${fromAddress().receipts} toAddress=${toAddress} />`}
  </main>`;
}

await setLanguage(preferredLanguage());
await withWords("cost");
render(html`<${Page} />`, /** @type {HTMLElement} */ (document.getElementById("page")));
