// golden/ of a bundle, and what a port makes of it: the stages of docs/conformance.md, each from golden inputs.

import { GOLDEN } from "./manifest.mjs";
import { Problem } from "./problems.mjs";
import { rint } from "./samplers.mjs";

export const FORMAT = 1;
const TYPES = { I64: BigInt64Array, F32: Float32Array, U8: Uint8Array };
const DTYPES = { I64: "int64", F32: "float32", U8: "uint8" };
const ROUNDING = 1e-6; // of the largest value

/** name → {about, array, nearness}; in the order in which a picture is made. */
export const STAGES = {
  text_ids: ["ids of the golden texts", "text_ids", "exact"],
  input_ids: ["ids of the golden prompts", "input_ids", "exact"],
  noise: ["noise from the seeds", "noise", "exact"],
  timesteps: ["what the U-Net is told", "timesteps", "rounding"],
  sigmas: ["noise level after each step", "sigmas", "rounding"],
  last_hidden_state: ["text encoder", "last_hidden_state", "stored"],
  latents: ["U-Net and sampler, every step", "latents", "stored"],
  images: ["decoder", "images", "stored"],
  pictures: ["everything, from prompt to picture", "images", "stored"],
};

/** golden/ of a bundle's files: path → Blob. */
export async function stored(files) {
  const [settings, arrays] = GOLDEN;
  return readGolden(JSON.parse(await files[settings].text()), await files[arrays].arrayBuffer());
}

/** golden.json and the arrays: name → {dtype, shape, data}. */
export function readGolden(settings, buffer) {
  if (settings.format !== FORMAT) {
    throw new Problem("newer", `The golden vectors are of format ${settings.format}, this page reads ${FORMAT}. Reload the page to update it.`);
  }
  return { settings, arrays: safetensors(buffer) };
}

export function safetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  delete header.__metadata__;
  return Object.fromEntries(
    Object.entries(header).map(([name, { dtype, shape, data_offsets: [begin, end] }]) => {
      const bytes = buffer.slice(8 + length + begin, 8 + length + end); // aligned for its type
      return [name, { dtype: DTYPES[dtype], shape, data: new TYPES[dtype](bytes) }];
    }),
  );
}

/** {stage, about, passed, difference, tolerance} of each stage measured. */
export function judge(golden, measured) {
  return Object.entries(STAGES).map(([stage, [about, array, nearness]]) => {
    const wanted = golden.arrays[array], found = measured[stage];
    const largest = () => wanted.data.reduce((most, value) => Math.max(most, Math.abs(Number(value))), 0);
    const tolerance = { exact: () => 0, rounding: () => ROUNDING * largest(), stored: () => golden.settings.tolerances[array] }[nearness]();
    const difference = found?.data.length === wanted.data.length ? apart(found.data, wanted.data) : NaN;
    return { stage, about, difference, tolerance, passed: difference <= tolerance };
  });
}

/** Largest absolute difference; not a number where one is not. */
export function apart(a, b) {
  let most = 0;
  for (let i = 0; i < a.length; i++) {
    const difference = Math.abs(Number(a[i]) - Number(b[i]));
    if (!(difference <= most)) most = difference;
    if (Number.isNaN(most)) return most;
  }
  return most;
}

