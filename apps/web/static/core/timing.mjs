// Seconds of each component and of a picture, as `bench run` takes them: a guided call of noise, then whole pictures.

const PROMPT = "red apple", WARMUP = 2, LEAST = 3;
const COMPONENTS = ["text_encoder", "unet", "vae_decoder"];

/** what → {batch, prepare_s, first_s, warm_wall_s, warm_cpu_s}; a page has no clock of CPU seconds. Sessions are opened anew. */
export async function time(pipeline, networks, samples, tell = () => {}) {
  const { latent, tokens } = pipeline.spec, size = latent.reduce((a, b) => a * b, 1), noise = pipeline.noise(0);
  const ids = new BigInt64Array(2 * tokens), prepare = { picture: 0 }, found = {};
  await networks.close();
  for (const name of COMPONENTS) {
    prepare[name] = await seconds(() => networks.open(name));
    prepare.picture += prepare[name];
  }
  const [sample, one] = [noise(2 * size), noise(size)];
  let states;
  const calls = {
    text_encoder: [2, async () => (states = await networks.encode(ids, 2))],
    unet: [2, () => networks.unet(sample, 500, states, 2)],
    vae_decoder: [1, () => networks.decode(one)],
    picture: [1, () => picture(pipeline)],
  };
  for (const [name, [batch, call]] of Object.entries(calls)) {
    const count = name === "picture" ? Math.max(LEAST, Math.floor(samples / 3)) : samples;
    const first_s = await seconds(call), warm_wall_s = [];
    for (let i = 0; i < WARMUP; i++) await call();
    for (let i = 0; i < count; i++) warm_wall_s.push(await seconds(call));
    found[name] = { batch, prepare_s: prepare[name], first_s, warm_wall_s, warm_cpu_s: [] };
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
