"""The noise schedule a network was trained on, as sigmas: x = x0 + sigma · noise; samplers need know nothing else.

A network's own sample has unit variance: x / √(1 + sigma²); 1 / (1 + sigma²) is what others call alphas_cumprod.
"""

# N training steps; timesteps count from 0, the cleanest, to N - 1

from dataclasses import dataclass

import numpy as np

from kdc_edge.errors import UsageError
from kdc_edge.manifest import Betas


@dataclass(frozen=True, eq=False)
class Schedule:
    """`sigmas` (N,) float64, rising."""

    betas: Betas
    sigmas: np.ndarray

    @classmethod
    def of(cls, betas: Betas) -> "Schedule":
        """The schedule of a manifest's betas."""
        power = 2 if betas.schedule == "scaled_linear" else 1
        steps = np.linspace(betas.start ** (1 / power), betas.end ** (1 / power), betas.train_steps) ** power
        alphas_cumprod = np.cumprod(1 - steps)
        return cls(betas, np.sqrt((1 - alphas_cumprod) / alphas_cumprod))

    @property
    def final(self) -> float:
        """Where samplers that follow `set_alpha_to_one` end."""
        return 0.0 if self.betas.set_alpha_to_one else float(self.sigmas[0])

    def sigma(self, timesteps: np.ndarray) -> np.ndarray:
        """Sigmas of timesteps, linear between two training steps."""
        return np.interp(timesteps, np.arange(len(self.sigmas)), self.sigmas)

    def timestep(self, sigma: float) -> float:
        """The inverse of `sigma`; fractional between two training steps."""
        return float(np.interp(sigma, self.sigmas, np.arange(len(self.sigmas))))

    def timesteps(self, steps: int) -> np.ndarray:
        """`steps` falling timesteps (steps,) in the spacing of the betas; linspace is not rounded."""
        count, spacing = self.betas.train_steps, self.betas.spacing
        self.check(steps)
        if spacing == "linspace":
            return np.linspace(0, count - 1, steps)[::-1]
        if spacing == "trailing":
            return np.round(count - np.arange(steps) * (count / steps)) - 1
        return self.leading(steps, steps)

    def leading(self, steps: int, parts: int) -> np.ndarray:
        """The first `steps` of N // `parts` steps from `steps_offset` up, falling."""
        timesteps = (np.arange(steps) * (self.betas.train_steps // parts))[::-1] + self.betas.steps_offset
        if timesteps[0] >= self.betas.train_steps:
            raise UsageError(f"{steps} steps with steps_offset {self.betas.steps_offset} pass the schedule; use fewer")
        return timesteps.astype(np.float64)

    def check(self, steps: int) -> None:
        """UsageError unless there can be that many steps."""
        if not 1 <= steps <= self.betas.train_steps:
            raise UsageError(f"steps is {steps}, must be between 1 and {self.betas.train_steps}")
