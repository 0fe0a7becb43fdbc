// @ts-check
// The borrowed libraries, named in one place. Versions, sources and hashes: vendor/vendor.toml.
import { Component, Fragment, h, render } from "./vendor/preact-11.2.0/preact.mjs";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/preact-11.2.0/hooks.mjs";
import htm from "./vendor/htm-3.1.1/htm.mjs";
import { Marked } from "./vendor/marked-18.2.1/marked.esm.js";

export { Component, Fragment, h, render, useEffect, useLayoutEffect, useMemo, useRef, useState, Marked };

/** Markup in template strings: html`<b>${text}</b>` is a preact node; text stays text. */
export const html = htm.bind(h);

const SPRITE = new URL("./vendor/lucide-static-1.62.0/sprite.svg", import.meta.url).pathname;

/** @param {{name: string}} props one of the icons listed in vendor.toml; decoration only, its button has the name */
export function Icon({ name }) {
  return html`<svg class="icon" aria-hidden="true" viewBox="0 0 24 24"><use href=${`${SPRITE}#${name}`} /></svg>`;
}

/**
 * A view that is drawn again only when one of its props is another value.
 * @param {(props: any) => any} view
 * @param {string[]} [ignored] props that are new objects each time; others stand for them
 */
export function memo(view, ignored = []) {
  return class extends Component {
    /** @param {any} next */
    shouldComponentUpdate(next) {
      const now = /** @type {any} */ (this.props);
      return Object.keys({ ...now, ...next }).some((key) => next[key] !== now[key] && !ignored.includes(key));
    }
    render() {
      return h(view, this.props);
    }
  };
}

/** A style sheet that is not always needed. @param {string} path @returns {Promise<unknown>} when it is there */
export function addStyle(path) {
  const sheet = Object.assign(document.createElement("link"), { rel: "stylesheet" });
  sheet.href = new URL(path, import.meta.url).href;
  document.head.append(sheet);
  return new Promise((done) => (sheet.onload = sheet.onerror = done));
}

/**
 * Load KaTeX and its style sheet; formulas are built as nodes, never as HTML.
 * @returns {Promise<(node: HTMLElement, formula: string, display: boolean) => void>} throws for what is no formula
 */
export function loadMaths() {
  maths ??= (async () => {
    addStyle("./vendor/katex-0.19.1/katex.min.css");
    // @ts-ignore a classic script: it sets globalThis.katex
    await import("./vendor/katex-0.19.1/katex.min.js");
    const limits = { trust: false, strict: "ignore", maxExpand: 100, maxSize: 20 };
    return (node, formula, displayMode) => {
      const made = document.createElement("span");
      // @ts-ignore
      globalThis.katex.render(formula, made, { displayMode, throwOnError: true, ...limits });
      node.replaceChildren(made);
    };
  })();
  return maths;
}
/** @type {ReturnType<typeof loadMaths> | undefined} */
let maths;

/**
 * Load the two libraries that colour code; the only string that ever becomes HTML passes through here.
 * @returns {Promise<{colour: (node: HTMLElement, code: string, language: string) => void}>}
 */
export function loadHighlighter() {
  highlighter ??= Promise.all([
    import("./vendor/highlight.js-11.12.0/highlight.min.js"),
    // @ts-ignore a classic script: it sets globalThis.DOMPurify
    import("./vendor/dompurify-3.4.18/purify.min.js"),
  ]).then(([{ default: hljs }]) => ({
    colour(node, code, language) {
      const known = language && hljs.getLanguage(language);
      if (!known && (language || code.length > 5_000)) return;
      const markup = known ? hljs.highlight(code, { language, ignoreIllegals: true }) : hljs.highlightAuto(code);
      // @ts-ignore
      const clean = globalThis.DOMPurify.sanitize(markup.value, {
        ALLOWED_TAGS: ["span"],
        ALLOWED_ATTR: ["class"],
        RETURN_TRUSTED_TYPE: true,
      });
      node.innerHTML = clean;
    },
  }));
  return highlighter;
}
/** @type {ReturnType<typeof loadHighlighter> | undefined} */
let highlighter;
