// @ts-check
// The page's words in three languages, and numbers and dates as each language writes them.

/** Languages of the page, each by its own name. */
export const LANGUAGES = { en: "English", ja: "日本語", zh: "中文" };
/** @typedef {keyof typeof LANGUAGES} Language */

/** @type {Language} */
export let language = "en";
/** @type {Record<string, string>} */
let words = {};
const parts = ["."]; // folders of words that are loaded

/** The language chosen before, else the first of the browser's that we speak. @returns {Language} */
export function preferredLanguage() {
  const chosen = localStorage.getItem("language");
  for (const tag of [chosen, ...navigator.languages]) {
    const short = (tag ?? "").slice(0, 2);
    if (short in LANGUAGES) return /** @type {Language} */ (short);
  }
  return "en";
}

/** @param {string} part @param {Language} of @returns {Promise<Record<string, string>>} */
async function read(part, of) {
  const answer = await fetch(new URL(`./i18n/${part}/${of}.json`, import.meta.url));
  return answer.json();
}

/** Load the words of a part that is not always needed. @param {"dialogs" | "cost" | "account"} part */
export async function withWords(part) {
  if (parts.includes(part)) return;
  Object.assign(words, await read(part, language));
  parts.push(part);
}

/** @param {Language} next */
export async function setLanguage(next) {
  words = Object.assign({}, ...(await Promise.all(parts.map((part) => read(part, next)))));
  language = next;
  document.documentElement.lang = next;
}

/**
 * The words for a key. `{name}` in them is filled from `values`; a `count` picks `key.one` or `key.other`.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function t(key, values = {}) {
  const count = values.count;
  const full = typeof count === "number" ? `${key}.${new Intl.PluralRules(language).select(count)}` : key;
  return (words[full] ?? key).replace(/(?<!\{)\{(\w+)\}/g, (_, name) => {
    const value = values[name];
    return typeof value === "number" ? number(value) : String(value ?? "");
  });
}

/** @type {Map<string, Intl.NumberFormat>} they are slow to make */
const formats = new Map();

/** @param {Intl.NumberFormatOptions} options */
function format(options) {
  const key = language + JSON.stringify(options);
  const made = formats.get(key) ?? new Intl.NumberFormat(language, options);
  formats.set(key, made);
  return made;
}

/** @param {number} value @param {number} [digits] after the point, at most */
export function number(value, digits = 0) {
  return format({ maximumFractionDigits: digits }).format(value);
}

/** 0.04, 4.2 and 42: two figures that count. @param {number} value */
export function seconds(value) {
  return t("unit.seconds", { n: number(value, value < 1 ? 2 : value < 10 ? 1 : 0) });
}

/** @param {number} value */
export function bytes(value) {
  const [unit, size] = value >= 1e9 ? ["gigabyte", 1e9] : value >= 1e6 ? ["megabyte", 1e6] : ["kilobyte", 1e3];
  const digits = value / size < 10 ? 1 : 0;
  return format({ style: "unit", unit, maximumFractionDigits: digits }).format(value / size);
}

/** 135 M, 7.2 B, 1.3億: counts of parameters and tokens. @param {number} value */
export function compact(value) {
  return format({ notation: "compact", maximumSignificantDigits: 3 }).format(value);
}

/** @param {number} value @param {string} [currency] */
export function money(value, currency = "USD") {
  const form = {
    style: /** @type {const} */ ("currency"),
    currency,
    currencyDisplay: /** @type {const} */ ("narrowSymbol"),
    maximumSignificantDigits: 2,
  };
  const shown = format(form);
  return value > 0 && value < 1e-7 ? `< ${shown.format(1e-7)}` : shown.format(value);
}

/** @param {number} time seconds since 1970 */
export function dateTime(time) {
  return new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" }).format(new Date(time * 1_000));
}

/** @param {number} value 0 to 1 */
export function percent(value) {
  return format({ style: "percent" }).format(value);
}

/**
 * The heading under which a chat of this day is listed.
 * @param {Date} date @param {Date} now
 */
export function dayGroup(date, now) {
  const midnight = new Date(now.getFullYear(), now.getMonth(), now.getDate()).getTime();
  const days = Math.ceil((midnight - date.getTime()) / 86_400_000);
  if (days <= 0) return t("history.today");
  if (days === 1) return t("history.yesterday");
  if (days <= 7) return t("history.week");
  if (days <= 30) return t("history.month");
  return new Intl.DateTimeFormat(language, { year: "numeric", month: "long" }).format(date);
}

/**
 * The `lang` of a text, so that Han characters get the right shapes: kana is Japanese, Hangul Korean; Han alone is
 * Japanese on a Japanese page and Chinese elsewhere; anything else is left open.
 * @param {string} text
 */
export function languageOf(text) {
  const start = text.slice(0, 2_000);
  if (/[\u3040-\u30ff]/.test(start)) return "ja";
  if (/[\uac00-\ud7af]/.test(start)) return "ko";
  if (/\p{Script=Han}/u.test(start)) return language === "ja" ? "ja" : "zh";
  return undefined;
}
