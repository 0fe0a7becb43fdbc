// @ts-check
// Tokens to preact nodes. Text is text everywhere: raw HTML in an answer is shown, never run (innerHTML: lib.js only).
import { html, loadHighlighter, loadMaths, memo, useLayoutEffect, useMemo, useRef } from "./lib.js";
import { languageOf, t } from "./i18n.js";
import { BlockReader } from "./markdown.js";
import { CopyButton } from "./parts.js";

/** @typedef {import("./markdown.js").Token} Token */

const ENTITIES = {
  amp: "&",
  lt: "<",
  gt: ">",
  quot: '"',
  apos: "'",
  nbsp: "\u00a0",
  copy: "©",
  hellip: "…",
  mdash: "—",
  ndash: "–",
};
const COLOUR_AT_MOST = 50_000;

/** @param {string} text with character references, as markdown allows them */
function decoded(text) {
  return text.replace(/&(?:#(\d{1,7})|#x([\da-f]{1,6})|(\w+));/gi, (whole, decimal, hex, name) => {
    const code = decimal ? Number(decimal) : hex ? parseInt(hex, 16) : -1;
    if (code > 0 && code <= 0x10ffff) return String.fromCodePoint(code);
    return Object.hasOwn(ENTITIES, name ?? "") ? ENTITIES[/** @type {keyof typeof ENTITIES} */ (name)] : whole;
  });
}

/** The address if it is one we let people follow. @param {string} href */
function safeAddress(href) {
  try {
    const address = new URL(decoded(href));
    return ["http:", "https:", "mailto:"].includes(address.protocol) ? address : null;
  } catch {
    return null; // relative, or no address at all: such a link is shown as text
  }
}

/**
 * A link, and where it leads unless its text says so.
 * @param {string} href @param {any} inside @param {string} label `inside` as a text
 */
function link(href, inside, label) {
  const address = safeAddress(href);
  if (!address) return html`<span title=${href}>${inside}</span>`;
  const host = address.host || address.pathname;
  return html`<a href=${address.href} title=${address.href} target="_blank" rel="noopener noreferrer">${inside}</a>${
    label.includes(host) ? null : html`<span class="host"> (${host})</span>`
  }`;
}

/** @param {Token[] | undefined} tokens @returns {any} */
function inline(tokens) {
  return (tokens ?? []).map((token) => {
    switch (token.type) {
      case "strong":
        return html`<strong>${inline(token.tokens)}</strong>`;
      case "em":
        return html`<em>${inline(token.tokens)}</em>`;
      case "del":
        return html`<del>${inline(token.tokens)}</del>`;
      case "codespan":
        return html`<code>${token.text}</code>`;
      case "br":
        return html`<br />`;
      case "link":
        return link(token.href, inline(token.tokens), token.text);
      case "image":
        return link(token.href, [t("answer.image", { name: decoded(token.text) || token.href })], "");
      case "formula":
        return html`<${Formula} text=${token.text} display=${token.display} />`;
      case "text":
        return token.tokens ? inline(token.tokens) : decoded(token.text);
      case "escape":
        return token.text;
      default:
        return token.raw; // html among them
    }
  });
}

/** @type {Set<Promise<void>>} what is still being coloured or set */
const working = new Set();
/** When all code is coloured and all formulas are set. */
export const settled = () => Promise.all(working);

/**
 * Show a text at once, and its better form as soon as the library for it is loaded.
 * @param {string} text @param {boolean} wanted @param {() => Promise<(node: HTMLElement) => void>} load
 * @param {any[]} uses what else the better form depends on
 */
function useBetter(text, wanted, load, uses) {
  const node = useRef(/** @type {HTMLElement | null} */ (null));
  useLayoutEffect(() => {
    const element = /** @type {HTMLElement} */ (node.current);
    let stale = false;
    element.textContent = text;
    if (wanted) {
      const work = load().then((improve) => {
        if (!stale) improve(element);
      });
      const done = work.catch(() => {}).then(() => void working.delete(done)); // without the library the text stands
      working.add(done);
    }
    return () => {
      stale = true;
    };
  }, [text, wanted, ...uses]);
  return node;
}

/** A formula; what KaTeX cannot read stays as its source. @param {{text: string, display?: boolean}} props */
function Formula({ text, display = false }) {
  const load = async () => {
    const set = await loadMaths();
    return (/** @type {HTMLElement} */ node) => set(node, text, display);
  };
  const node = useBetter(text, true, load, [display]);
  return html`<span class=${display ? "formula display" : "formula"} ref=${node}></span>`;
}

