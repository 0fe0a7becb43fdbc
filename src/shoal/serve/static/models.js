// @ts-check
// The models the server has: which one is chosen, and how far it has been loaded.
import { ApiError, call } from "./api.js";
import { language, t } from "./i18n.js";
import { changed, model, state } from "./store.js";

/** @typedef {import("./store.js").Model} Model */

const POLL_MS = 300;

/** Read what the server is and has; the page opens on the model used last, if it is still there. */
export async function readState() {
  try {
    const answer = await call("GET", "api/state");
    state.version = answer.version ?? "";
    state.user = answer.user ?? null;
    state.lastChange ||= answer.last_change ?? 0;
    state.models = answer.models ?? [];
    state.moreModelsHint = words(answer.more_models_hint);
    const kept = localStorage.getItem("model");
    const known = (/** @type {string | null} */ id) => state.models.some((each) => each.id === id);
    if (!known(state.modelId)) state.modelId = (known(kept) ? kept : answer.default_model) ?? state.models[0]?.id ?? "";
    state.startError = null;
  } catch (error) {
    const { message, hint, status } = /** @type {ApiError} */ (error);
    state.startError = {
      message: status === 0 ? t("error.unreachable") : message,
      hint: hint ?? "",
      needsKey: status === 401,
    };
  }
  state.ready = true;
  changed();
}

/**
 * A text that the server gives in several languages: ours, else English, else any.
 * @param {any} text @returns {string}
 */
export function words(text) {
  if (!text || typeof text === "string") return text ?? "";
  return text[language] ?? text.en ?? Object.values(text)[0] ?? "";
}

/**
 * Questions this model really answers, in the reader's language if it has any.
 * @param {Model | undefined} chosen @returns {string[]}
 */
export function examples(chosen) {
  return chosen?.examples?.[language] ?? chosen?.examples?.en ?? [];
}

/** The model of an answer, if it is still there. @param {{model?: string | null}} message */
export const modelOf = (message) => state.models.find(({ id }) => id === message.model);

/**
 * Whether the model of an answer can do something; those of upstreams cannot do all.
 * @param {{model?: string | null}} message @param {"tokens" | "answer_now" | "continue"} what
 */
export function able(message, what) {
  return modelOf(message)?.abilities?.[what] ?? true;
}

/** @param {string} id */
export function chooseModel(id) {
  state.modelId = id;
  localStorage.setItem("model", id);
  changed();
  loadModel();
}

/** Load the chosen model and watch the bytes; typing is possible meanwhile and a question waits its turn. */
export async function loadModel() {
  const chosen = model();
  if (!chosen || chosen.loaded) return;
  const { id } = chosen;
  const load = (state.modelLoad = {
    id,
    status: "loading",
    bytes_done: 0,
    bytes_total: chosen.size_bytes,
    error: null,
  });
  changed();
  try {
    await call("POST", `api/models/${encodeURIComponent(id)}/load`);
    while (state.modelLoad === load) {
      Object.assign(load, await call("GET", `api/models/${encodeURIComponent(id)}`), { id });
      if (load.status !== "loading") break;
      changed();
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    if (load.status === "ready") await readState(); // its context is known only now
  } catch (error) {
    Object.assign(load, { status: "error", error });
  }
  if (state.modelLoad === load && load.status !== "error") state.modelLoad = null;
  changed();
}
