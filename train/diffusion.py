"""Latent diffusion: the U-Net's shape, what one training draw is, and the task loss.

The schedule and the parametrisation are the scheduler's own (`DDIMScheduler.add_noise`, `get_velocity`), so training,
diffusers' pipelines and the device's samplers agree by construction.
"""

# B batch, C latent channels, h w latent grid, T text tokens, D text width

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTokenizer

from train.autoencoder import encode
from train.contrastive import CaptionIds
from train.data import Pictures
from train.loop import Loss, Part
from train.recipes import UNetConfig
from train.tokenizer import pad_ids


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
    ).to(memory_format=torch.channels_last)


def for_training(unet: UNet2DConditionModel, device: torch.device) -> UNet2DConditionModel:
    """On `device`, with gradients; on a CPU with plain attention, faster to train there than the fused one."""
    if device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())
    return unet.to(device).requires_grad_(True)


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


@dataclass(frozen=True)
class Draw:
    """One batch: what the network reads and what it should answer."""

    noisy: Tensor  # (B, C, h, w)
    timesteps: Tensor  # (B,)
    text: Tensor  # (B, T, D)
    target: Tensor  # (B, C, h, w)


@dataclass
class Cache:
    """Latents of every picture and text states of every caption, computed once.

    `weights` (N,) is each picture's share of the draws; row 0 of `text` is the empty prompt.
    """

    latents: Tensor  # (N, C, h, w)
    text: Tensor  # (M + 1, T, D) fp16
    ids: CaptionIds
    weights: Tensor
    scheduler: DDIMScheduler
    dropout: float = 0.1

    def draw(self, batch_size: int, part: Part) -> Draw:
        """The part's rows of a batch that is the same for all parts."""
        generator, keep = part.generator, part.rows(batch_size)
        index = torch.multinomial(self.weights, batch_size, replacement=True, generator=generator)
        rows = 1 + self.ids.rows(index, generator)
        rows[torch.rand(batch_size, generator=generator) < self.dropout] = 0
        noise = torch.randn(batch_size, *self.latents.shape[1:], generator=generator)[keep]
        timesteps = torch.randint(self.scheduler.config.num_train_timesteps, (batch_size,), generator=generator)[keep]
        clean = self.latents[index[keep]]
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        target = prediction_target(self.scheduler, clean, noise, timesteps)
        return Draw(
            noisy.to(part.device, memory_format=torch.channels_last),
            timesteps.to(part.device),
            self.text[rows[keep]].to(part.device).float(),
            target.to(part.device),
        )


def prediction_target(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What a network of the scheduler's prediction type should answer."""
    kinds = {
        "epsilon": lambda: noise,
        "sample": lambda: clean,
        "v_prediction": lambda: scheduler.get_velocity(clean, noise, timesteps),
    }
    return kinds[scheduler.config.prediction_type]()


@torch.no_grad()
def text_states(encoder: CLIPTextModel, ids: Tensor, label: str, batch_size: int = 128) -> Tensor:
    """(M, T) → (M, T, D) fp16, on the CPU."""
    parts = tqdm(ids.split(batch_size), desc=label, disable=None)
    return torch.cat([encoder(part.to(encoder.device)).last_hidden_state.half().cpu() for part in parts])


def cache(
    latents: Tensor,
    captions: Sequence[Sequence[str]],
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    scheduler: DDIMScheduler,
    weights: Tensor,
) -> Cache:
    ids = CaptionIds(tokenizer, captions)
    empty = pad_ids(tokenizer, [""])
    return Cache(latents, text_states(encoder, torch.cat([empty, ids.ids]), "text"), ids, weights, scheduler)


def source(pipeline: StableDiffusionPipeline, pictures: Pictures, weights: Tensor) -> Cache:
    """Everything that does not change while a U-Net is trained, computed on the U-Net's device."""
    vae, encoder = (module.to(pipeline.unet.device) for module in (pipeline.vae, pipeline.text_encoder))
    latents = encode(vae, pictures.tensor())
    return cache(latents, pictures.captions, pipeline.tokenizer, encoder, pipeline.scheduler, weights)


def task_loss(source: Cache, batch_size: int) -> Loss:
    """Mean squared error of the prediction (arXiv 2202.00512 for v)."""

    def loss(unet: nn.Module, part: Part) -> Mapping[str, Tensor]:
        draw = source.draw(batch_size, part)
        return {"task": F.mse_loss(unet(draw.noisy, draw.timesteps, draw.text).sample.float(), draw.target)}

    return loss
