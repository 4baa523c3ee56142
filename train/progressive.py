"""Guided progressive distillation: one call of the network goes as far as several guided steps of the model.

The target is arXiv 2202.00512's and 2210.03142's. They start from noised pictures; here the network walks its own way from
noise over the few timesteps it will be sampled at, and is corrected at each: it learns from where its own errors lead, and no
pictures are needed, only captions.
"""

# B batch, C latent channels, h w latent grid

from itertools import pairwise

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from kdc_edge.errors import UsageError
from train.diffusion import Cache
from train.solver import Solver
from train.trainer import Loss, Part


def jumps(scheduler: DDIMScheduler, steps: int) -> list[tuple[int, int]]:
    """From which timestep to which the scheduler's `steps` steps lead; -1 is the end. Raises UsageError if there are none."""
    count = scheduler.config.num_train_timesteps
    if not 1 <= steps <= count:
        raise UsageError(f"--steps-drawn is {steps}, must be between 1 and {count}")
    scheduler.set_timesteps(steps)
    return [(here, max(here - count // steps, -1)) for here in scheduler.timesteps.tolist()]


def between(here: int, there: int, parts: int) -> list[int]:
    """Timesteps from `here` to `there` in `parts` jumps, both ends included."""
    return [round(here + (there - here) * i / parts) for i in range(parts + 1)]


def progressive_loss(
    model: UNet2DConditionModel,
    source: Cache,
    solver: Solver,
    batch_size: int,
    *,
    steps: int,
    parts: int,
) -> Loss:
    """Squared error of x0 over σ², which is that of v: mean over `steps` places on the way of each of `batch_size` pictures.

    The model takes `parts` guided steps where the network takes one. Raises UsageError.
    """
    if parts < 1:
        raise UsageError(f"--parts is {parts}, must be at least 1")
    way = jumps(source.scheduler, steps)

    def guide(z: Tensor, here: Tensor, states: tuple[Tensor, Tensor], share: Tensor) -> Tensor:
        return solver.guided(*(model(z, here, text).sample for text in states), share)

    def loss(training: nn.Module, part: Part) -> dict[str, Tensor]:
        text, z = source.start(batch_size, part)
        states = text, source.empty(text)
        share = torch.rand(batch_size, generator=part.generator)[part.rows(batch_size)]
        errors = []
        for jump in way:
            here, there = torch.tensor(jump)
            arrived = z
            with torch.no_grad():
                for now, then in pairwise(torch.tensor(between(*jump, parts))):
                    arrived = solver.jump(arrived, guide(arrived, now, states, share), now, then)
            target = solver.picture_between(z, arrived, here, there)
            answer = training(z, here, text).sample
            seen, _ = solver.parts(z, answer, here)
            errors.append(((seen - target) / solver.levels(here, z)[1]).square().mean())
            z = solver.jump(z, answer.detach(), here, there)
        return {"progressive": torch.stack(errors).mean()}

    return loss
