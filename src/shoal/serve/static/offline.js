// @ts-check
// The service worker that keeps the page's shell (sw.js). Its address is the one script URL that is ever made.

const ADDRESS = "static/sw.js";

/** Install it where the browser allows: on https and on this machine itself. */
export function keepShell() {
  if (!("serviceWorker" in navigator)) return;
  // @ts-ignore not in every browser
  const { trustedTypes } = globalThis;
  const createScriptURL = (/** @type {string} */ url) => {
    if (url === ADDRESS) return url;
    throw new TypeError(`no script: ${url}`);
  };
  const policy = trustedTypes?.createPolicy("shoal", { createScriptURL }) ?? { createScriptURL };
  navigator.serviceWorker.register(policy.createScriptURL(ADDRESS), { scope: "/" }).catch(() => {}); // private windows
}
