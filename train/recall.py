"""Draws of what a student has learned: latents that were stored, and samples that it draws itself (arXiv 2311.14028).

Samples are drawn once for each task, of remembered captions; they and the frozen student's answers to them stand in for
pictures that were not kept.
"""

# N items, C latent channels, h w latent grid

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file

from kdc_edge.files import replacing
from kdc_edge.noise import SEEDS
from train.cache import text_rows
from train.captions import CaptionChoice
from train.diffusion import Cache, Latents
from train.drawing import latents
from train.policies import uniform
from train.recipes import PicturesConfig
from train.replay import Buffer, Scaled
from train.rows import Rows, Stored
from train.sequences import ReplayConfig

POOL = "pool.safetensors"
SEED = 1 << 20  # of the first sample's noise, away from those that are judged


class Recall:
    """A buffer's draws for one student."""

    def __init__(self, buffer: Buffer, pictures: PicturesConfig, pipeline: StableDiffusionPipeline) -> None:
        self.buffer, self.pipeline = buffer, pipeline
        self.text = text_rows(pictures, pipeline, ["", *buffer.about.captions])

    def stored(self) -> Cache | None:
        """Every item alike; None where there are none."""
        columns = self.buffer.contents.columns
        if not len(self.buffer):
            return None
        return self._cache(Scaled(columns["latents"], columns["scales"]), columns["caption"].tolist())

    def pooled(self, folder: Path, config: ReplayConfig, seed: int) -> Cache | None:
        """Samples of remembered captions, from `folder` or drawn now; None where nothing is to be drawn."""
        captions, count = self.buffer.about.captions, config.pool
        if not captions or not count:
            return None
        numbers = choose(captions, count, seed)
        path = folder / POOL
        if not path.exists():
            prompts = [captions[i] for i in numbers]
            first = (SEED + seed * count) % (SEEDS - count)
            start = time.process_time()
            drawn = latents(self.pipeline, prompts, steps=config.pool_steps, guidance=config.pool_guidance, seed=first)
            seconds = time.process_time() - start
            with replacing(path) as temporary:
                save_file({"latents": torch.from_numpy(drawn).half()}, temporary, {"cpu_seconds": str(seconds)})
        return self._cache(Stored.open([path], "latents"), numbers)

    def _cache(self, rows: Rows, captions: Sequence[int]) -> Cache:
        return Cache(
            latents=Latents(rows),
            text=self.text,
            choice=CaptionChoice([[str(number)] for number in captions]),
            numbers=torch.tensor(captions) + 1,
            weights=torch.ones(len(captions)),
            scheduler=self.pipeline.scheduler,
        )


def choose(captions: Sequence[str], count: int, seed: int) -> list[int]:
    """Numbers of `count` of them by chance, in their order; each about as often as any other where there are fewer."""
    names = [np.frombuffer(text.encode(), np.uint8) for text in captions]
    order = np.argsort(uniform(seed, names), kind="stable")
    return sorted(order[np.arange(count) % len(order)].tolist())


def pool_cpu_seconds(folder: Path) -> float:
    """What drawing the samples in a folder took; 0 where there are none."""
    if not (folder / POOL).exists():
        return 0.0
    with safe_open(folder / POOL, "pt") as file:
        return float(file.metadata()["cpu_seconds"])
