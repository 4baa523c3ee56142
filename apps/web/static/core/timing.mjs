// Seconds of each component and of a picture, as `bench run` takes them: a guided call of noise, then whole pictures.

import { joined } from "./golden.mjs";

const PROMPT = "red apple", WARMUP = 2, LEAST = 3;

/** what → {batch, prepare_s, first_s, warm_wall_s}; `open` in seconds is all components'. */
export async function time(pipeline, networks, samples, tell = () => {}) {
  const { latent, tokens } = pipeline.spec, size = latent.reduce((a, b) => a * b, 1), noise = pipeline.noise(0);
  const ids = new BigInt64Array(2 * tokens), found = {};
  const prepare = {};
  for (const name of ["text_encoder", "unet", "vae_decoder"]) prepare[name] = await seconds(() => networks.open(name));
  const states = await pipeline.encodeIds(ids), sample = noise(2 * size), one = noise(size);
  const calls = {
    text_encoder: [2, () => networks.encode(ids, 2), samples],
    unet: [2, () => networks.unet(sample, 500, states, 2), samples],
    vae_decoder: [1, () => networks.decode(one), samples],
    picture: [1, () => picture(pipeline), Math.max(LEAST, Math.round(samples / 3))],
  };
  prepare.picture = prepare.text_encoder + prepare.unet + prepare.vae_decoder;
  for (const [name, [batch, call, count]] of Object.entries(calls)) {
    const first = await seconds(call), warm = [];
    for (let i = 0; i < WARMUP; i++) await call();
    for (let i = 0; i < count; i++) warm.push(await seconds(call));
    found[name] = { batch, prepare_s: prepare[name], first_s: first, warm_wall_s: warm };
    tell({ name, done: Object.keys(found).length, of: Object.keys(calls).length });
  }
  return found;
}

async function picture(pipeline) {
  for await (const frame of pipeline.stream({ prompt: PROMPT, seed: 0 })) if (frame.done) return frame.image();
}

async function seconds(call) {
  const start = performance.now();
  await call();
  return (performance.now() - start) / 1000;
}
