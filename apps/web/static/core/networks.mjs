// The three networks as onnxruntime-web sessions, opened when they are first needed. Runs in the worker.

import { Problem } from "./problems.mjs";

const HALF = "float16";

export class Networks {
  /** `files`: path → Blob. With `frugal` one network is in memory at a time. */
  constructor(ort, manifest, files, { provider, frugal }) {
    Object.assign(this, { ort, manifest, files, provider, frugal, sessions: new Map() });
  }

  /** (B, T) ids → (B, T, D), as one flat array. */
  async encode(ids, batch) {
    return this.run("text_encoder", { input_ids: [ids, [batch, ids.length / batch]] }, "last_hidden_state");
  }

  async unet(sample, timestep, text, batch) {
    const { latent, tokens } = this.manifest.pipeline;
    const feeds = {
      sample: [sample, [batch, ...latent]],
      timestep: [Float32Array.of(timestep), []],
      encoder_hidden_states: [text, [batch, tokens, text.length / batch / tokens]],
    };
    return this.run("unet", feeds, "out_sample");
  }

  async decode(latents) {
    return this.run("vae_decoder", { latent_sample: [latents, [1, ...this.manifest.pipeline.latent]] }, "sample");
  }

  async run(name, feeds, output) {
    const session = await this.open(name), { inputs } = this.manifest.components[name];
    const tensors = Object.entries(feeds).map(([port, [data, shape]]) => [port, this.tensor(inputs, port, data, shape)]);
    const found = await session.run(Object.fromEntries(tensors), [output]);
    const { type, data } = found[output];
    return type === HALF && data instanceof Uint16Array ? Float32Array.from(data, single) : Float32Array.from(data);
  }

  tensor(inputs, port, data, shape) {
    const dtype = inputs.find(({ name }) => name === port)?.dtype;
    if (dtype === HALF) return new this.ort.Tensor(HALF, halves(data), shape);
    if (dtype === "int32") return new this.ort.Tensor(dtype, Int32Array.from(data, Number), shape);
    return new this.ort.Tensor(data instanceof BigInt64Array ? "int64" : "float32", data, shape);
  }

  async open(name) {
    if (this.sessions.has(name)) return this.sessions.get(name);
    if (this.frugal) await this.close();
    const { files, options } = this.manifest.components[name];
    const [graph, ...others] = files, bytes = async (path) => new Uint8Array(await this.files[path].arrayBuffer());
    const settings = { executionProviders: [this.provider], extra: nested(options), logSeverityLevel: 3 };
    const folder = graph.slice(0, graph.lastIndexOf("/") + 1);
    const external = others.map(async (path) => ({ path: path.slice(folder.length), data: await bytes(path) }));
    if (external.length) settings.externalData = await Promise.all(external);
    try {
      this.sessions.set(name, await this.ort.InferenceSession.create(await bytes(graph), settings));
    } catch (error) {
      throw unusable(name, this.provider, error);
    }
    return this.sessions.get(name);
  }

  async close() {
    for (const session of this.sessions.values()) await session.release();
    this.sessions.clear();
  }
}

function unusable(name, provider, error) {
  const text = String(error?.message ?? error);
  if (/alloc|memory/i.test(text)) {
    return new Problem("memory", `There is not enough memory for the ${name}. Close other tabs, then turn on "Save memory" under Device. (${text})`);
  }
  const remedy = provider === "webgpu" ? "Switch to the processor under Device." : "Reload the page to update it, or serve another bundle.";
  return new Problem("backend", `The ${name} does not start on this ${provider === "webgpu" ? "graphics processor" : "browser"}: ${text}. ${remedy}`);
}

/** {"session.disable_quant_qdq": "1"} → {session: {disable_quant_qdq: "1"}} */
function nested(options = {}) {
  const out = {};
  for (const [key, value] of Object.entries(options)) {
    const names = key.split("."), last = names.pop();
    names.reduce((level, name) => (level[name] ??= {}), out)[last] = value;
  }
  return out;
}

// IEEE 754 half precision where Float16Array is missing

const scratch = new DataView(new ArrayBuffer(4));

function halves(data) {
  if (globalThis.Float16Array) return Float16Array.from(data);
  return Uint16Array.from(data, (value) => {
    scratch.setFloat32(0, value);
    const bits = scratch.getUint32(0), sign = (bits >>> 16) & 0x8000, exponent = ((bits >>> 23) & 0xff) - 112;
    const mantissa = bits & 0x7fffff;
    if (exponent >= 31) return sign | 0x7c00 | (Number.isNaN(value) ? 1 : 0);
    if (exponent <= 0) return sign | Math.round(Math.abs(value) * 2 ** 24);
    return sign | ((exponent << 10) + (mantissa >>> 13) + ((mantissa >>> 12) & 1));
  });
}

function single(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >>> 10) & 31, mantissa = bits & 1023;
  if (exponent === 31) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 25) * (1024 + mantissa) : mantissa * 2 ** -24);
}
