// @ts-check
// The page's shell while the server is away. Files come from the network first, so an update is never missed; what was
// fetched is kept for the time without it. Chats and answers (/api, /v1) are never touched.
const KEPT = "shoal-shell-1";
const scope = /** @type {any} */ (globalThis);

scope.addEventListener("install", (/** @type {any} */ event) => {
  event.waitUntil(caches.open(KEPT).then((cache) => cache.add("/")));
  scope.skipWaiting();
});

scope.addEventListener("activate", (/** @type {any} */ event) => {
  const old = async () => {
    for (const name of await caches.keys()) if (name !== KEPT) await caches.delete(name);
    await scope.clients.claim();
  };
  event.waitUntil(old());
});

/** @param {Request} request @returns {Promise<Response>} */
async function fromNetwork(request) {
  const cache = await caches.open(KEPT);
  try {
    const answer = await fetch(request);
    if (answer.ok) await cache.put(request, answer.clone());
    return answer;
  } catch (error) {
    const kept = await cache.match(request);
    if (kept) return kept;
    throw error;
  }
}

scope.addEventListener("fetch", (/** @type {any} */ event) => {
  const { pathname, origin } = new URL(event.request.url);
  const ours = origin === location.origin && (pathname === "/" || pathname.startsWith("/static/"));
  if (ours && event.request.method === "GET") event.respondWith(fromNetwork(event.request));
});
