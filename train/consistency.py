"""The arithmetic of latent consistency distillation (arXiv 2310.04378): a solver's jump, and the picture a network sees.

z_t = α_t·x0 + σ_t·ε, with the α and σ of the scheduler; timesteps are those of diffusers' `LCMScheduler`.
"""

# B batch, C latent channels, h w latent grid

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from kdc_edge.errors import UsageError

STEPS = 50  # of the solver whose jumps are learned
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # LCMScheduler's
HUBER = 1e-3


@dataclass(frozen=True)
class Solver:
    """DDIM on a grid of `STEPS` timesteps, guided."""

    alphas: Tensor  # (train steps,): α²
    prediction_type: str
    guidance: tuple[float, float]
    timesteps: Tensor  # (STEPS,), rising

    @classmethod
    def of(cls, scheduler: DDIMScheduler, guidance: tuple[float, float]) -> "Solver":
        """Raises UsageError for a scheduler whose prediction type is unknown, and for a range of guidance that is none."""
        kind, train_steps = scheduler.config.prediction_type, scheduler.config.num_train_timesteps
        if kind not in ("epsilon", "v_prediction", "sample"):
            raise UsageError(f"the model predicts {kind}; epsilon, v_prediction or sample is wanted")
        if not 1 <= guidance[0] <= guidance[1]:
            low, high = guidance
            raise UsageError(f"--guidance is {low:g} to {high:g}; it must rise, from 1 (without guidance) or more")
        stride = train_steps // STEPS
        return cls(scheduler.alphas_cumprod, kind, guidance, torch.arange(1, STEPS + 1) * stride - 1)

    def before(self, timesteps: Tensor) -> Tensor:
        """(B,) one place down the grid; below the lowest, 0."""
        stride = int(self.timesteps[1] - self.timesteps[0])
        return (timesteps - stride).clamp_min(0)

    def guided(self, conditional: Tensor, unconditional: Tensor, share: Tensor) -> Tensor:
        """With each sample's guidance at `share` (B,) in [0, 1] of the range."""
        low, high = self.guidance
        scale = (low + (high - low) * share).view(-1, 1, 1, 1).to(conditional)
        return unconditional + scale * (conditional - unconditional)

    def jump(self, z: Tensor, prediction: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """DDIM's step (arXiv 2010.02502, equation 12 with η = 0)."""
        x0, noise = self.parts(z, prediction, here)
        alpha, sigma = self._levels(there, z)
        return alpha * x0 + sigma * noise

    def picture(self, z: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """c_skip·z + c_out·x0, (B, C, h, w): the consistency function, which leaves a picture without noise alone."""
        scaled = (timesteps * TIMESTEP_SCALING).view(-1, 1, 1, 1).float()
        skip = SIGMA_DATA**2 / (scaled.square() + SIGMA_DATA**2)
        out = scaled / (scaled.square() + SIGMA_DATA**2).sqrt()
        return skip * z + out * self.parts(z, prediction, timesteps)[0]

    def parts(self, z: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and ε of a prediction of the network's type."""
        alpha, sigma = self._levels(timesteps, z)
        prediction = prediction.float()
        if self.prediction_type == "epsilon":
            return (z - sigma * prediction) / alpha, prediction
        if self.prediction_type == "sample":
            return prediction, (z - alpha * prediction) / sigma
        return alpha * z - sigma * prediction, alpha * prediction + sigma * z

    def _levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        squared = self.alphas.to(like.device)[timesteps].view(-1, 1, 1, 1)
        return squared.sqrt(), (1 - squared).sqrt()


def huber(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the pseudo-Huber distance."""
    return ((a - b).square() + HUBER**2).sqrt().mean() - HUBER


def lcm_scheduler(scheduler: DDIMScheduler) -> LCMScheduler:
    """For sampling what was trained on this scheduler's noise."""
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset")
    kept: dict[str, Any] = {name: scheduler.config[name] for name in names}
    return LCMScheduler(**kept, original_inference_steps=STEPS, clip_sample=False, timestep_scaling=TIMESTEP_SCALING)
