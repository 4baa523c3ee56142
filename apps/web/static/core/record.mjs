// The measurement as `bench` reads it (docs/bench.md): one JSON record, of the device "browser". What a page cannot know, it says
// was not measured: memory, energy, placement, and CPU seconds.

import { sha256 } from "./sha256.mjs";

const FORMAT = 1;
const COMPONENTS = ["text_encoder", "unet", "vae_decoder"];

/** `timed`: {latency, version} of the worker's `benchmark`; `samples` were asked for. */
export async function record(manifest, device, timed, samples) {
  const machine = await describe(), { pipeline } = manifest;
  const unknown = ["placement", "peak_rss_mib", "device_mib", "joules_per_picture", "roof", "soak", "parity", "quality"];
  return {
    format: FORMAT,
    created: `${new Date().toISOString().slice(0, 19)}+00:00`,
    complete: true,
    command: location.href,
    machine,
    fingerprint: await fingerprint(machine),
    versions: { "onnxruntime-web": timed.version },
    settings: {
      runtime: "onnxruntime-web", provider: device.provider, threads: device.threads, samples, seed: 0, power_mode: null,
      steps: pipeline.steps, guidance: pipeline.guidance, sampler: pipeline.sampler,
    },
    bundle: about(manifest),
    latency: timed.latency,
    open_s: timed.latency.picture.prepare_s,
    ...Object.fromEntries(unknown.map((key) => [key, "not measured"])),
  }; // prettier-ignore
}

async function describe() {
  const { userAgent, userAgentData: hints, hardwareConcurrency: cores = 1, deviceMemory } = navigator;
  const more = (await hints?.getHighEntropyValues(["model", "architecture", "platformVersion"]).catch(() => null)) ?? {};
  const system = [hints?.platform, more.platformVersion].filter(Boolean).join(" ") || /\(([^)]*)\)/.exec(userAgent)?.[1];
  return {
    device: "browser",
    processor: more.model || more.architecture || "unknown, in a browser",
    cores,
    memory_mib: deviceMemory ? deviceMemory * 1024 : null,
    os: system || "unknown",
    python: null,
    browser: userAgent,
  };
}

/** As kdc_edge.machine has it. */
function fingerprint({ processor, cores, memory_mib: memory, os }) {
  const same = [processor, cores, memory === null ? null : Math.round(memory / 1024), os];
  return sha256(new TextEncoder().encode(`[${same.map((value) => JSON.stringify(value)).join(", ")}]`)).then((hash) => hash.slice(0, 16));
}

function about({ id, name, version, runtime, target, precision, components, files, pipeline }) {
  const size = (paths) => paths.reduce((sum, path) => sum + files[path].bytes, 0);
  const counters = {};
  for (const [part, { parameters, macs = null, bytes_moved = null, operators, files: own }] of Object.entries(components)) {
    const nodes = operators ? Object.values(operators).reduce((a, b) => a + b, 0) : null;
    counters[part] = { parameters, macs, bytes_moved, nodes, bytes: size(own) };
  }
  const both = pipeline.guidance === 1 ? 1 : 2, calls = { text_encoder: both, unet: pipeline.steps * both, vae_decoder: 1 };
  const whole = (key) => {
    const values = COMPONENTS.map((part) => counters[part][key]);
    return values.includes(null) ? null : COMPONENTS.reduce((sum, part, i) => sum + calls[part] * values[i], 0);
  };
  counters.picture = { macs: whole("macs"), bytes_moved: whole("bytes_moved") };
  const weights = Object.values(counters).reduce((sum, { bytes = 0 }) => sum + bytes, 0);
  return { id, name, version, runtime, target, precision, bytes: size(Object.keys(files)), weights_bytes: weights, counters };
}