/** @param {{token: Token}} props */
function ListBlock({ token }) {
  const items = token.items.map((/** @type {Token} */ item) => {
    const box =
      item.task && html`<input type="checkbox" disabled checked=${item.checked} aria-label=${t("answer.task")} />`;
    return html`<li class=${item.task ? "task" : ""}>${box}${item.tokens.map((/** @type {Token} */ inner) =>
      inner.type === "checkbox" ? null : inner.type === "text" ? inline([inner]) : html`<${Block} token=${inner} />`,
    )}</li>`;
  });
  return token.ordered
    ? html`<ol start=${token.start === "" ? 1 : token.start}>${items}</ol>`
    : html`<ul>${items}</ul>`;
}

/** @param {{token: Token}} props */
function TableBlock({ token }) {
  /** @param {string} tag @param {any} cell @param {number} column */
  const cell = (tag, cell, column) => html`<${tag} class=${token.align[column] ?? ""}>${inline(cell.tokens)}</${tag}>`;
  return html`<div class="table" tabindex="0" role="group" aria-label=${t("answer.table")}><table>
    <thead><tr>${token.header.map((/** @type {any} */ c, /** @type {number} */ i) => cell("th", c, i))}</tr></thead>
    <tbody>${token.rows.map((/** @type {any[]} */ row) => html`<tr>${row.map((c, i) => cell("td", c, i))}</tr>`)}</tbody>
  </table></div>`;
}

/**
 * Code with its language and a copy button. Coloured once its fence is closed.
 * @param {{code: string, language: string, open: boolean}} props
 */
function CodeBlock({ code, language, open }) {
  const load = async () => {
    const { colour } = await loadHighlighter();
    return (/** @type {HTMLElement} */ element) => colour(element, code, language);
  };
  const node = useBetter(code, !open && code.length <= COLOUR_AT_MOST, load, [language]);
  return html`<figure class="code">
    <figcaption>
      <span>${language || t("answer.code")}</span><${CopyButton} text=${() => code} name=${t("action.copyCode")} label />
    </figcaption>
    <pre tabindex="0"><code translate="no" ref=${node}></code></pre>
  </figure>`;
}

/** @param {{token: Token, open?: boolean}} props */
function Block({ token, open = false }) {
  switch (token.type) {
    case "heading":
      return html`<${`h${Math.min(token.depth + 1, 6)}`} class=${`level${token.depth}`}>${inline(token.tokens)}<//>`;
    case "paragraph":
      return html`<p>${inline(token.tokens)}</p>`;
    case "text":
      return html`<p>${inline([token])}</p>`;
    case "code":
      return html`<${CodeBlock} code=${token.text} language=${(token.lang ?? "").split(/\s/)[0]} open=${open} />`;
    case "list":
      return html`<${ListBlock} token=${token} />`;
    case "table":
      return html`<${TableBlock} token=${token} />`;
    case "blockquote":
      return html`<blockquote>${token.tokens.map((/** @type {Token} */ inner) => html`<${Block} token=${inner} />`)}</blockquote>`;
    case "hr":
      return html`<hr />`;
    case "formula":
      return html`<${Formula} text=${token.text} display />`;
    case "space":
    case "def":
      return null;
    default:
      return html`<p class="raw">${token.raw.trim()}</p>`; // HTML among them
  }
}

/** A block of the answer itself: drawn again only when its own text (`raw`) changes, and once at the end. */
const TopBlock = memo(Block, ["token"]);

/**
 * An answer, or the thoughts before it, block by block.
 * @param {{text: string, finished: boolean}} props
 */
export const Blocks = memo((/** @type {{text: string, finished: boolean}} */ { text, finished }) => {
  const reader = useMemo(() => new BlockReader(), []);
  /** @type {Token[]} */
  const tokens = reader.read(text, finished).filter((/** @type {Token} */ token) => token.type !== "space" && token.type !== "def");
  const views = tokens.map((/** @type {Token} */ token, index) => {
    const open = !finished && index === tokens.length - 1 && !/\n\s*(```+|~~~+)\s*$/.test(token.raw);
    return html`<${TopBlock} key=${index} token=${token} raw=${token.raw} finished=${finished} open=${open} />`;
  });
  return html`<div class="markdown" lang=${languageOf(text)}>${views}</div>`;
});
