// One file of a bundle: fetched in parts that are kept, so that a download goes on where it stopped, and checked against the
// manifest's size and SHA-256 before anybody uses it.

import { Problem } from "./problems.mjs";
import { sha256 } from "./sha256.mjs";

const PART = 1 << 20; // bytes
const TRIES = 3; // without a byte of progress
const mb = (bytes) => (bytes / 1e6).toFixed(1);

/** A checked Blob, from the store or from `url`. `onBytes(have)` as it grows. */
export async function download(url, { sha256: wanted, bytes }, { store, onBytes = () => {}, signal, wait = 500 } = {}) {
  const kept = await store.get("files", wanted);
  if (kept?.size === bytes) {
    onBytes(bytes);
    return kept;
  }
  for (const again of [false, true]) {
    const names = await fetchAll(url, wanted, bytes, { store, onBytes, signal, wait });
    const blob = new Blob(await Promise.all(names.map((name) => store.get("parts", name))));
    const right = blob.size === bytes && (await sha256(blob)) === wanted;
    const drop = names.map((name) => ["parts", name, undefined]);
    await store.put(...(right ? [["files", wanted, blob], ...drop] : drop));
    if (right) return blob;
    if (again) throw damaged(url, blob.size, bytes);
  }
}

function damaged(url, seen, bytes) {
  const what = seen === bytes ? "is not the file that the model's description vouches for" : `has ${seen} bytes instead of ${bytes}`;
  const name = new URL(url).pathname.split("/").slice(-2).join("/");
  const remedy = "so it is not used. Try again later, or tell whoever runs this page.";
  return new Problem("damaged", `${name} ${what}, twice, ${remedy}`);
}

/** Names of parts that add up to the file; each try goes on where the last one stopped. */
async function fetchAll(url, hash, bytes, { store, onBytes, signal, wait }) {
  let misses = 0;
  for (;;) {
    const names = await store.keys("parts", `${hash}/`), have = await total(store, names);
    if (have >= bytes) return names;
    try {
      await fetchRest(url, hash, bytes, { store, onBytes, signal }, names, have);
    } catch (error) {
      const now = await total(store, await store.keys("parts", `${hash}/`));
      if (signal?.aborted) throw new Problem("cancelled", `Paused at ${mb(now)} of ${mb(bytes)} MB; it goes on from there.`);
      if (error instanceof Problem || error.name === "QuotaExceededError") throw error;
      misses = now > have ? 1 : misses + 1;
      if (misses >= TRIES) {
        throw new Problem("network", `The download stopped at ${mb(now)} of ${mb(bytes)} MB. Check the connection and try again: it goes on from there.`);
      }
      await new Promise((resolve) => setTimeout(resolve, wait * misses));
    }
  }
}

async function total(store, names) {
  const parts = await Promise.all(names.map((name) => store.get("parts", name)));
  return parts.reduce((sum, part) => sum + part.size, 0);
}

async function fetchRest(url, hash, bytes, { store, onBytes, signal }, names, have) {
  const headers = have ? { Range: `bytes=${have}-` } : {};
  const answer = await fetch(url, { headers, signal, cache: "no-store" });
  const resumed = answer.status === 206 && answer.headers.get("Content-Range")?.startsWith(`bytes ${have}-`);
  if (!answer.ok || (have && answer.status === 206 && !resumed)) throw await refused(answer, url, store, names);
  if (have && !resumed) {
    await store.put(...names.map((name) => ["parts", name, undefined])); // the server starts over, and so do we
    [names, have] = [[], 0];
  }
  let number = names.length, pending = [], size = 0;
  const flush = async () => {
    if (size) await store.put(["parts", `${hash}/${String(number++).padStart(6, "0")}`, new Blob(pending)]);
    [pending, size] = [[], 0];
  };
  try {
    for (const reader = answer.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) break;
      pending.push(value);
      size += value.length;
      have += value.length;
      onBytes(Math.min(have, bytes));
      if (size >= PART) await flush();
      if (have > bytes) {
        await reader.cancel();
        break;
      }
    }
  } finally {
    await flush();
  }
  if (have < bytes) throw new TypeError("the connection closed early");
}

async function refused(answer, url, store, names) {
  if (answer.status === 416 || answer.status === 206) await store.put(...names.map((name) => ["parts", name, undefined]));
  if (answer.status !== 404) return new TypeError(`the server answered ${answer.status}`);
  return new Problem("network", `${new URL(url).pathname} is not on the server (404). Tell whoever runs this page.`);
}
