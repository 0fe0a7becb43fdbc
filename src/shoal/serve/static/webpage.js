// @ts-check
// A chat as one web page that needs nothing else: its own style, no script, nothing loaded.
import { html, render } from "./lib.js";
import { Blocks, settled } from "./blocks.js";
import { language, languageOf, t } from "./i18n.js";

/** @typedef {import("./store.js").Message} Message */

/** @param {{message: Message, thoughts: boolean}} props */
function Turn({ message, thoughts }) {
  const reasoning = thoughts && message.reasoning;
  return html`<section class=${message.role}>
    <h2>${message.role === "user" ? t("export.you") : message.model}</h2>
    ${(message.files ?? []).map(({ name, text }) => html`<details><summary>${name}</summary><pre>${text}</pre></details>`)}
    ${reasoning && html`<details><summary>${t("think.thoughts")}</summary><${Blocks} text=${reasoning} finished /></details>`}
    ${
      message.role === "user"
        ? html`<div class="text" lang=${languageOf(message.content)}>${message.content}</div>`
        : html`<${Blocks} text=${message.content} finished />`
    }
    ${(message.tool_calls ?? []).map(
      ({ name, arguments: text, result }) => html`<details><summary>${name}</summary><pre>${text}</pre>${result && html`<pre>${result}</pre>`}</details>`,
    )}
  </section>`;
}

/**
 * @param {string} title @param {Message[]} path @param {boolean} thoughts @param {string} date
 * @returns {Promise<string>}
 */
export async function asPage(title, path, thoughts, date) {
  const box = document.createElement("div");
  box.hidden = true;
  document.body.append(box); // formulas and colours are made in a document that is shown
  render(html`<main><h1 lang=${languageOf(title)}>${title}</h1><p>${date} · Shoal</p>${path.map(
    (message) => html`<${Turn} message=${message} thoughts=${thoughts} />`,
  )}</main>`, box);
  await settled();
  for (const extra of box.querySelectorAll(".katex-html, button, svg.icon")) extra.remove(); // MathML needs no fonts
  const style = await (await fetch(new URL("./page.css", import.meta.url))).text();
  const body = box.innerHTML;
  render(null, box);
  box.remove();
  return `<!doctype html>
<html lang="${language}"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="content-security-policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>${title.replace(/&/g, "&amp;").replace(/</g, "&lt;")}</title>
<style>${style}</style></head><body>${body}</body></html>
`;
}
