// The worker: everything heavy happens here, so that the page never freezes. Messages: {call, op, args} in;
// {call, event}, then {call, result} or {call, problem} out.

import { apart, judge, measure, results, rgb, stored } from "./golden.mjs";
import { assemble } from "./index.mjs";
import { pack, Problem } from "./problems.mjs";
import { time } from "./timing.mjs";
import { tokenizer } from "./tokenizer.mjs";

const OPERATIONS = { open, warm, draw, golden, prove, benchmark };
const stopped = new Set();
let manifest, files, pipeline, device, version;

self.onmessage = async ({ data: { call, op, args } }) => {
  if (op === "stop") {
    stopped.add(args);
    return;
  }
  const tell = (event, transfer = []) => self.postMessage({ call, event }, transfer);
  try {
    const result = await OPERATIONS[op](args, call, tell);
    self.postMessage({ call, result }, result?.picture ? [result.picture.data.buffer] : []);
  } catch (error) {
    self.postMessage({ call, problem: pack(error) });
  }
};

/** `device` is what device.mjs chose; `files`: path → Blob. Loads the runtime and the tokenizer. */
async function open(args) {
  ({ manifest, files, device } = args);
  const ort = await import(`../vendor/ort/${device.provider === "webgpu" ? "ort.webgpu" : "ort.wasm"}.min.mjs`);
  ort.env.wasm.wasmPaths = new URL("../vendor/ort/", import.meta.url).href;
  ort.env.wasm.numThreads = device.threads;
  version = ort.env.versions.web;
  ort.env.logLevel = "error";
  pipeline = await assemble(manifest, files, { ort, tokenizer, provider: device.provider, frugal: device.frugal });
}

/** Open all sessions, so that the first picture does not wait for them. */
async function warm() {
  if (device.frugal) return;
  for (const name of ["text_encoder", "unet", "vae_decoder"]) await pipeline.run.open(name);
}

async function draw(request, call, tell) {
  for await (const frame of pipeline.stream(request)) {
    await turn();
    if (stopped.delete(call)) throw new Problem("cancelled", "Stopped; no picture was made.");
    if (frame.done) return { picture: await frame.image(), dropped: frame.dropped };
    const preview = device.frugal ? rough(frame.latents, manifest.pipeline.latent) : await frame.preview();
    tell({ index: frame.index, total: frame.total, preview }, [preview.data.buffer]);
  }
}

/** Let messages in, `stop` among them. */
const turn = () => new Promise((resolve) => setTimeout(resolve));

/** A sketch of latents without the decoder: three channels as red, green, blue. */
function rough(latents, [channels, height, width]) {
  const data = new Uint8ClampedArray(4 * height * width).fill(255), plane = height * width;
  for (let c = 0; c < 3; c++) {
    const from = Math.min(c, channels - 1) * plane;
    for (let i = 0; i < plane; i++) data[4 * i + c] = 128 + 64 * latents[from + i];
  }
  return { data, width, height };
}

/** Every stage against golden/: verdicts, and the file that `kdc-edge conformance` judges. */
async function golden({ app }, _, tell) {
  const vectors = await stored(files), measured = await measure(pipeline, vectors, (stage) => tell({ stage }));
  return { verdicts: judge(vectors, measured), results: results(manifest.id, app, measured) };
}

/** Draw the first golden picture from its prompt. Problem where it is not the golden one. */
async function prove() {
  const { settings, arrays } = await stored(files);
  for await (const frame of pipeline.stream({ ...settings, prompt: settings.prompts[0] })) {
    if (!frame.done) continue;
    const drawn = rgb(await frame.image()), off = apart(drawn, arrays.images.data.subarray(0, drawn.length));
    if (!(off <= settings.tolerances.images)) {
      const told = `it is off by ${off} of 255, at most ${settings.tolerances.images} is right`;
      throw new Problem("damaged", `The model does not draw its own test picture here: ${told}.`);
    }
  }
}

/** The benchmark's times. */
async function benchmark({ samples }, _, tell) {
  return { latency: await time(pipeline, pipeline.run, samples, tell), version };
}
