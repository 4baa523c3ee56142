// Downloads over connections that go wrong: node downloads.mjs SITE, one JSON object of outcomes on stdout.

import { createHash } from "node:crypto";
import { pathToFileURL } from "node:url";

const site = process.argv[2];
const { download } = await import(pathToFileURL(`${site}/core/download.mjs`).href);
const { memory } = await import(pathToFileURL(`${site}/core/store.mjs`).href);

const SIZE = 3_500_000, content = Uint8Array.from({ length: SIZE }, (_, i) => (i * 2654435761) >>> 24);
const entry = { sha256: createHash("sha256").update(content).digest("hex"), bytes: SIZE };
const url = "http://localhost/bundle/unet/model.onnx";

let signalled; // of the fetch under way

/** A body in pieces of 300 kB that breaks after `upTo` bytes, or ends there. */
function body(bytes, upTo = Infinity, breaks = true) {
  let at = 0;
  return new ReadableStream({
    pull(controller) {
      if (signalled?.aborted) return controller.error(signalled.reason);
      if (at >= upTo && breaks) return controller.error(new TypeError("network error"));
      if (at >= bytes.length || at >= upTo) return controller.close();
      controller.enqueue(bytes.subarray(at, (at += 300_000)));
    },
  });
}

function server(behave) {
  const ranges = [];
  globalThis.fetch = async (_, { headers, signal }) => {
    signal?.throwIfAborted();
    signalled = signal;
    ranges.push(headers.Range ?? null);
    const from = Number(/bytes=(\d+)-/.exec(headers.Range ?? "")?.[1] ?? 0);
    return behave({ from, count: ranges.length });
  };
  return ranges;
}

const whole = (from = 0) =>
  from
    ? new Response(body(content.subarray(from)), { status: 206, headers: { "Content-Range": `bytes ${from}-${SIZE - 1}/${SIZE}` } })
    : new Response(body(content));
const damaged = Uint8Array.from(content);
damaged[SIZE - 7] ^= 1;

const CASES = {
  whole: () => whole(),
  resumed: ({ from, count }) => (count === 1 ? new Response(body(content, 2_000_000)) : whole(from)),
  "no ranges": ({ count }) => (count === 1 ? new Response(body(content, 2_000_000)) : whole()),
  "damaged once": ({ count }) => new Response(body(count === 1 ? damaged : content)),
  "too long once": ({ count }) => (count === 1 ? new Response(body(Uint8Array.from({ length: SIZE + 900_000 }))) : whole()),
  "too short once": ({ from, count }) => (count === 1 ? new Response(body(content, 1_200_000, false)) : whole(from)),
  "damaged twice": () => new Response(body(damaged)),
  gone: () => new Response("", { status: 404 }),
  dead: () => Promise.reject(new TypeError("failed to fetch")),
};

async function outcome(behave, store, more = {}) {
  const ranges = server(behave);
  try {
    const blob = await download(url, entry, { store, wait: 1, ...more });
    const same = Buffer.from(await blob.arrayBuffer()).equals(Buffer.from(content));
    const parts = await store.keys("parts");
    return { ok: same && parts.length === 0, ranges };
  } catch ({ kind, message }) {
    return { kind, message, ranges, files: (await store.keys("files")).length };
  }
}

const found = {};
for (const [name, behave] of Object.entries(CASES)) found[name] = await outcome(behave, memory());

const store = memory();
await outcome(CASES.whole, store);
found.kept = await outcome(CASES.dead, store);

const half = memory(), stop = new AbortController();
found.paused = await outcome(CASES.whole, half, { signal: stop.signal, onBytes: (have) => have > 2_000_000 && stop.abort() });
found["resumed after closing"] = await outcome(({ from }) => (from ? whole(from) : new Response("", { status: 500 })), half);

console.log(JSON.stringify(found));
