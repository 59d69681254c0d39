/**
 * Keeps the page itself, so that it can be opened and reloaded without the server. Data is not its business:
 * that is the client's.
 *
 * The page is fetched when the server answers, and taken from the cache when it does not. Files under
 * /assets/ carry a hash of their content in their name, so a cached one is never out of date.
 */
const CACHE = "page-1";

const hashed = (path) => path.startsWith("/assets/");

/** Keeps index.html and all it names; drops assets that it no longer names. */
async function keep(response) {
  const cache = await caches.open(CACHE);
  const html = await response.clone().text();
  const named = [...html.matchAll(/(?:src|href)="(\/[^"]+)"/g)].map(([, path]) => path);
  for (const path of named) {
    if (!hashed(path) || (await cache.match(path)) === undefined) await cache.add(path);
  }
  await cache.put("/", response);
  for (const request of await cache.keys()) {
    const { pathname } = new URL(request.url);
    if (pathname !== "/" && !named.includes(pathname)) await cache.delete(request);
  }
}

async function page(request, event) {
  try {
    const response = await fetch(request);
    if (response.ok) event.waitUntil(keep(response.clone()));
    return response;
  } catch (error) {
    const kept = await caches.match("/", { cacheName: CACHE });
    if (kept === undefined) throw error;
    return kept;
  }
}

async function file(request) {
  const kept = await caches.match(request, { cacheName: CACHE });
  if (kept === undefined) return fetch(request);
  return hashed(new URL(request.url).pathname) ? kept : fetch(request).catch(() => kept);
}

self.addEventListener("install", (event) => {
  self.skipWaiting();
  event.waitUntil(fetch("/", { cache: "no-cache" }).then(keep));
});
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  const { origin, pathname } = new URL(request.url);
  if (request.method !== "GET" || origin !== self.location.origin || pathname.startsWith("/v1/")) return;
  if (request.mode === "navigate") event.respondWith(page(request, event));
  else event.respondWith(file(request));
});
