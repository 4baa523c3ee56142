"""Thousands of pictures of one model into a folder: resumable, in bounded memory, with their prompts and seeds.

A folder of drawings is `drawings.json` (format 1: the model, how it was drawn, and every picture's file, prompt and seed)
and PNGs. A picture that is there is not drawn again; each is written whole or not at all.
"""

# N pictures of a batch, C H W latent grid

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin
from tqdm import tqdm

from kdc_edge import schema
from kdc_edge.errors import BundleError, UsageError, choose
from kdc_edge.files import read_json, write_json
from kdc_edge.noise import SEEDS, gaussian
from kdc_edge.pipeline import Pipeline
from kdc_edge.prompts import PromptSet
from kdc_edge.samplers import SAMPLERS

FORMAT = 1
INDEX = "drawings.json"


@dataclass(frozen=True)
class How:
    """How a set was drawn; picture i has the noise of `seed` + i."""

    seed: int
    sampler: str
    steps: int
    guidance: float

    @classmethod
    def of(
        cls,
        pipe: Pipeline,
        seed: int,
        sampler: str | None = None,
        steps: int | None = None,
        guidance: float | None = None,
    ) -> "How":
        """The model's own way where None. Raises UsageError for what cannot be meant."""
        sampler = pipe.spec.sampler if sampler is None else choose(sampler, SAMPLERS, "sampler")
        steps = pipe.spec.steps if steps is None else steps
        guidance = pipe.spec.guidance if guidance is None else guidance
        if steps < 1 or not 0 <= guidance < float("inf"):
            raise UsageError(f"steps is {steps} and guidance {guidance:g}; they must be at least 1 and at least 0")
        return cls(seed, sampler, steps, guidance)


@dataclass(frozen=True)
class Drawn:
    """One picture of the folder."""

    file: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Drawings:
    """`drawings.json`."""

    format: int
    name: str
    model: str
    """Id of the bundle or checkpoint."""
    kind: str
    runtime: str
    how: How
    prompts: str
    prompts_hash: str
    pictures: tuple[Drawn, ...]


@dataclass(frozen=True)
class Part:
    """Which share of the work is this process's, and how to wait for the others."""

    index: int = 0
    count: int = 1
    wait: Callable[[], None] = field(default=lambda: None, repr=False)

    @property
    def first(self) -> bool:
        return self.index == 0

    def of(self, batches: Sequence[range]) -> Sequence[range]:
        return batches[self.index :: self.count]


ALONE = Part()


def plan(name: str, model: str, kind: str, runtime: str, how: How, prompts: PromptSet) -> Drawings:
    """What is to be drawn. Raises UsageError where seeds run out."""
    if not 0 <= how.seed <= SEEDS - len(prompts.prompts):
        raise UsageError(f"seed is {how.seed}, must be from 0 to {SEEDS - len(prompts.prompts)} for this many pictures")
    pictures = tuple(Drawn(f"{i:06}.png", text, how.seed + i) for i, text in enumerate(prompts.prompts))
    return Drawings(FORMAT, name, model, kind, runtime, how, prompts.name, prompts.hash, pictures)


def draw_all(pipe: Pipeline, wanted: Drawings, folder: Path, batch: int, part: Part = ALONE) -> None:
    """Draw what of `wanted` is not in the folder. Raises UsageError where the folder holds other drawings."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / INDEX).exists() and read(folder) != wanted:
        raise UsageError(f"{folder} holds other drawings; choose another folder, or remove it")
    if part.first:
        write_json(folder / INDEX, schema.dump(wanted))
    missing = [i for i, drawn in enumerate(wanted.pictures) if not (folder / drawn.file).exists()]
    part.wait()  # so that all share out the same work
    starts = [range(i, min(i + batch, len(missing))) for i in range(0, len(missing), batch)]
    with tqdm(total=len(missing), desc="pictures", unit="picture", disable=None if part.first else True) as bar:
        for span in part.of(starts):
            drawn = [wanted.pictures[missing[i]] for i in span]
            images = draw(pipe, [d.prompt for d in drawn], [d.seed for d in drawn], wanted.how)
            for picture, image in zip(drawn, images, strict=True):
                _save(folder / picture.file, image, picture)
            bar.update(len(drawn) * part.count)
    part.wait()


def draw(pipe: Pipeline, prompts: Sequence[str], seeds: Sequence[int], how: How) -> list[Image.Image]:
    """A batch in one pass; each picture as `Pipeline.generate` draws it with its seed, but for rounding."""
    sampler = SAMPLERS[how.sampler]
    steps = sampler.plan(pipe.schedule, how.steps)
    sources = [gaussian(seed) for seed in seeds]

    def noise(shape: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([source((1, *shape[1:])) for source in sources])

    x = noise((len(seeds), *pipe.spec.latent)) * steps.start
    denoise = pipe.denoiser(pipe.encode(prompts, "", how.guidance), how.guidance)
    for step in sampler.loop(denoise, x, steps, noise):
        x, sigma = step.x, step.sigma
    latents = x * (1 / np.hypot(1, sigma)).astype(np.float32)
    return [pipe.decode(latents[i : i + 1]) for i in range(len(seeds))]


def read(folder: Path) -> Drawings:
    """What `drawings.json` says. Raises BundleError."""
    data = read_json(folder / INDEX)
    schema.check_format(data, FORMAT, folder / INDEX, if_older="draw it again")
    found = schema.parse(Drawings, data, folder / INDEX)
    if any(Path(drawn.file).name != drawn.file for drawn in found.pictures):
        raise BundleError(f"{folder / INDEX}: names files outside of the folder; draw it again")
    return found


def _save(path: Path, image: Image.Image, drawn: Drawn) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("prompt", drawn.prompt)
    text.add_text("seed", str(drawn.seed))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    image.save(temporary, "PNG", pnginfo=text, compress_level=1)
    os.replace(temporary, path)