/** What a bundle's own pipeline makes of the golden inputs: stage → {dtype, shape, data}. */
export async function measure(pipeline, golden, onStage = () => {}) {
  const { settings: told, arrays } = golden, spec = pipeline.spec, count = told.prompts.length;
  const like = (array, data) => ({ ...arrays[array], data });
  const pairs = told.prompts.map((prompt) => (told.guidance === 1 ? [prompt] : [told.negative, prompt]));
  const plan = pipeline.plan(told.sampler, told.steps), size = product(spec.latent);
  const measured = {};
  const add = (stage, array, data) => {
    measured[stage] = like(array, data);
    onStage(stage);
  };
  const ids = (texts) => joined(BigInt64Array, texts.map((text) => pipeline.tokenize(text).ids));
  add("text_ids", "text_ids", ids(told.texts));
  add("input_ids", "input_ids", ids(pairs.flat()));
  const each = async (type, make) => {
    const parts = [];
    for (let p = 0; p < count; p++) parts.push(await make(p));
    return joined(type, parts);
  };
  add("noise", "noise", await each(Float32Array, (p) => pipeline.noise(told.seed + p)(size)));
  add("timesteps", "timesteps", Float32Array.from(plan.sigmas, (sigma) => pipeline.schedule.timestep(sigma)));
  add("sigmas", "sigmas", Float32Array.from(plan.targets));
  const row = arrays.last_hidden_state.data.length / count, states = [];
  for (let p = 0; p < count; p++) states.push(await pipeline.encodeIds(part(arrays.input_ids.data, p, count)));
  add("last_hidden_state", "last_hidden_state", joined(Float32Array, states.map((state) => state.slice(-row))));
  const latents = async (p) => {
    const text = states[p].slice();
    text.set(part(arrays.last_hidden_state.data, p, count), text.length - row);
    const noise = pipeline.noise(told.seed + p);
    noise(size);
    const steps = [];
    for await (const step of pipeline.sample(text, part(arrays.noise.data, p, count), plan, told, noise)) {
      steps.push(Float32Array.from(step.x, (v) => v / Math.hypot(1, step.sigma)));
    }
    return joined(Float32Array, steps);
  };
  add("latents", "latents", await each(Float32Array, latents));
  const last = (p) => part(arrays.latents.data, p, count).slice(-size);
  add("images", "images", await each(Uint8Array, async (p) => rgb(await pipeline.decode(last(p)))));
  const drawn = async (p) => {
    const request = { ...told, prompt: told.prompts[p], seed: told.seed + p };
    for await (const frame of pipeline.stream(request)) if (frame.done) return rgb(await frame.image());
  };
  add("pictures", "images", await each(Uint8Array, drawn));
  return measured;
}

const product = (sizes) => sizes.reduce((a, b) => a * b, 1);
const part = (data, p, count) => data.subarray((p * data.length) / count, ((p + 1) * data.length) / count);

export function joined(type, parts) {
  const all = new type(parts.reduce((sum, each) => sum + each.length, 0));
  parts.reduce((at, each) => (all.set(each, at), at + each.length), 0);
  return all;
}

/** Red, green, blue of an RGBA picture. */
export const rgb = ({ data }) => Uint8Array.from({ length: (data.length / 4) * 3 }, (_, i) => data[4 * Math.floor(i / 3) + (i % 3)]);

/** A decoder's sample (3, H, W) in -1 … 1 as RGBA, a half rounded to even. */
export function pixels(sample, width, height) {
  const data = new Uint8ClampedArray(4 * width * height).fill(255), plane = width * height;
  for (let c = 0; c < 3; c++) {
    for (let i = 0; i < plane; i++) {
      const value = sample[c * plane + i];
      if (!Number.isFinite(value)) {
        throw new Problem("damaged", "The model drew something that is not a number. Switch to the processor under Device, or fetch the model again.");
      }
      data[4 * i + c] = rint(Math.min(Math.max(value / 2 + 0.5, 0), 1) * 255);
    }
  }
  return { data, width, height };
}

/** docs/conformance.md's results.json. */
export function results(bundle, app, measured) {
  const stages = Object.entries(measured).map(([stage, { dtype, shape, data }]) => [stage, { dtype, shape, data: base64(data) }]);
  return { format: FORMAT, bundle, app, stages: Object.fromEntries(stages) };
}

function base64(data) {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength), parts = [];
  for (let i = 0; i < bytes.length; i += 0x8000) parts.push(String.fromCharCode(...bytes.subarray(i, i + 0x8000)));
  return btoa(parts.join(""));
}
