// @ts-check
// For the admin: who may use this server, what everybody has used, and what was done.
import { html, useEffect, useRef, useState } from "../lib.js";
import { call } from "../api.js";
import { Frame } from "../dialogs.js";
import { dateTime, number, t } from "../i18n.js";
import { Notice, said } from "../parts.js";
import { state } from "../store.js";
import { Secret, usedOf } from "./account.js";
import { Figures } from "./figures.js";

/** @typedef {{id: string, name: string, admin: boolean, keys: number, created_at: number, seen_at: number | null,
 *   tokens_a_day: number | null, parallel: number | null, used_today: number}} User */
/** @typedef {{seq: number, at: number, name: string, action: string, target: string, address: string}} Entry */

/** @param {{user: User, act: (work: () => Promise<any>) => void}} props */
function Person({ user, act }) {
  const [sure, setSure] = useState(false);
  const [limiting, setLimiting] = useState(false);
  const path = `api/admin/users/${user.id}`;
  const change = (/** @type {object} */ body) => act(() => call("PATCH", path, body));
  const { tokens_a_day, parallel, used_today } = user;
  const about = [
    user.seen_at ? t("team.seen", { when: dateTime(user.seen_at) }) : t("team.neverSeen"),
    tokens_a_day && usedOf({ used_today, tokens_a_day }),
    parallel && t("account.atOnce", { n: number(parallel) }),
  ].filter(Boolean).join(" · ");
  const limit = (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const given = new FormData(/** @type {HTMLFormElement} */ (event.currentTarget));
    const value = (/** @type {string} */ name) => Number(given.get(name)) || null;
    act(async () => {
      await call("PATCH", path, { tokens_a_day: value("tokens"), parallel: value("parallel") });
      setLimiting(false);
    });
  };
  const field = (/** @type {string} */ words, /** @type {string} */ name, /** @type {number} */ max, /** @type {number | null} */ value) =>
    html`<label>${words}<input class="field" name=${name} type="number" min="1" max=${max} value=${value} placeholder=${t("account.noLimit")} /></label>`;
  const own = user.name === state.user?.name;
  const button = (/** @type {string} */ words, /** @type {() => void} */ run) =>
    html`<button type="button" class="button" aria-label=${`${words}: ${user.name}`} onClick=${run}>${words}</button>`;
  return html`<li>
    <div><b>${user.name}</b>${user.admin && html`<span class="badge">${t("team.admin")}</span>`}<p>${about}</p></div>
    <div class="buttons start">
      ${sure
        ? [button(t("action.cancel"), () => setSure(false)), button(t("team.reallyRemove"), () => act(() => call("DELETE", path)))]
        : [
            button(t("team.newPassword"), () => change({ new_password: true })),
            button(t("team.limits"), () => setLimiting(!limiting)),
            !own && button(t(user.admin ? "team.makeMember" : "team.makeAdmin"), () => change({ admin: !user.admin })),
            !own && button(t("team.remove"), () => setSure(true)),
          ]}
    </div>
    ${limiting && html`<form class="inline" onSubmit=${limit}>
      ${field(t("account.tokensADay"), "tokens", 1e12, tokens_a_day)}${field(t("account.parallel"), "parallel", 1000, parallel)}
      <button class="button">${t("action.save")}</button>
    </form>`}
  </li>`;
}

function Log() {
  const [entries, setEntries] = useState(/** @type {Entry[]} */ ([]));
  const [more, setMore] = useState(true);
  const read = async () => {
    const before = entries.length ? `&before=${entries[entries.length - 1].seq}` : "";
    const { entries: older } = await call("GET", `api/admin/audit?limit=30${before}`);
    setEntries([...entries, ...older]);
    setMore(older.length === 30);
  };
  useEffect(() => void read(), []);
  const row = (/** @type {Entry} */ { seq, at, name, action, target, address }) => html`<tr key=${seq}>
    <th scope="row">${dateTime(at)}</th><td class="words">${name}</td>
    <td class="words">${t(`log.${action.replace(".", "_")}`)}${target && `: ${target}`}</td><td class="words">${address}</td>
  </tr>`;
  return html`<h3>${t("team.log")}</h3>
    <p>${t("team.logAbout")}</p>
    <div class="table" role="region" aria-label=${t("team.log")} tabindex="0"><table class="figures"><tbody>${entries.map(row)}</tbody></table></div>
    ${more && html`<div class="buttons start"><button type="button" class="button" onClick=${read}>${t("history.older")}</button></div>`}`;
}

export function Team() {
  const [users, setUsers] = useState(/** @type {User[]} */ ([]));
  const [usage, setUsage] = useState(/** @type {any[]} */ ([]));
  const [made, setMade] = useState(/** @type {{name: string, password: string} | null} */ (null));
  const [told, setTold] = useState("");
  const form = useRef(/** @type {HTMLFormElement | null} */ (null));
  /** @param {() => Promise<any>} [work] */
  const act = async (work) => {
    setTold("");
    setMade(null);
    try {
      const answer = await work?.();
      if (answer?.password) setMade(answer);
      setUsers((await call("GET", "api/admin/users")).users);
      setUsage((await call("GET", "api/admin/usage?days=30")).users);
    } catch (error) {
      setTold(said(error));
    }
  };
  useEffect(() => void act(), []);
  /** @param {Event} event */
  const add = (event) => {
    event.preventDefault();
    const given = new FormData(/** @type {HTMLFormElement} */ (form.current));
    const body = { name: String(given.get("name")).trim(), admin: given.get("admin") === "on" };
    act(async () => {
      const answer = await call("POST", "api/admin/users", body);
      form.current?.reset();
      return answer;
    });
  };
  return html`<${Frame} title=${t("team.title")} wide>
    ${told && html`<${Notice} error words=${told} />`}
    ${made && html`<${Secret} words=${t("team.passwordOnce", { name: made.name })} text=${made.password} />`}
    <ul class="library people">${users.map((user) => html`<${Person} key=${user.id} user=${user} act=${act} />`)}</ul>
    <form class="inline" ref=${form} onSubmit=${add}>
      <label>${t("login.name")}<input class="field" name="name" required maxlength="64" autocomplete="off" autocapitalize="none" spellcheck=${false} /></label>
      <label class="check"><input type="checkbox" name="admin" />${t("team.admin")}</label>
      <button class="button primary">${t("team.add")}</button>
    </form>
    <h3>${t("account.usage")}</h3>
    <${Figures} rows=${usage} first=${t("team.person")} />
    <${Log} />
  <//>`;
}
