// The service worker: keeps the app on the device for offline use, and adds the two headers that let a page use threads, so that
// any static host will do. A new version waits until no page of the old one is open. Bundle files are not its business: the
// page keeps those itself, checked.

const VERSION = null, FILES = [];
const CACHE = `kdc-edge-${VERSION}`;
const MANIFEST = new URL("bundle/manifest.json", self.registration.scope).href;
const BUNDLE = new URL("bundle/", self.registration.scope).href;

self.addEventListener("install", (event) => event.waitUntil(keep()));
self.addEventListener("activate", (event) => event.waitUntil(takeOver()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  if (request.method !== "GET" || new URL(request.url).origin !== location.origin) return;
  if (request.url === MANIFEST) event.respondWith(newest(request));
  else if (!request.url.startsWith(BUNDLE)) event.respondWith(kept(event));
});

async function keep() {
  const cache = await caches.open(CACHE);
  await Promise.all(["./", ...FILES].map(async (name) => {
    const answer = await fetch(name, { cache: "no-cache" });
    if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
    await cache.put(name, isolated(answer));
  }));
}

async function takeOver() {
  const old = (await caches.keys()).filter((name) => name.startsWith("kdc-edge-") && name !== CACHE);
  await Promise.all(old.map((name) => caches.delete(name)));
  await self.clients.claim();
}

/** From the device; what was not kept at installation is kept when it first comes. */
async function kept(event) {
  const { request } = event, cache = await caches.open(CACHE);
  const found = await cache.match(request, { ignoreSearch: true });
  if (found) return found;
  try {
    const answer = isolated(await fetch(request));
    if (answer.status === 200) event.waitUntil(cache.put(request, answer.clone()));
    return answer;
  } catch {
    return new Response("This page is not on the device, and the network does not answer.", { status: 504 });
  }
}

/** From the network, and the last one seen where it does not answer. */
async function newest(request) {
  const cache = await caches.open("bundle");
  try {
    const answer = await fetch(request);
    if (answer.ok) await cache.put(request.url, answer.clone());
    return answer;
  } catch {
    return (await cache.match(request.url)) ?? new Response("", { status: 504 });
  }
}

function isolated(answer) {
  if (answer.type === "opaque" || !answer.status) return answer;
  const headers = new Headers(answer.headers);
  headers.set("Cross-Origin-Opener-Policy", "same-origin");
  headers.set("Cross-Origin-Embedder-Policy", "require-corp");
  headers.set("Cross-Origin-Resource-Policy", "same-origin");
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}
