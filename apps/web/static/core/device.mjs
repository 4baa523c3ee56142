// What this browser can compute with, what was chosen, and why, in words.

export const PROVIDERS = { auto: "Automatic", webgpu: "Graphics (WebGPU)", wasm: "Processor (WebAssembly)" };
const SMALL_GIB = 2; // a device of so little memory, and the browser says so, holds one network at a time
const MOST_THREADS = 8;

/** {webgpu, software, half, threads, isolated, cores, memory_gib}: what there is. */
export async function capabilities(scope = globalThis) {
  const { hardwareConcurrency: cores = 1, deviceMemory: memory = null, gpu } = scope.navigator;
  const adapter = await gpu?.requestAdapter().catch(() => null);
  const isolated = scope.crossOriginIsolated === true && typeof SharedArrayBuffer !== "undefined";
  return {
    webgpu: Boolean(adapter),
    software: Boolean(adapter?.info?.isFallbackAdapter || /swiftshader|llvmpipe/i.test(adapter?.info?.architecture ?? "")),
    half: Boolean(adapter?.features.has("shader-f16")),
    graphics: [adapter?.info?.vendor, adapter?.info?.architecture].filter(Boolean).join(" "),
    isolated, cores, memory_gib: memory,
  }; // prettier-ignore
}

/** {provider, threads, frugal, notes}. `wanted`: a key of PROVIDERS; `precision` is the bundle's; `frugal` null: decide here. */
export function choose(found, { wanted = "auto", precision = "", threads = null, frugal = null } = {}) {
  const notes = [], halves = precision.startsWith("fp16");
  let provider = wanted === "auto" ? (found.webgpu && !found.software ? "webgpu" : "wasm") : wanted;
  if (provider === "webgpu" && !found.webgpu) {
    notes.push("This browser offers no WebGPU, so the processor draws. Chrome, Edge and Safari 26 have it.");
    provider = "wasm";
  }
  if (provider === "webgpu" && halves && !found.half) {
    notes.push("This model computes in 16 bits, which the graphics processor here cannot (shader-f16), so the processor draws.");
    provider = "wasm";
  }
  if (!found.isolated) {
    notes.push("The page is not isolated, so one thread draws and it takes longer. Open it over https or on localhost, then reload once.");
  }
  const most = found.isolated ? Math.min(found.cores, MOST_THREADS) : 1;
  return {
    provider, notes,
    threads: provider === "webgpu" ? 1 : Math.min(threads ?? most, most),
    frugal: frugal ?? (found.memory_gib !== null && found.memory_gib <= SMALL_GIB),
  }; // prettier-ignore
}

/** For people: "Processor, 2 threads". */
export function describe({ provider, threads, frugal }) {
  const what = provider === "webgpu" ? "Graphics, WebGPU" : `Processor, ${threads === 1 ? "1 thread" : `${threads} threads`}`;
  return frugal ? `${what}, saving memory` : what;
}
