// @ts-check
// Markdown to tokens, also while it is still being written. Tokens become preact nodes in blocks.js; no HTML is made.
import { Marked } from "./lib.js";

/** @typedef {any} Token one of marked's tokens: {type, raw, ...} */

const CJK =
  "[\\p{Script=Han}\\p{Script=Hiragana}\\p{Script=Katakana}\\p{Script=Hangul}\\u3000-\\u303f\\uff00-\\uffef·…—“”‘’]";
const AT_START = new RegExp(`^${CJK}`, "u");
const AT_END = new RegExp(`${CJK}$`, "u");
// What emphasis may hold: escapes and code spans whole, the other sort of star, no empty line.
const HELD = {
  "**": /^\*\*(?![\s*])((?:\\[^]|`[^`]*`|\*(?!\*)|[^\\`*\n]|\n(?!\s*\n))+?)(?<![\s\\])\*\*(?!\*)/,
  "*": /^\*(?![\s*])((?:\\[^]|`[^`]*`|\*\*[^*]+\*\*|[^\\`*\n]|\n(?!\s*\n))+?)(?<![\s\\])\*(?!\*)/,
  "~~": /^~~(?![\s~])((?:\\[^]|`[^`]*`|[^\\`~\n]|\n(?!\s*\n))+?)(?<![\s\\])~~(?!~)/,
};
const KIND = { "**": "strong", "*": "em", "~~": "del" };

/**
 * CommonMark decides by spaces and punctuation whether a star opens or closes; Japanese and Chinese write no spaces,
 * so `**文。**続き` stays raw (commonmark-spec#650). Where the inner edge or the next character is CJK, the marks
 * nearest to each other belong together.
 */
const cjkEmphasis = {
  name: "cjkEmphasis",
  level: /** @type {const} */ ("inline"),
  /** @param {string} source */
  start: (source) => source.search(/\*|~~/),
  /** @this {any} @param {string} source */
  tokenizer(source) {
    const mark = /** @type {keyof typeof HELD} */ (/^(\*\*|\*|~~)/.exec(source)?.[1]);
    const found = mark && HELD[mark].exec(source);
    if (!found) return undefined;
    const [raw, inner] = found;
    if (!AT_START.test(inner) && !AT_END.test(inner) && !AT_START.test(source.slice(raw.length))) return undefined;
    return { type: KIND[mark], raw, text: inner, tokens: this.lexer.inlineTokens(inner) };
  },
};

// \( \), \[ \], $$ $$ are formulas. One $ is one only if it looks like neither money nor a shell variable: no digit
// or space after the opening mark, no space before the closing one and no letter or digit after it.
const FORMULAS = [
  /^\$\$([^]+?)\$\$/,
  /^\\\[([^]+?)\\\]/,
  /^\\\(([^]+?)\\\)/,
  /^\$(?![\s\d$])((?:\\[^]|[^\\$\n])+?)(?<![\s\\])\$(?![\p{L}\p{N}$])/u,
];

/** @param {"block" | "inline"} level @param {RegExp} start */
function formula(level, start) {
  return {
    name: `formula-${level}`,
    level,
    /** @param {string} source */
    start: (source) => source.search(start),
    /** @param {string} source */
    tokenizer(source) {
      for (const [index, form] of FORMULAS.entries()) {
        const found = form.exec(source);
        if (!found || found[1].length > 10_000 || /\n\s*\n/.test(found[1])) continue;
        const display = index < 2;
        if (level === "inline") return { type: "formula", raw: found[0], text: found[1].trim(), display };
        const end = /^[ \t]*(?:\n|$)/.exec(source.slice(found[0].length)); // a block formula has its line to itself
        if (display && end) return { type: "formula", raw: found[0] + end[0], text: found[1].trim(), display };
      }
      return undefined;
    },
  };
}

