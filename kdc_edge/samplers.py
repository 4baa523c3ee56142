"""Samplers: generators over any `denoise(x, sigma)` that yield every step; the caller decides what becomes of it.

Each is a plan (which noise levels) and a loop (how to get from one to the next), and agrees with the diffusers
scheduler of its name. Where that scheduler lands on another level than it goes on from, as ddim and pndm do when the
number of steps does not divide the training steps, the plan says so and `moved` takes the one level for the other.
"""

# x = x0 + sigma · noise, (B, C, H, W); n evaluations of the network

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kdc_edge.errors import UsageError
from kdc_edge.noise import Noise
from kdc_edge.schedule import Schedule

Denoise = Callable[[np.ndarray, float], np.ndarray]

ADAMS_BASHFORTH = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
LCM_STEPS = 50  # of the teacher's solver that consistency models are distilled with
LCM_SIGMA_DATA, LCM_TIMESTEP_SCALING = 0.5, 10.0


@dataclass(frozen=True, eq=False)
class Plan:
    """Noise levels: evaluation i is at sigmas[i], its step starts at sources[i] and lands on targets[i]; all (n,).

    Unit noise times `start` is where sampling begins.
    """

    timesteps: np.ndarray
    sigmas: np.ndarray
    sources: np.ndarray
    targets: np.ndarray
    start: float

    def __len__(self) -> int:
        return len(self.sigmas)

    def levels(self) -> Iterator[tuple[int, float, float, float]]:
        """Step by step: index, sigma, source, target."""
        return zip(range(len(self)), self.sigmas.tolist(), self.sources.tolist(), self.targets.tolist(), strict=True)


@dataclass(frozen=True, eq=False)
class Step:
    """After step `index` of `total`: the sample `x` at noise level `sigma`, and the `x0` the network saw before it."""

    index: int
    total: int
    sigma: float
    x: np.ndarray
    x0: np.ndarray


def euler(denoise: Denoise, x: np.ndarray, plan: Plan, noise: Noise) -> Iterator[Step]:
    """Euler's method on dx/dsigma = (x - x0) / sigma (Karras et al. 2022, algorithm 2, no churn); ddim is the same."""
    level = float(plan.sigmas[0])
    for i, sigma, _, target in plan.levels():
        x = moved(x, level, sigma)
        x0 = denoise(x, sigma)
        x, level = x + (x - x0) * ((target - sigma) / sigma), target
        yield Step(i, len(plan), target, x, x0)


def dpmpp_2m(denoise: Denoise, x: np.ndarray, plan: Plan, noise: Noise) -> Iterator[Step]:
    """DPM-Solver++(2M), midpoint, first order at the end (Lu et al. 2022, algorithm 2; h is the step in log sigma)."""
    previous, h_previous = None, 0.0
    for i, sigma, _, target in plan.levels():
        x0 = denoise(x, sigma)
        ahead = x0
        if target > 0:
            h = math.log(sigma / target)
            if previous is not None:
                ahead = x0 + (x0 - previous) * (0.5 * h / h_previous)
            previous, h_previous = x0, h
        ratio = target / sigma
        x = x * ratio + ahead * (1 - ratio)
        yield Step(i, len(plan), target, x, x0)


def pndm(denoise: Denoise, x: np.ndarray, plan: Plan, noise: Noise) -> Iterator[Step]:
    """PLMS (Liu et al. 2022, equation 9): Adams-Bashforth on epsilon, its first step taken twice, as Heun does.

    It mixes epsilons whatever the network predicts; diffusers' PNDMScheduler mixes the v of a v-prediction network.
    """
    slopes: deque[np.ndarray] = deque(maxlen=len(ADAMS_BASHFORTH))  # newest first
    first, level = x, float(plan.sigmas[0])
    for i, sigma, source, target in plan.levels():
        x = moved(x, level, sigma)
        x0 = denoise(x, sigma)
        slope = (x - x0) / sigma
        if i == 1:
            slope = (slope + slopes[0]) / 2
            x = moved(first, float(plan.sigmas[0]), source)
        else:
            slopes.appendleft(slope)
            weights = ADAMS_BASHFORTH[len(slopes) - 1]
            slope = np.sum([w * s for w, s in zip(weights, slopes, strict=True)], axis=0)
        x, level = x + slope * (target - source), target
        yield Step(i, len(plan), target, x, x0)


