"""The autoencoder: an `AutoencoderTiny` without full-resolution blocks, 64×64×3 ↔ 8×8×16.

Latents come out with mean 0 and deviation 1 in every channel, because diffusers knows one scalar `scaling_factor` and the
tiny decoder squashes what it reads (3·tanh(z/3)): a penalty sees to it while training, and no wrapper has to.
"""

# B batch, C latent channels, h w latent grid, H W pixels; pixels in [-1, 1]

from collections.abc import Iterator, Mapping

import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from train.loop import Loss
from train.recipes import AutoencoderConfig


def build(config: AutoencoderConfig) -> AutoencoderTiny:
    levels = len(config.encoder_blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=(config.channels,) * levels,
        decoder_block_out_channels=(config.channels,) * levels,
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
        latent_channels=config.latent_channels,
    ).to(memory_format=torch.channels_last)


def reconstruction_loss(vae: AutoencoderTiny, pixels: Tensor, batch_size: int, noise: float) -> Loss:
    """Squared plus a little absolute error, and the penalty that normalises the latents. `pixels` (N, 3, H, W) uint8."""

    def loss(step: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        index = torch.randint(len(pixels), (batch_size,), generator=generator)
        x = to_float(pixels[index]).to(vae.device)  # (B, 3, H, W)
        z = vae.encode(x).latents  # (B, C, h, w)
        jitter = torch.randn(z.shape, generator=generator).to(z) * noise
        y = vae.decode(z + jitter).sample  # (B, 3, H, W)
        mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
        return {
            "l2": F.mse_loss(y, x),
            "l1": 0.05 * F.l1_loss(y, x),
            "latent": 0.01 * (mean.square() + (std - 1).square()).mean(),
        }

    return loss


def to_float(pixels: Tensor) -> Tensor:
    """uint8 [0, 255] → float32 [-1, 1]."""
    return pixels.float().div(127.5).sub(1).contiguous(memory_format=torch.channels_last)


def batches(pixels: Tensor, size: int = 256) -> Iterator[Tensor]:
    for start in range(0, len(pixels), size):
        yield to_float(pixels[start : start + size])


@torch.no_grad()
def encode(vae: AutoencoderTiny, pixels: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 → (N, C, h, w) float32, on the CPU."""
    return torch.cat([vae.encode(x.to(vae.device)).latents.float().cpu() for x in batches(pixels)])


@torch.no_grad()
def psnr(vae: AutoencoderTiny, pixels: Tensor) -> float:
    """Mean over pictures of 10·log10(1 / mean squared error), pixels in [0, 1], reconstruction rounded to 8 bits."""
    values = []
    for x in batches(pixels):
        y = vae.decode(vae.encode(x.to(vae.device)).latents).sample.float().cpu()
        error = (((y.clamp(-1, 1) + 1) * 127.5).round() / 255 - (x + 1) / 2).square().mean((1, 2, 3))
        values.append(-10 * error.clamp_min(1e-10).log10())
    return torch.cat(values).mean().item()
