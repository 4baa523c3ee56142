// manifest.json of a bundle: read, checked, and its id. As apps do, it takes what it needs and ignores the rest; `format`
// alone says whether it may.

import { Problem } from "./problems.mjs";
import { sha256 } from "./sha256.mjs";

export const FORMAT = 1;
export const GOLDEN = ["golden/golden.json", "golden/vectors.safetensors"];
const TOKENIZER = ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"];
const COMPONENTS = ["text_encoder", "unet", "vae_decoder"];
const SAMPLERS = ["euler", "ddim", "dpmpp_2m", "pndm", "lcm"];
const RUNTIMES = { coreml: "Apple's Core ML", tensorrt: "NVIDIA's TensorRT" };
const NUMBER = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const CONVERT = "python -m convert.onnx --target web";

/** {text, id, name, version, runtime, precision, pipeline, components, files, wanted}; `wanted`: files to fetch, in order. */
export async function parse(text) {
  const data = json(text);
  if (data.format > FORMAT) {
    throw new Problem("newer", `This model is of format ${data.format}, newer than the ${FORMAT} that this page reads. Reload the page to update it.`);
  }
  if (data.format !== FORMAT) throw damaged(`format is ${JSON.stringify(data.format)}, must be ${FORMAT}`);
  if (data.runtime !== "onnx") {
    const name = RUNTIMES[data.runtime] ?? `'${data.runtime}'`;
    throw new Problem("runtime", `This model is made for ${name} and cannot run in a browser, which needs an ONNX one. Make it by: ${CONVERT}`);
  }
  check(data);
  return { ...data, text, id: await bundleId(text), wanted: wanted(data) };
}

function json(text) {
  try {
    const data = JSON.parse(text);
    if (data !== null && typeof data === "object") return data;
  } catch {
    // what it is instead is not worth showing
  }
  throw damaged("it is not JSON");
}

const damaged = (what) => new Problem("damaged", `The model's description (manifest.json) is damaged: ${what}. Fetch the model again.`);

function check({ pipeline, components, files }) {
  for (const [name, part] of Object.entries({ pipeline, components, files })) {
    if (part === null || typeof part !== "object") throw damaged(`it has no ${name}`);
  }
  for (const [path, entry] of Object.entries(files)) {
    if (!isSafe(path)) throw damaged(`it lists the file '${path}', which is not a plain path inside the bundle`);
    if (!/^[0-9a-f]{64}$/.test(entry?.sha256) || !(entry.bytes >= 0)) throw damaged(`'${path}' has no SHA-256 or no size`);
  }
  for (const name of COMPONENTS) {
    if (!Array.isArray(components[name]?.files)) throw damaged(`it has no ${name}`);
  }
  for (const path of wanted({ components, files })) {
    if (!files[path]) throw damaged(`it does not list ${path}`);
  }
  if (!SAMPLERS.includes(pipeline.sampler)) throw damaged(`nobody knows its sampler '${pipeline.sampler}'`);
  const numbers = [pipeline.latent_scaling, pipeline.tokens - 2, pipeline.steps, ...pipeline.image_size, ...pipeline.latent];
  if (!numbers.every((value) => value > 0)) throw damaged("a size, a step count or a token count is too small");
  if (pipeline.rng !== "numpy-randomstate") throw damaged(`nobody knows its noise '${pipeline.rng}'`);
}

/** The networks last: what is small and most likely to be wrong comes first. */
function wanted({ components }) {
  return [...GOLDEN, ...TOKENIZER, ...COMPONENTS.flatMap((name) => components[name].files)];
}

export function isSafe(path) {
  return path !== "" && !/[\\:\0]/.test(path) && path.split("/").every((part) => part !== "" && part !== "." && part !== "..");
}

/** SHA-256 of the canonical JSON of pipeline, components and files, with every number as the manifest spells it. */
export async function bundleId(text) {
  const spelled = text.replace(NUMBER, (token) => (token.startsWith('"') ? token : `"\\u0000${token}"`));
  const { pipeline, components, files } = JSON.parse(spelled);
  return sha256(new TextEncoder().encode(canonical({ pipeline, components, files })));
}

function canonical(value) {
  if (typeof value === "string") return value.startsWith("\0") ? value.slice(1) : JSON.stringify(value);
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  return `{${Object.keys(value).sort().map((key) => `${JSON.stringify(key)}:${canonical(value[key])}`).join(",")}}`;
}
