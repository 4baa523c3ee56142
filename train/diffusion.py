"""Latent diffusion: the U-Net's shape, what one training draw is, and the task loss.

The schedule and the parametrisation are the scheduler's own (`DDIMScheduler.add_noise`, `get_velocity`), so training,
diffusers' pipelines and the device's samplers agree by construction.
"""

# B batch, C latent channels, h w latent grid, T text tokens, D text width

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F

from kdc_edge.errors import UsageError
from train.captions import CaptionChoice
from train.recipes import UNetConfig
from train.rows import Rows
from train.trainer import Loss, Part

SMALL_GRID = 16  # latents a side
PREDICTIONS = ("epsilon", "v_prediction", "sample")
NOISE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


def build(config: UNetConfig, latent_channels: int, latent_size: int, text_width: int) -> UNet2DConditionModel:
    down = tuple("CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention)
    up = tuple("CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention))
    return UNet2DConditionModel(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=config.layers_per_block,
        block_out_channels=config.channels,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=text_width,
        # diffusers reads `attention_head_dim` as the number of heads
        attention_head_dim=tuple(width // config.head_dim for width in config.channels),
    )


def for_training(unet: UNet2DConditionModel, device: torch.device) -> UNet2DConditionModel:
    """On `device`, with gradients."""
    return attending(unet, device).to(device, memory_format=layout(device)).requires_grad_(True)


def for_inference(unet: UNet2DConditionModel, device: torch.device) -> UNet2DConditionModel:
    """On `device`, frozen."""
    return unet.to(device, memory_format=layout(device)).requires_grad_(False)


def layout(device: torch.device) -> torch.memory_format:
    """Of a U-Net's weights and latents, as is fastest on `device`."""
    return torch.contiguous_format if device.type == "cpu" else torch.channels_last


def attending(unet: UNet2DConditionModel, device: torch.device) -> UNet2DConditionModel:
    """As is fastest on `device`: a small grid on a CPU plainly, all else the fused way."""
    if device.type == "cpu" and unet.config.sample_size <= SMALL_GRID:
        unet.set_attn_processor(AttnProcessor())
    return unet


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's scaled-linear noise schedule, v-prediction, trailing timesteps (arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )


def noise_schedule(scheduler: Any) -> DDIMScheduler:
    """The noise that a folder's network knows, whichever sampler the folder names: training needs ddim's.

    What another sampler does not say is as in Stable Diffusion, but the way starts at the last timestep, where noise is
    purest. Raises UsageError for a scheduler without betas or with an unknown prediction type.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if missing := [key for key in ("beta_schedule", "prediction_type") if config.get(key) is None]:
        raise UsageError(f"the model's {name} has no {missing[0]}; Stable Diffusion 1.x or 2.x is wanted")
    if config["prediction_type"] not in PREDICTIONS:
        raise UsageError(f"the model predicts {config['prediction_type']}; {', '.join(PREDICTIONS)} is wanted")
    if type(scheduler) is DDIMScheduler:
        return scheduler
    kept = {key: config[key] for key in (*NOISE, "rescale_betas_zero_snr") if key in config}
    to_one = config.get("set_alpha_to_one", False)
    return DDIMScheduler(
        **kept, clip_sample=False, set_alpha_to_one=to_one, timestep_spacing="trailing", steps_offset=1
    )


@dataclass(frozen=True)
class Draw:
    """One batch: what the network reads and what it should answer."""

    noisy: Tensor  # (B, C, h, w)
    timesteps: Tensor  # (B,)
    text: Tensor  # (B, T, D)
    target: Tensor  # (B, C, h, w)


@dataclass(frozen=True)
class Latents:
    """Of every picture: mean (N, C, h, w); deviation, if the autoencoder has one; and the same of the mirrored picture."""

    mean: Rows
    std: Rows | None = None
    flipped_mean: Rows | None = None
    flipped_std: Rows | None = None

    def draw(self, index: Tensor, keep: slice, generator: torch.Generator) -> Tensor:
        """(B, C, h, w) float32 for `index[keep]`; as many random numbers are taken as for all of `index`."""
        found = _sample(self.mean, self.std, index, keep, generator)
        if self.flipped_mean is None:
            return found
        other = _sample(self.flipped_mean, self.flipped_std, index, keep, generator)
        mirrored = torch.rand(len(index), 1, 1, 1, generator=generator)[keep] < 0.5
        return torch.where(mirrored, other, found)


def _sample(mean: Rows, std: Rows | None, index: Tensor, keep: slice, generator: torch.Generator) -> Tensor:
    found = mean[index[keep]].float()
    if std is None:
        return found
    return found + std[index[keep]].float() * torch.randn(len(index), *found.shape[1:], generator=generator)[keep]


@dataclass(frozen=True)
class Cache:
    """What does not change while a U-Net is trained: latents of the pictures, and text states of their captions.

    `weights` (N,) is each picture's share of the draws; `numbers` (M,) the row in `text` of each caption; row 0 of `text`
    is the empty prompt.
    """

    latents: Latents
    text: Rows  # (distinct, T, D)
    choice: CaptionChoice
    numbers: Tensor
    weights: Tensor
    scheduler: DDIMScheduler
    dropout: float = 0.1

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheduler", noise_schedule(self.scheduler))

    def draw(self, batch_size: int, part: Part, among: Tensor | None = None) -> Draw:
        """The part's rows of a batch that is the same for all parts; its timesteps are `among` these, if any are given."""
        generator, keep = part.generator, part.rows(batch_size)
        index = torch.multinomial(self.weights, batch_size, replacement=True, generator=generator)
        rows = self.numbers[self.choice.rows(index, generator)]
        rows[torch.rand(batch_size, generator=generator) < self.dropout] = 0
        clean = self.latents.draw(index, keep, generator)
        noise = torch.randn(batch_size, *clean.shape[1:], generator=generator)[keep]
        count = self.scheduler.config.num_train_timesteps if among is None else len(among)
        timesteps = torch.randint(count, (batch_size,), generator=generator)[keep]
        timesteps = timesteps if among is None else among[timesteps]
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        target = prediction_target(self.scheduler, clean, noise, timesteps)
        return Draw(
            noisy.to(part.device, memory_format=layout(part.device)),
            timesteps.to(part.device),
            self.text[rows[keep]].to(part.device).float(),
            target.to(part.device),
        )

    def clean(self, batch_size: int, part: Part) -> Tensor:
        """The part's rows of a batch of latents without noise, (B, C, h, w)."""
        index = torch.multinomial(self.weights, batch_size, replacement=True, generator=part.generator)
        return self.latents.draw(index, part.rows(batch_size), part.generator).to(part.device)

    def start(self, batch_size: int, part: Part) -> tuple[Tensor, Tensor]:
        """Captions' states and noise, (B, T, D) and (B, C, h, w): the part's rows of what pictures begin with."""
        generator, keep = part.generator, part.rows(batch_size)
        index = torch.multinomial(self.weights, batch_size, replacement=True, generator=generator)
        rows = self.numbers[self.choice.rows(index, generator)][keep]
        noise = torch.randn(batch_size, *self.latents.mean.shape[1:], generator=generator)[keep]
        return self.text[rows].to(part.device).float(), noise.to(part.device, memory_format=layout(part.device))

    def empty(self, text: Tensor) -> Tensor:
        """The empty prompt's states in place of these, (B, T, D)."""
        return self.text[torch.zeros(len(text), dtype=torch.int64)].to(text)


def prediction_target(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What a network of the scheduler's prediction type should answer."""
    kinds = {
        "epsilon": lambda: noise,
        "sample": lambda: clean,
        "v_prediction": lambda: scheduler.get_velocity(clean, noise, timesteps),
    }
    return kinds[scheduler.config.prediction_type]()


def task_loss(source: Cache, batch_size: int) -> Loss:
    """Mean squared error of the prediction (arXiv 2202.00512 for v)."""

    def loss(unet: nn.Module, part: Part) -> Mapping[str, Tensor]:
        draw = source.draw(batch_size, part)
        return {"task": F.mse_loss(unet(draw.noisy, draw.timesteps, draw.text).sample.float(), draw.target)}

    return loss
