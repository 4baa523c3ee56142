"""Latent consistency distillation (arXiv 2310.04378): both ends of one jump of the guided model lead to the same picture.

Timesteps and scalings are those of diffusers' `LCMScheduler`.
"""

# B batch, C latent channels, h w latent grid

from typing import Any

import torch
from diffusers import DDIMScheduler, LCMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from train.diffusion import Cache
from train.solver import Solver
from train.trainer import Loss, Part

STEPS = 50  # of the solver whose jumps are learned
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0  # LCMScheduler's
HUBER = 1e-3


def grid(scheduler: DDIMScheduler) -> Tensor:
    """(STEPS,) rising timesteps."""
    return torch.arange(1, STEPS + 1) * (scheduler.config.num_train_timesteps // STEPS) - 1


def picture(solver: Solver, z: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
    """c_skip·z + c_out·x0, (B, C, h, w): the consistency function, which leaves a picture without noise alone."""
    scaled = (timesteps * TIMESTEP_SCALING).view(-1, 1, 1, 1).float()
    skip = SIGMA_DATA**2 / (scaled.square() + SIGMA_DATA**2)
    out = scaled / (scaled.square() + SIGMA_DATA**2).sqrt()
    return skip * z + out * solver.parts(z, prediction, timesteps)[0]


def huber(a: Tensor, b: Tensor) -> Tensor:
    """Mean of the pseudo-Huber distance."""
    return ((a - b).square() + HUBER**2).sqrt().mean() - HUBER


def consistency_loss(model: UNet2DConditionModel, source: Cache, solver: Solver, batch_size: int) -> Loss:
    """Huber distance between the pictures seen from both ends of a jump; from the lower one, by the averaged weights."""
    timesteps = grid(source.scheduler)
    stride = int(timesteps[1] - timesteps[0])

    def loss(network: nn.Module, part: Part) -> dict[str, Tensor]:
        draw = source.draw(batch_size, part, timesteps)
        share = torch.rand(batch_size, generator=part.generator)[part.rows(batch_size)]
        here, there = draw.timesteps, (draw.timesteps - stride).clamp_min(0)
        with torch.no_grad():
            answers = [model(draw.noisy, here, text).sample for text in (draw.text, source.empty(draw.text))]
            jumped = solver.jump(draw.noisy, solver.guided(*answers, share), here, there)
            answer = part.averaged(jumped, there, draw.text).sample
            target = picture(solver, jumped, answer, there)
        seen = picture(solver, draw.noisy, network(draw.noisy, here, draw.text).sample, here)
        return {"consistency": huber(seen, target)}

    return loss


def lcm_scheduler(scheduler: DDIMScheduler) -> LCMScheduler:
    """For sampling what was trained on this scheduler's noise."""
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type", "steps_offset")
    kept: dict[str, Any] = {name: scheduler.config[name] for name in names}
    return LCMScheduler(**kept, original_inference_steps=STEPS, clip_sample=False, timestep_scaling=TIMESTEP_SCALING)