const marked = new Marked({
  gfm: true,
  extensions: [cjkEmphasis, formula("block", /(?:^|\n)(?:\$\$|\\\[)/), formula("inline", /\$|\\\(|\\\[/)],
});

/** @param {string} text @returns {Token[]} */
export function lex(text) {
  return marked.lexer(text);
}

/** Have the browser compile the lexer's regular expressions (some 30 ms) while the page waits for its chat. */
export function warmUp() {
  for (const sample of ["# a\n\n> b", "- c\n- d\n\n|e|\n|-|\n|f|", "*g* **h** `i` [j](k) <l> ~~m~~\n\nn\n---"]) {
    for (const again of [1, 2]) setTimeout(() => lex(sample + again));
  }
}

/**
 * Close what an unfinished paragraph leaves open, so that it looks as it will: code, emphasis, links, formulas.
 * @param {string} source the raw text of one block, cut anywhere
 */
export function heal(source) {
  const text = source.trimEnd();
  /** @type {string[]} */
  const open = [];
  let link = -1;
  let label = "";
  for (let i = text.lastIndexOf("\n\n") + 1; i < text.length;) {
    const rest = text.slice(i);
    const code = /^`+/.exec(rest)?.[0];
    const maths = /^(?:\\\(|\\\[|\$\$)/.exec(rest)?.[0];
    if (code || maths) {
      const mark = code ?? /** @type {string} */ (maths);
      const close = code ?? { "\\(": "\\)", "\\[": "\\]", $$: "$$" }[mark] ?? "";
      const end = text.indexOf(close, i + mark.length);
      if (end >= 0) i = end + close.length;
      else if (i + mark.length === text.length) return text.slice(0, i) + closers(open);
      else return text + close + closers(open);
      continue;
    }
    const mark = /^(\*\*|\*|~~)/.exec(rest)?.[0];
    if (rest[0] === "\\") i += 2;
    else if (mark) {
      const closes = open.at(-1) === mark && !/\s/.test(text[i - 1] ?? " ");
      if (closes) open.pop();
      else if (i + mark.length === text.length) return text.slice(0, i) + closers(open);
      else if (!/\s/.test(text[i + mark.length])) open.push(mark);
      i += mark.length;
    } else {
      const target = /^\[([^\[\]\n]*)\]\([^)\n]*$/.exec(rest);
      if (target) {
        link = i;
        label = target[1];
        break;
      }
      i += 1;
    }
  }
  const healed = link >= 0 ? text.slice(0, link) + label : text;
  return healed + closers(open);
}

/** @param {string[]} open */
function closers(open) {
  return open.toReversed().join("");
}

/** The part of a block that heal may touch: fenced code, tables and HTML look after themselves. @param {Token} token */
function healed(token) {
  if (["code", "html", "table", "hr", "space", "def", "formula"].includes(token.type)) return [token];
  const raw = heal(token.raw);
  return raw === token.raw ? [token] : lex(raw);
}

/**
 * Reads a growing text block by block. A block is settled once two later blocks have begun (one may still join a
 * list: `2` becomes `2.`); settled blocks keep their identity, so their nodes are not drawn again.
 */
export class BlockReader {
  /** @type {Token[]} */
  settled = [];
  settledLength = 0;

  /**
   * @param {string} text all of it so far
   * @param {boolean} finished no more will come: everything is read once as a whole
   * @returns {Token[]}
   */
  read(text, finished) {
    const source = text.replace(/\r\n?/g, "\n");
    if (finished) return lex(source);
    if (source.length < this.settledLength) {
      this.settled = [];
      this.settledLength = 0;
    }
    const tokens = lex(source.slice(this.settledLength));
    const solid = tokens.flatMap((token, index) => (token.type === "space" ? [] : [index]));
    if (solid.length > 2) {
      const done = tokens.splice(0, solid[solid.length - 2]);
      this.settledLength += done.reduce((sum, token) => sum + token.raw.length, 0);
      this.settled = this.settled.concat(done);
    }
    const last = tokens.findLastIndex((token) => token.type !== "space");
    const open = last < 0 ? [] : [...tokens.slice(0, last), ...healed(tokens[last])];
    return this.settled.concat(open);
  }
}
