// The noise schedule, and samplers over any `denoise(x, sigma) -> x0`: generators that yield every step. A port of
// apps/reference.py. x = x0 + sigma · noise, a Float64Array of C·H·W numbers.

/** `pipeline.betas` as sigmas of the training steps, rising. */
export class Schedule {
  constructor(betas) {
    this.betas = betas;
    const count = betas.train_steps, power = betas.schedule === "scaled_linear" ? 2 : 1;
    const first = betas.start ** (1 / power), last = betas.end ** (1 / power);
    let kept = 1;
    this.sigmas = Float64Array.from({ length: count }, (_, i) => {
      kept *= 1 - (first + ((last - first) * i) / (count - 1)) ** power;
      return Math.sqrt((1 - kept) / kept);
    });
    this.final = betas.set_alpha_to_one ? 0 : this.sigmas[0];
  }

  /** Linear between two training steps. */
  sigma(timestep) {
    const low = clamp(Math.trunc(timestep), 0, this.sigmas.length - 2);
    return this.sigmas[low] + (this.sigmas[low + 1] - this.sigmas[low]) * clamp(timestep - low, 0, 1);
  }

  /** The inverse: what the network is told. */
  timestep(sigma) {
    const above = this.sigmas.findIndex((value) => value > sigma), end = this.sigmas.length - 2;
    const low = clamp(above === -1 ? end : above - 1, 0, end);
    return low + clamp((sigma - this.sigmas[low]) / (this.sigmas[low + 1] - this.sigmas[low]), 0, 1);
  }

  timesteps(steps) {
    const { train_steps: count, spacing, steps_offset: offset } = this.betas;
    if (spacing === "linspace") return numbers(steps, (i) => (steps - 1 - i) * ((count - 1) / Math.max(steps - 1, 1)));
    if (spacing === "trailing") return numbers(steps, (i) => rint(count - i * (count / steps)) - 1);
    return numbers(steps, (i) => (steps - 1 - i) * Math.floor(count / steps) + offset);
  }
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const numbers = (length, make) => Array.from({ length }, (_, i) => make(i));

/** To the nearest whole number, a half to the even one. */
export function rint(value) {
  const near = Math.round(value);
  return near - value === 0.5 && near % 2 !== 0 ? near - 1 : near;
}

/** Evaluation i is at sigmas[i], its step starts at sources[i] and lands on targets[i]; x begins as noise · start. */
export function plan(sampler, schedule, steps) {
  const { train_steps: count, spacing } = schedule.betas, stride = Math.floor(count / steps);
  let timesteps;
  if (sampler === "lcm") {
    // some of the 50 that consistency models are distilled with
    timesteps = numbers(steps, (i) => (50 - Math.floor((i * 50) / steps)) * Math.floor(count / 50) - 1);
  } else {
    const more = sampler === "dpmpp_2m" && spacing !== "trailing" ? 1 : 0;
    timesteps = schedule.timesteps(steps + more).slice(0, steps);
  }
  if (sampler !== "euler") timesteps = timesteps.map(rint);
  if (sampler === "pndm") timesteps.splice(1, 0, ...timesteps.slice(1, 2)); // the second one twice
  const sigmas = timesteps.map((t) => schedule.sigma(t)), sources = [...sigmas];
  let targets = [...sigmas.slice(1), 0];
  if (sampler === "ddim" || sampler === "pndm") {
    targets = timesteps.map((t) => (t >= stride ? schedule.sigma(t - stride) : schedule.final));
  }
  if (sampler === "pndm" && timesteps.length > 1) {
    [sources[1], targets[1]] = [schedule.sigma(timesteps[1] + stride), sigmas[1]];
  }
  const plain = sampler === "euler" && spacing !== "leading";
  return { timesteps, sigmas, sources, targets, start: plain ? sigmas[0] : Math.hypot(1, sigmas[0]) };
}

/** The most steps that a sampler takes. */
export const most = (sampler, schedule) => (sampler === "lcm" ? 50 : schedule.betas.train_steps);

const TERMS = {
  epsilon: (sigma) => [1, sigma],
  v_prediction: (sigma) => [1 / (1 + sigma ** 2), sigma / Math.hypot(1, sigma)],
  sample: () => [0, -1],
};

/** The network sees x / √(1 + sigma²), and predicts epsilon, v or x0; async, as the network is. */
export function denoiser(network, predicts, schedule) {
  return async (x, sigma) => {
    const out = await network(mix([1 / Math.hypot(1, sigma), x]), schedule.timestep(sigma));
    const [keep, remove] = TERMS[predicts](sigma);
    return mix([keep, x], [-remove, out]);
  };
}

/** The sum of number · vector. */
export function mix(...terms) {
  const sum = new Float64Array(terms[0][1].length);
  for (const [number, vector] of terms) {
    for (let i = 0; i < sum.length; i++) sum[i] += number * vector[i];
  }
  return sum;
}

/** The sample whose unit-variance form at `sigma` is that of `x` at `level`. */
const moved = (x, level, sigma) => (level === sigma ? x : mix([Math.hypot(1, sigma) / Math.hypot(1, level), x]));

async function* euler(denoise, x, plan) {
  let level = plan.sigmas[0];
  for (const [i, sigma] of plan.sigmas.entries()) {
    x = moved(x, level, sigma);
    level = plan.targets[i];
    const x0 = await denoise(x, sigma), step = (level - sigma) / sigma;
    x = mix([1 + step, x], [-step, x0]);
    yield { index: i, sigma: level, x, x0 };
  }
}

async function* dpmpp2m(denoise, x, plan) {
  let previous = null, hPrevious = 0;
  for (const [i, sigma] of plan.sigmas.entries()) {
    const target = plan.targets[i], x0 = await denoise(x, sigma);
    let ahead = x0;
    if (target > 0) {
      const h = Math.log(sigma / target), half = (0.5 * h) / hPrevious;
      if (previous !== null) ahead = mix([1 + half, x0], [-half, previous]);
      [previous, hPrevious] = [x0, h];
    }
    x = mix([target / sigma, x], [1 - target / sigma, ahead]);
    yield { index: i, sigma: target, x, x0 };
  }
}

const ADAMS_BASHFORTH = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]];

