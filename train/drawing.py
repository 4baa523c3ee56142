"""Pictures by a pipeline of diffusers: many at once, as a sheet, and of a network that is still in training."""

# N pictures, H W pixels, C latent channels, h w latent grid

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from tqdm import tqdm

from kdc_edge.noise import gaussian
from train.folders import with_unet
from train.loop import Sampler

BATCH = 64  # pictures of one call
COUNT = 16  # pictures of one sample


def generate(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], *, steps: int, guidance: float, seed: int
) -> NDArray[np.uint8]:
    """(N, H, W, 3) uint8; picture i starts from the noise of seed + i, and what a sampler adds is a function of seed, too."""
    return (_draw(pipeline, prompts, steps, guidance, seed, "np") * 255).round().astype(np.uint8)


def latents(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], *, steps: int, guidance: float, seed: int
) -> NDArray[np.float32]:
    """(N, C, h, w) as the U-Net knows them, of the same pictures."""
    return _draw(pipeline, prompts, steps, guidance, seed, "latent")


def _draw(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], steps: int, guidance: float, seed: int, output: str
) -> NDArray[np.float32]:
    unet = pipeline.unet.config
    side = unet.sample_size * pipeline.vae_scale_factor
    shape = (unet.in_channels, unet.sample_size, unet.sample_size)
    noise = np.stack([gaussian(seed + i)(shape) for i in range(len(prompts))])
    pipeline.set_progress_bar_config(disable=True)
    parts = []
    for start in tqdm(range(0, len(prompts), BATCH), desc="pictures", unit="batch", disable=None):
        part = slice(start, start + BATCH)
        found = pipeline(
            list(prompts[part]),
            height=side,
            width=side,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=torch.from_numpy(noise[part]),
            generator=torch.Generator().manual_seed(seed + start),
            output_type=output,
        ).images
        parts.append(found.cpu().numpy() if output == "latent" else found)
    return np.concatenate(parts)


def sheet(pixels: NDArray[np.uint8], columns: int = 16) -> Image.Image:
    """The pictures in a grid, white where there is none."""
    count, height, width, _ = pixels.shape
    grid = Image.new("RGB", (min(count, columns) * width, -(-count // columns) * height), "white")
    for i, picture in enumerate(pixels):
        grid.paste(Image.fromarray(picture), (i % columns * width, i // columns * height))
    return grid


def sampler(
    pipeline: StableDiffusionPipeline,
    captions: Sequence[Sequence[str]],
    folder: Path,
    steps: int = 10,
    guidance: float = 3.0,
) -> Sampler:
    """Draws `COUNT` of the captions with the network in training: into `folder`, a sheet named by the step."""
    chosen = np.linspace(0, len(captions) - 1, min(COUNT, len(captions)), dtype=int)
    prompts = [captions[i][0] for i in chosen]

    def sample(network: nn.Module, step: int) -> None:
        using = with_unet(pipeline, network.eval()).to(network.device)
        pixels = generate(using, prompts, steps=steps, guidance=guidance, seed=0)
        folder.mkdir(parents=True, exist_ok=True)
        sheet(pixels, columns=8).save(folder / f"{step:07}.png")
        network.train()

    return sample
