// Text to picture: tokenise, encode, denoise, decode. `networks(name, inputs) -> output` runs one component.

import { joined, pixels } from "./golden.mjs";
import { gaussian, SEEDS } from "./noise.mjs";
import { Problem } from "./problems.mjs";
import { denoiser, most, plan, SAMPLERS, Schedule } from "./samplers.mjs";

export class Pipeline {
  /** `spec` is the manifest's pipeline; `run.encode(ids, batch)`, `.unet(sample, timestep, text, batch)`, `.decode(latents)`, `.close()`. */
  constructor(spec, tokenize, run) {
    Object.assign(this, { spec, tokenize, run, schedule: new Schedule(spec.betas), noise: gaussian });
  }

  plan(sampler, steps) {
    return plan(sampler, this.schedule, steps);
  }

  /** The steps of one picture: {index, total, done, dropped, preview(), image()}; leave the loop to stop. */
  async *stream({ prompt, seed = 0, steps = this.spec.steps, guidance = this.spec.guidance, negative = "", sampler = this.spec.sampler }) {
    this.check(seed, steps, sampler);
    const texts = (guidance === 1 ? [prompt] : [negative, prompt]).map((text) => this.tokenize(text));
    const text = await this.encodeIds(joined(BigInt64Array, texts.map(({ ids }) => ids)));
    const noise = gaussian(seed), plan = this.plan(sampler, steps);
    const unit = noise(this.spec.latent.reduce((a, b) => a * b, 1)), total = plan.sigmas.length;
    for await (const { index, sigma, x, x0 } of this.sample(text, unit, plan, { sampler, guidance }, noise)) {
      const latents = Float32Array.from(x, (v) => v / Math.hypot(1, sigma));
      yield {
        index, total, latents,
        done: index === total - 1,
        dropped: texts.at(-1).dropped,
        preview: () => this.decode(Float32Array.from(x0)),
        image: () => this.decode(latents),
      }; // prettier-ignore
    }
  }

  check(seed, steps, sampler) {
    if (!(Number.isInteger(seed) && seed >= 0 && seed < SEEDS)) {
      throw new Problem("usage", `The seed is ${seed}; it must be a whole number from 0 to ${SEEDS - 1}.`);
    }
    const limit = most(sampler, this.schedule);
    if (!(Number.isInteger(steps) && steps >= 1 && steps <= limit)) {
      throw new Problem("usage", `Steps are ${steps}; they must be a whole number from 1 to ${limit}.`);
    }
  }

  /** (B, T) ids → (B, T, D). */
  encodeIds(ids) {
    return this.run.encode(ids, ids.length / this.spec.tokens);
  }

  /** The sampler's steps under `text` (B, T, D), from unit noise. */
  sample(text, unit, plan, { sampler, guidance }, noise) {
    const batch = guidance === 1 ? 1 : 2;
    const network = async (sample, timestep) => {
      const one = Float32Array.from(sample);
      const out = await this.run.unet(batch === 1 ? one : joined(Float32Array, [one, one]), timestep, text, batch);
      if (batch === 1) return out;
      const plain = out.subarray(0, one.length); // prediction is affine in x0, so guiding it guides x0
      return out.subarray(one.length).map((v, i) => plain[i] + (v - plain[i]) * guidance);
    };
    const start = Float64Array.from(unit, (v) => v * plan.start);
    return SAMPLERS[sampler](denoiser(network, this.spec.prediction_type, this.schedule), start, plan, noise);
  }

  /** Give the networks' memory back. */
  close() {
    return this.run.close();
  }

  /** Unit-variance latents → RGBA. */
  async decode(latents) {
    const [height, width] = this.spec.image_size;
    return pixels(await this.run.decode(latents.map((v) => v / this.spec.latent_scaling)), width, height);
  }
}