async function* pndm(denoise, x, plan) {
  const first = x, slopes = []; // newest first
  let level = plan.sigmas[0];
  for (const [i, sigma] of plan.sigmas.entries()) {
    x = moved(x, level, sigma);
    const x0 = await denoise(x, sigma), source = plan.sources[i];
    let slope = mix([1 / sigma, x], [-1 / sigma, x0]);
    if (i === 1) {
      slope = mix([0.5, slope], [0.5, slopes[0]]);
      x = moved(first, plan.sigmas[0], source);
    } else {
      slopes.unshift(slope);
      slopes.length = Math.min(slopes.length, ADAMS_BASHFORTH.length);
      slope = mix(...ADAMS_BASHFORTH[slopes.length - 1].map((weight, k) => [weight, slopes[k]]));
    }
    level = plan.targets[i];
    x = mix([1, x], [level - source, slope]);
    yield { index: i, sigma: level, x, x0 };
  }
}

async function* lcm(denoise, x, plan, noise) {
  for (const [i, sigma] of plan.sigmas.entries()) {
    const target = plan.targets[i], scaled = plan.timesteps[i] * 10;
    const skip = 0.25 / (scaled * scaled + 0.25), out = scaled / Math.hypot(scaled, 0.5);
    const x0 = await denoise(x, sigma);
    x = mix([out, x0], [skip / Math.hypot(1, sigma), x]);
    if (target > 0) x = mix([1, x], [target, noise(x.length)]);
    yield { index: i, sigma: target, x, x0 };
  }
}

export const SAMPLERS = { euler, ddim: euler, dpmpp_2m: dpmpp2m, pndm, lcm };
