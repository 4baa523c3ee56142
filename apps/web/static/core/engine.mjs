// The page's side of the worker: calls as promises. Another device is another engine; `close` gives all its memory back.

import { Problem, unpack } from "./problems.mjs";

export class Engine {
  constructor(worker = new Worker(new URL("./worker.mjs", import.meta.url), { type: "module" })) {
    Object.assign(this, { worker, calls: new Map(), count: 0 });
    worker.onmessage = ({ data }) => this.receive(data);
    worker.onerror = (event) => {
      event.preventDefault?.();
      this.fail(new Problem("backend", `The part of the page that draws has stopped (${event.message ?? "no reason given"}). Reload the page.`));
    };
  }

  static async open(manifest, files, device) {
    const engine = new Engine(), { provider, threads, frugal } = device;
    const { text: _, wanted: __, ...told } = manifest;
    await engine.call("open", { manifest: told, files, device: { provider, threads, frugal } });
    return engine;
  }

  /** `signal`, an AbortSignal, stops a `draw` between two steps. */
  call(op, args = {}, { onEvent = () => {}, signal } = {}) {
    const call = ++this.count;
    signal?.addEventListener("abort", () => this.worker.postMessage({ op: "stop", args: call }));
    return new Promise((resolve, reject) => {
      this.calls.set(call, { resolve, reject, onEvent });
      this.worker.postMessage({ call, op, args });
    });
  }

  receive({ call, event, result, problem }) {
    const waiting = this.calls.get(call);
    if (!waiting) return;
    if (event) {
      waiting.onEvent(event);
      return;
    }
    this.calls.delete(call);
    if (problem) waiting.reject(unpack(problem));
    else waiting.resolve(result);
  }

  fail(problem) {
    for (const { reject } of this.calls.values()) reject(problem);
    this.calls.clear();
  }

  close() {
    this.worker.terminate();
    this.fail(new Problem("cancelled", "Stopped; no picture was made."));
  }
}
