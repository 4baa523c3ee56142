// Which bundle draws: the active one is on the device; a newer one on the server is fetched beside it, and takes its place in
// one transaction after it has drawn its golden picture.

import { download } from "./download.mjs";
import { parse } from "./manifest.mjs";
import { Problem } from "./problems.mjs";

export class Library {
  constructor(store, base) {
    Object.assign(this, { store, base });
  }

  /** The bundle on the device: {manifest, files}, or null. */
  async active() {
    const id = await this.store.get("state", "active");
    const text = id && (await this.store.get("bundles", id));
    if (!text) return null;
    const manifest = await parse(text), files = await this.files(manifest);
    return manifest.wanted.every((path) => files[path]?.size === manifest.files[path].bytes) ? { manifest, files } : null;
  }

  async files(manifest) {
    const blobs = manifest.wanted.map(async (path) => [path, await this.store.get("files", manifest.files[path].sha256)]);
    return Object.fromEntries(await Promise.all(blobs));
  }

  /** The server's manifest. Problem where there is none; offline, the service worker answers with the last one seen. */
  async latest() {
    let answer;
    try {
      answer = await fetch(new URL("manifest.json", this.base), { cache: "no-cache" });
    } catch {
      throw new Problem("network", "The server does not answer. Check the connection and try again.");
    }
    if (!answer.ok) throw new Problem("network", `The server has no model (it answered ${answer.status}). Tell whoever runs this page.`);
    return parse(await answer.text());
  }

  /** Bytes of `manifest` that are not on the device yet. */
  async missing(manifest) {
    const kept = new Set(await this.store.keys("files"));
    const entries = manifest.wanted.map((path) => manifest.files[path]);
    return entries.reduce((sum, { sha256, bytes }) => sum + (kept.has(sha256) ? 0 : bytes), 0);
  }

  /** Fetch and check what is missing; `onProgress(have, bytes)`. */
  async fetch(manifest, { onProgress = () => {}, signal } = {}) {
    const bytes = manifest.wanted.reduce((sum, path) => sum + manifest.files[path].bytes, 0), files = {};
    let before = 0;
    for (const path of manifest.wanted) {
      const onBytes = (have) => onProgress(before + have, bytes), entry = manifest.files[path];
      files[path] = await download(new URL(path, this.base), entry, { store: this.store, onBytes, signal });
      before += entry.bytes;
    }
    return { manifest, files };
  }

  /** The bundle that draws from now on; what only others need goes, all in one transaction. */
  async adopt({ id, text, wanted, files }) {
    const keep = new Set(wanted.map((path) => files[path].sha256));
    const gone = async (table, stays) => (await this.store.keys(table)).filter((key) => !stays(key)).map((key) => [table, key, undefined]);
    await this.store.put(
      ["bundles", id, text],
      ["state", "active", id],
      ...(await gone("bundles", (key) => key === id)),
      ...(await gone("files", (key) => keep.has(key))),
      ...(await gone("parts", () => false)),
    );
  }

  /** A version that did not draw its golden picture is not fetched again; its own files go. */
  async refuse({ id, wanted, files }) {
    const active = await this.active(), used = new Set(active?.manifest.wanted.map((path) => active.manifest.files[path].sha256));
    const gone = wanted.map((path) => files[path].sha256).filter((hash) => !used.has(hash));
    await this.store.put(["state", "refused", id], ...gone.map((hash) => ["files", hash, undefined]));
  }

  /** Whether `id` has drawn its golden picture on this device by this provider. */
  async proved(id, provider) {
    return (await this.store.get("state", "proved")) === `${id}/${provider}`;
  }

  prove(id, provider) {
    return this.store.put(["state", "proved", `${id}/${provider}`]);
  }
}