def lcm(denoise: Denoise, x: np.ndarray, plan: Plan, noise: Noise) -> Iterator[Step]:
    """Multistep consistency sampling (Luo et al. 2023, algorithm 3): jump to the picture, add fresh noise, again."""
    for i, sigma, _, target in plan.levels():
        x0 = denoise(x, sigma)
        scaled = float(plan.timesteps[i]) * LCM_TIMESTEP_SCALING
        skip = LCM_SIGMA_DATA**2 / (scaled**2 + LCM_SIGMA_DATA**2)
        out = scaled / math.hypot(scaled, LCM_SIGMA_DATA)
        x = x0 * out + x * (skip / math.hypot(1, sigma))
        if target > 0:
            x = x + noise(x.shape) * target
        yield Step(i, len(plan), target, x, x0)


def moved(x: np.ndarray, level: float, sigma: float) -> np.ndarray:
    """The sample whose unit-variance form at `sigma` is that of `x` at `level`."""
    return x if level == sigma else x * (math.hypot(1, sigma) / math.hypot(1, level))


def plan_euler(schedule: Schedule, steps: int) -> Plan:
    timesteps = schedule.timesteps(steps)
    sigmas = schedule.sigma(timesteps)
    start = float(sigmas[0]) if schedule.betas.spacing != "leading" else math.hypot(1, sigmas[0])
    return Plan(timesteps, sigmas, sigmas, np.append(sigmas[1:], 0.0), start)


def plan_ddim(schedule: Schedule, steps: int) -> Plan:
    timesteps = np.round(schedule.timesteps(steps))
    sigmas = schedule.sigma(timesteps)
    return Plan(timesteps, sigmas, sigmas, _one_stride_on(schedule, timesteps, steps), math.hypot(1, sigmas[0]))


def plan_dpmpp_2m(schedule: Schedule, steps: int) -> Plan:
    schedule.check(steps)
    spacing = schedule.betas.spacing
    if spacing == "linspace":
        timesteps = np.round(np.linspace(0, schedule.betas.train_steps - 1, steps + 1))[:0:-1]
    elif spacing == "leading":
        timesteps = schedule.leading(steps + 1, steps + 1)[:-1]
    else:
        timesteps = schedule.timesteps(steps)
    sigmas = schedule.sigma(timesteps)
    return Plan(timesteps, sigmas, sigmas, np.append(sigmas[1:], 0.0), math.hypot(1, sigmas[0]))


def plan_pndm(schedule: Schedule, steps: int) -> Plan:
    spaced = np.round(schedule.timesteps(steps))
    timesteps = np.insert(spaced, 1, spaced[1:2])  # the second one twice
    sigmas = schedule.sigma(timesteps)
    sources, targets = sigmas.copy(), _one_stride_on(schedule, timesteps, steps)
    sources[1:2] = schedule.sigma(timesteps[1:2] + schedule.betas.train_steps // steps)
    targets[1:2] = sigmas[1:2]
    return Plan(timesteps, sigmas, sources, targets, math.hypot(1, sigmas[0]))


def plan_lcm(schedule: Schedule, steps: int) -> Plan:
    schedule.check(steps)
    if steps > LCM_STEPS:
        raise UsageError(f"steps is {steps}, lcm takes at most {LCM_STEPS}; 1 to 8 are usual")
    teacher = (np.arange(LCM_STEPS, 0, -1) * (schedule.betas.train_steps // LCM_STEPS) - 1).astype(np.float64)
    timesteps = teacher[np.linspace(0, LCM_STEPS, steps, endpoint=False).astype(np.int64)]
    sigmas = schedule.sigma(timesteps)
    return Plan(timesteps, sigmas, sigmas, np.append(sigmas[1:], 0.0), math.hypot(1, sigmas[0]))


def _one_stride_on(schedule: Schedule, timesteps: np.ndarray, steps: int) -> np.ndarray:
    """Levels one stride of N // steps below each timestep; past the cleanest one, where the schedule ends."""
    after = timesteps - schedule.betas.train_steps // steps
    return np.where(after >= 0, schedule.sigma(after), schedule.final)


@dataclass(frozen=True)
class Sampler:
    """A plan and the loop that follows it."""

    plan: Callable[[Schedule, int], Plan]
    loop: Callable[[Denoise, np.ndarray, Plan, Noise], Iterator[Step]]


SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(plan_euler, euler),
    "ddim": Sampler(plan_ddim, euler),
    "dpmpp_2m": Sampler(plan_dpmpp_2m, dpmpp_2m),
    "pndm": Sampler(plan_pndm, pndm),
    "lcm": Sampler(plan_lcm, lcm),
}
