"""The networks of decoder distillation: a tiny autoencoder on the teacher's latents, and what the teacher is asked."""

# B batch, C latent channels, h w latent grid, H W pixels; latents as the U-Net knows them, pixels in [-1, 1]

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from kdc_edge.errors import UsageError
from kdc_edge.torch_ref.macs import count
from train.diffusion import Cache

MEASURED = 64  # pictures


def build(teacher: AutoencoderKL | AutoencoderTiny, channels: int, blocks: Sequence[int]) -> AutoencoderTiny:
    """`blocks` from the latents outwards, one number for every level of the teacher. Raises UsageError for another count."""
    levels = len(teacher.config.block_out_channels)
    if len(blocks) != levels:
        raise UsageError(f"--blocks has {len(blocks)} numbers, the autoencoder has {levels} levels; give one for each")
    return AutoencoderTiny(
        encoder_block_out_channels=(channels,) * levels,
        decoder_block_out_channels=(channels,) * levels,
        num_encoder_blocks=tuple(reversed(blocks)),
        num_decoder_blocks=tuple(blocks),
        latent_channels=teacher.config.latent_channels,
        scaling_factor=1.0,
    ).to(memory_format=torch.channels_last)


class BothWays(nn.Module):
    """Decodes latents and encodes pictures in one call."""

    def __init__(self, tiny: AutoencoderTiny) -> None:
        super().__init__()
        self.tiny = tiny

    def forward(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.tiny.decode(z).sample, self.tiny.encode(x).latents


class Teacher:
    """A frozen KL autoencoder."""

    def __init__(self, vae: AutoencoderKL) -> None:
        if not isinstance(vae, AutoencoderKL):
            raise UsageError(
                f"the model's autoencoder is an {type(vae).__name__}; only an AutoencoderKL has much to lose"
            )
        self.vae, self.device = vae, vae.device

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, C, h, w) → (B, 3, H, W)"""
        return self.vae.decode(z / self.vae.config.scaling_factor).sample.float().clamp(-1, 1)

    def features(self, x: Tensor) -> list[Tensor]:
        """The outputs of the encoder's stages, the last left out, with gradients to `x`."""
        encoder, found = self.vae.encoder, []
        x = encoder.conv_in(x)
        for block in list(encoder.down_blocks)[:-1]:
            x = block(x)
            found.append(x)
        return found


def measure(teacher: Teacher, student: AutoencoderTiny, source: Cache) -> dict[str, float | int]:
    """How near the student's pictures are to the teacher's, and what each decoder costs."""
    z = source.latents.mean[torch.arange(min(MEASURED, source.latents.mean.shape[0]))].float().to(teacher.device)
    with torch.no_grad():
        pairs = [(teacher.decode(part), student.decode(part).sample.clamp(-1, 1)) for part in z.split(8)]
    errors = torch.cat([((a - b) / 2).square().mean((1, 2, 3)) for a, b in pairs])
    networks = {"teacher": teacher.vae, "student": student}
    costs = {name: count(_Decoder(network), {"z": z[:1]}) for name, network in networks.items()}
    return {
        "psnr_to_teacher": round(-10 * errors.clamp_min(1e-10).log10().mean().item(), 2),
        **{f"{name}_decoder_parameters": found.parameters for name, found in costs.items()},
        **{f"{name}_decoder_macs": found.macs for name, found in costs.items()},
    }


class _Decoder(nn.Module):
    def __init__(self, vae: AutoencoderKL | AutoencoderTiny) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self.first = getattr(vae, "post_quant_conv", None) or nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(self.first(z))
