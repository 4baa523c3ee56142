"""The autoencoder: an `AutoencoderTiny` without full-resolution blocks, 64×64×3 ↔ 8×8×16.

Latents come out with mean 0 and deviation 1 in every channel, because diffusers knows one scalar `scaling_factor` and the
tiny decoder squashes what it reads (3·tanh(z/3)): a penalty sees to it while training, and no wrapper has to.
"""

# B batch, C latent channels, h w latent grid, H W pixels; pixels in [-1, 1]

from collections.abc import Mapping

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from torch.nn import functional as F

from train.recipes import AutoencoderConfig
from train.trainer import Loss, Part

BATCH = 256  # pictures of one call


def build(config: AutoencoderConfig) -> AutoencoderTiny:
    levels = len(config.encoder_blocks)
    return AutoencoderTiny(
        encoder_block_out_channels=(config.channels,) * levels,
        decoder_block_out_channels=(config.channels,) * levels,
        num_encoder_blocks=config.encoder_blocks,
        num_decoder_blocks=config.decoder_blocks,
        latent_channels=config.latent_channels,
    ).to(memory_format=torch.channels_last)


class Reconstruction(nn.Module):
    """Latents (B, C, h, w) of pictures (B, 3, H, W), and what is decoded from them and a little noise, in one call."""

    def __init__(self, vae: AutoencoderTiny, noise: float) -> None:
        super().__init__()
        self.vae, self.noise = vae, noise

    def forward(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        z = self.vae.encode(x).latents
        jitter = torch.randn(z.shape, generator=generator).to(z) * self.noise
        return z, self.vae.decode(z + jitter).sample


def reconstruction_loss(pixels: Tensor, batch_size: int) -> Loss:
    """Squared plus a little absolute error, and the penalty that normalises the latents. `pixels` (N, 3, H, W) uint8."""

    def loss(network: nn.Module, part: Part) -> Mapping[str, Tensor]:
        index = torch.randint(len(pixels), (batch_size,), generator=part.generator)[part.rows(batch_size)]
        x = to_float(pixels[index]).to(part.device)
        z, y = network(x, part.generator)
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


def encode(vae: AutoencoderTiny | AutoencoderKL, pixels: Tensor) -> Tensor:
    """(N, 3, H, W) uint8 → (N, C, h, w) float32 as the U-Net knows them, on the CPU; of a KL autoencoder the mean."""
    return torch.cat([posterior(vae, part)["mean"] for part in pixels.split(BATCH)])


@torch.no_grad()
def posterior(vae: AutoencoderTiny | AutoencoderKL, pixels: Tensor) -> dict[str, Tensor]:
    """Of one batch, `mean` (B, C, h, w) and, of a KL autoencoder, `std`; scaled as the U-Net knows them, on the CPU."""
    found = vae.encode(to_float(pixels).to(vae.device))
    tiny = isinstance(vae, AutoencoderTiny)
    parts = {"mean": found.latents} if tiny else {"mean": found.latent_dist.mean, "std": found.latent_dist.std}
    return {name: (value * vae.config.scaling_factor).float().cpu().contiguous() for name, value in parts.items()}


@torch.no_grad()
def decode(vae: AutoencoderTiny | AutoencoderKL, latents: Tensor) -> Tensor:
    """(B, C, h, w) as the U-Net knows them → (B, 3, H, W) float32 in [-1, 1], on the CPU."""
    found = vae.decode((latents / vae.config.scaling_factor).to(vae.device)).sample
    return found.float().clamp(-1, 1).cpu()


def psnr(vae: AutoencoderTiny | AutoencoderKL, pixels: Tensor) -> float:
    """Mean over pictures of 10·log10(1 / mean squared error), pixels in [0, 1], reconstruction rounded to 8 bits."""
    values = []
    for part in pixels.split(BATCH):
        x, y = to_float(part), decode(vae, encode(vae, part))
        error = (((y + 1) * 127.5).round() / 255 - (x + 1) / 2).square().mean((1, 2, 3))
        values.append(-10 * error.clamp_min(1e-10).log10())
    return torch.cat(values).mean().item()
