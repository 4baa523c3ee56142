// From a store and a server to something that draws: fetches the bundle, chooses the device, proves both, swaps versions.
// `tell({type, …})` hears of it: progress {have, bytes}, notice {text}, device {device, found}, ready {manifest}.

import { capabilities, choose, describe } from "./core/device.mjs";
import { Engine } from "./core/engine.mjs";
import { Library } from "./core/library.mjs";
import { memory, open } from "./core/store.mjs";

const mb = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;

export class Studio {
  constructor(tell = () => {}, base = new URL("bundle/", document.baseURI)) {
    Object.assign(this, { tell, base, preferences: {}, engine: null, manifest: null, device: null });
  }

  /** Ready to draw afterwards. Problems are thrown; calling again goes on where it stopped. */
  async start(preferences = {}, signal) {
    this.preferences = preferences;
    this.found ??= await capabilities();
    await this.openStore();
    const kept = await this.library.active();
    if (kept) {
      await this.use(kept);
      return;
    }
    const manifest = await this.library.latest();
    await this.makeRoom(manifest);
    const fetched = await this.fetch(manifest, signal);
    await this.use(fetched);
    await this.library.adopt(manifest);
  }

  async openStore() {
    if (this.store) return;
    try {
      this.keep(await open());
    } catch {
      this.forgetful("This browser keeps nothing for this page (a private window, perhaps)");
    }
  }

  keep(store) {
    this.store = store;
    this.library = new Library(store, this.base);
  }

  forgetful(why) {
    this.keep(memory());
    this.tell({ type: "notice", text: `${why}, so the model is fetched again at the next visit and pictures are not kept. Save those you like.` });
  }

  /** What has no room on the device stays in memory, and that is said. */
  async makeRoom(manifest) {
    if (!this.store.lasting) return;
    const { quota = Infinity, usage = 0 } = (await navigator.storage?.estimate?.().catch(() => null)) ?? {};
    const missing = await this.library.missing(manifest), free = Math.max(0, quota - usage);
    if (missing > free) {
      this.forgetful(`The model takes ${mb(missing)}, and this browser gives the page ${mb(free)}`);
      return;
    }
    this.persisted = await navigator.storage?.persist?.().catch(() => false);
  }

  async fetch(manifest, signal) {
    const onProgress = (have, bytes) => this.tell({ type: "progress", have, bytes });
    try {
      return await this.library.fetch(manifest, { onProgress, signal });
    } catch (error) {
      if (error.name !== "QuotaExceededError" || !this.store.lasting) throw error;
      this.forgetful("The device has no more room");
      return this.library.fetch(manifest, { onProgress, signal });
    }
  }

  /** Open a bundle on the chosen device; one that cannot be proved there moves to the processor, and that is said. */
  async use({ manifest, files }) {
    const device = choose(this.found, { ...this.preferences, precision: manifest.precision });
    device.notes.forEach((text) => this.tell({ type: "notice", text }));
    try {
      await this.open(manifest, files, device);
    } catch (problem) {
      if (device.provider === "wasm") throw problem;
      this.tell({ type: "notice", text: `The graphics processor cannot be used: ${problem.message} The processor draws instead.` });
      await this.open(manifest, files, { ...device, provider: "wasm", threads: choose(this.found, { wanted: "wasm" }).threads });
    }
  }

  async open(manifest, files, device) {
    const engine = await this.proven(manifest, files, device);
    this.engine?.close();
    Object.assign(this, { engine, manifest, files, device });
    this.tell({ type: "device", text: describe(device) });
    this.tell({ type: "ready", manifest });
  }

  /** An engine whose golden picture is right on this device; drawn once, remembered afterwards. */
  async proven(manifest, files, device) {
    const engine = await Engine.open(manifest, files, device);
    try {
      if (await this.library.proved(manifest.id, device.provider)) {
        this.warming = engine.call("warm").catch(() => {});
        return engine;
      }
      await engine.call("prove");
      await this.library.prove(manifest.id, device.provider);
      return engine;
    } catch (problem) {
      engine.close();
      throw problem;
    }
  }

  /** Another device, the same bundle. */
  async prefer(preferences) {
    this.preferences = preferences;
    if (this.manifest) await this.use({ manifest: this.manifest, files: this.files });
  }

  /** A newer bundle on the server: fetched beside this one, proved, then swapped in; true if so. The old one stays if it fails. */
  async update() {
    const latest = await this.library.latest();
    if (latest.id === this.manifest.id || latest.id === (await this.store.get("state", "refused"))) return false;
    await this.makeRoom(latest);
    const { files } = await this.fetch(latest);
    try {
      await this.open(latest, files, this.device);
    } catch (problem) {
      await this.library.refuse(latest);
      this.tell({ type: "notice", text: `A new version of the model was fetched and not taken: ${problem.message} The old one goes on drawing.` });
      return false;
    }
    await this.library.adopt(latest);
    return true;
  }

  draw(request, onEvent, signal) {
    return this.engine.call("draw", request, { onEvent, signal });
  }

  close() {
    this.engine?.close();
  }
}
