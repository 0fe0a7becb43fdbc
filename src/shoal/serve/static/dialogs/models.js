// @ts-check
// The models of this machine, for its admin: fetch one from the hub, import one from the operator's folder, remove one.
import { html, useEffect, useState } from "../lib.js";
import { call } from "../api.js";
import { Frame } from "../dialogs.js";
import { bytes, t } from "../i18n.js";
import { readState } from "../models.js";
import { IconButton, Notice, Progress, said } from "../parts.js";
import { sizes } from "../picker.js";
import { showToast, state } from "../store.js";

/**
 * @typedef {{id: string, kind: string, what: string, status: string, bytes_done: number, bytes_total: number,
 *   error: string | null, model: string | null}} Job
 * @typedef {{jobs: Job[], importable: string[], import_folder: boolean, unfinished: string[], removable: string[]}} Jobs
 */
const POLL_MS = 500;
const isGoing = (/** @type {Job} */ job) => job.status === "waiting" || job.status === "running";

/** @param {{job: Job, end: () => void}} props */
function JobRow({ job, end }) {
  const { status, bytes_done: done, bytes_total: total } = job;
  const going = isGoing(job);
  const words = t(`models.${status}`, { done: bytes(done), total: bytes(total) });
  const view =
    status === "failed"
      ? html`<${Notice} error words=${words} hint=${job.error ?? ""} />`
      : html`<${Progress} words=${words} done=${status === "done" ? 1 : done} total=${status === "done" ? 1 : total} />`;
  const name = t(going ? "models.cancel" : "models.forget", { name: job.what });
  return html`<li><div><b>${job.what}</b>${view}</div><${IconButton} icon="x" name=${name} onClick=${end} /></li>`;
}

export function Models() {
  const [known, setKnown] = useState(/** @type {Jobs | null} */ (null));
  const [failed, setFailed] = useState("");
  const [hubName, setHubName] = useState("");
  const [sure, setSure] = useState(""); // the model that is about to be removed
  const read = async () => {
    try {
      setKnown(await call("GET", "api/model-jobs"));
    } catch (error) {
      setFailed(said(error));
    }
  };
  /** @param {"POST" | "DELETE"} method @param {string} path @param {object} [body] */
  const act = async (method, path, body) => {
    try {
      await call(method, path, body);
      setHubName("");
    } catch (error) {
      showToast(said(error));
    }
    setSure("");
    await read();
    await readState();
  };
  const running = known?.jobs.some(isGoing) ?? false;
  useEffect(() => void read(), []);
  useEffect(() => {
    if (!running) {
      readState(); // what has come is offered
      return undefined;
    }
    const timer = setInterval(read, POLL_MS);
    return () => clearInterval(timer);
  }, [running]);
  if (failed) return html`<${Frame} title=${t("models.title")}><${Notice} error words=${failed} /><//>`;
  const { jobs = [], importable = [], unfinished = [], removable = [] } = known ?? {};
  const pull = (/** @type {string} */ name) => act("POST", "api/model-jobs", { pull: name });
  const submit = (/** @type {Event} */ event) => {
    event.preventDefault();
    pull(hubName.trim());
  };
  const cut = unfinished.filter((name) => !jobs.some((job) => job.what === name && isGoing(job)));
  const row = (/** @type {import("../store.js").Model} */ each) => html`<li key=${each.id}>
    <div><b>${each.name}</b><p class="facts">${each.error ?? sizes(each)}</p></div>
    ${removable.includes(each.id) && sure !== each.id && html`<${IconButton} icon="trash-2" name=${t("models.remove", { name: each.name })} onClick=${() => setSure(each.id)} />`}
    ${sure === each.id && html`<button type="button" class="button danger" onClick=${() => act("DELETE", `api/models/${encodeURIComponent(each.id)}`)}>${t("models.sure")}</button>`}
  </li>`;
  return html`<${Frame} title=${t("models.title")} wide>
    <ul class="library">${state.models.map(row)}</ul>
    ${
      jobs.length > 0 &&
      html`<ul class="library" aria-live="polite">${jobs.map((job) => html`<${JobRow} key=${job.id} job=${job} end=${() => act("DELETE", `api/model-jobs/${job.id}`)} />`)}</ul>`
    }
    <h3>${t("models.pull")}</h3>
    <p>${t("models.pullAbout")}</p>
    <form class="line" onSubmit=${submit}>
      <input class="field" value=${hubName} maxlength="200" placeholder="owner/model" aria-label=${t("models.pull")}
        onInput=${(/** @type {any} */ event) => setHubName(event.target.value)} />
      <button class="button primary" disabled=${!hubName.includes("/")}>${t("models.fetch")}</button>
    </form>
    ${cut.map((name) => html`<p class="choice" key=${name}>${t("models.unfinished", { name })}
      <button type="button" class="button" onClick=${() => pull(name)}>${t("action.goOn")}</button></p>`)}
    ${
      known?.import_folder &&
      html`<h3>${t("models.import")}</h3>
        ${importable.map((name) => html`<p class="choice" key=${name}>${name}
          <button type="button" class="button" onClick=${() => act("POST", "api/model-jobs", { import_name: name })}>${t("models.take")}</button></p>`)}
        ${importable.length === 0 && html`<p>${t("models.none")}</p>`}`
    }
  <//>`;
}
