"""A guided model's way from noise to picture: DDIM's arithmetic for every prediction type.

z_t = α_t·x0 + σ_t·ε, with the α and σ of the scheduler; timestep -1 is where the sampler ends.
"""

# B batch, C latent channels, h w latent grid

from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from kdc_edge.errors import UsageError
from train.diffusion import noise_schedule


@dataclass(frozen=True)
class Solver:
    """DDIM (arXiv 2010.02502, equation 12 with η = 0) under classifier-free guidance."""

    alphas: Tensor  # (train steps + 1,): α², that of the sampler's end last, so that -1 finds it
    prediction_type: str
    guidance: tuple[float, float]

    @classmethod
    def of(cls, scheduler: DDIMScheduler, guidance: tuple[float, float]) -> "Solver":
        """Raises UsageError for a range of guidance that is none, and what `noise_schedule` raises."""
        scheduler = noise_schedule(scheduler)
        kind = scheduler.config.prediction_type
        if not 1 <= guidance[0] <= guidance[1]:
            low, high = guidance
            raise UsageError(f"--guidance is {low:g} to {high:g}; it must rise, from 1 (without guidance) or more")
        end = torch.ones(1) if scheduler.config.set_alpha_to_one else scheduler.alphas_cumprod[:1]
        return cls(torch.cat([scheduler.alphas_cumprod, end]), kind, guidance)

    def guided(self, conditional: Tensor, unconditional: Tensor, share: Tensor) -> Tensor:
        """With each sample's guidance at `share` (B,) in [0, 1] of the range."""
        low, high = self.guidance
        scale = (low + (high - low) * share).view(-1, 1, 1, 1).to(conditional)
        return unconditional + scale * (conditional - unconditional)

    def jump(self, z: Tensor, prediction: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """One step of DDIM from timesteps `here` to `there`, both (B,)."""
        x0, noise = self.parts(z, prediction, here)
        alpha, sigma = self.levels(there, z)
        return alpha * x0 + sigma * noise

    def parts(self, z: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """x0 and ε of a prediction of the network's type."""
        alpha, sigma = self.levels(timesteps, z)
        prediction = prediction.float()
        if self.prediction_type == "epsilon":
            return (z - sigma * prediction) / alpha, prediction
        if self.prediction_type == "sample":
            return prediction, (z - alpha * prediction) / sigma
        return alpha * z - sigma * prediction, alpha * prediction + sigma * z

    def picture_between(self, z: Tensor, arrived: Tensor, here: Tensor, there: Tensor) -> Tensor:
        """The x0 whose jump leads from `z` to `arrived` (arXiv 2202.00512, appendix G)."""
        alpha, sigma = self.levels(here, z)
        alpha_there, sigma_there = self.levels(there, z)
        ratio = sigma_there / sigma
        return (arrived - ratio * z) / (alpha_there - ratio * alpha)

    def levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """α and σ, (B, 1, 1, 1)."""
        squared = self.alphas.to(like.device)[timesteps].view(-1, 1, 1, 1)
        return squared.sqrt(), (1 - squared).sqrt()
