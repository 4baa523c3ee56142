"""Measure a text-to-emoji model: does it draw what it was asked for?

    python -m train.evaluate --model assets/emoji-64/teacher        # about two minutes on 2 CPU cores

By the judge's text-image score and by the nearest neighbour in its image embedding, how often is the right emoji the best
match among all without skin tone; on captions never trained on, how often is the skin tone right among the variants of the
same emoji; and the same for the real pictures through the autoencoder: the ceiling. Beside them the kernel distance (KID) on
the features of the judge's image tower, to the pictures that were not asked for: of those that were, each has its twin.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from kdc_edge import command
from train.quiet import quiet
from train.recipes import EvaluateConfig

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline
    from numpy.typing import NDArray

    from kdc_edge.torch_ref.judge import Judge
    from train.data import Pictures

NOT_MEASURED = "not measured"
CHOICE = 20_261  # seed of the fixed choice of captions


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """All figures of one model, with what they rest on."""
    quiet()
    from functools import partial

    from kdc_edge.checkpoint import Checkpoint
    from kdc_edge.files import write_json
    from kdc_edge.spec import SCHEDULERS, usual
    from kdc_edge.torch_ref.judge import Judge
    from train import autoencoder
    from train.data import load
    from train.drawing import generate, sheet
    from train.folders import load_pipeline

    checkpoint = Checkpoint.open(config.model)
    pipeline = load_pipeline(str(config.model))
    pictures = load(config.data, pipeline.unet.config.sample_size * pipeline.vae_scale_factor)
    judge = Judge.open(config.judge)
    name = type(pipeline.scheduler).__name__
    sampler, _ = SCHEDULERS.get(name, (name, {}))
    steps, guidance = usual(sampler)
    steps = steps if config.steps is None else config.steps
    guidance = guidance if config.guidance is None else config.guidance
    draw = partial(generate, pipeline, steps=steps, guidance=guidance, seed=config.seed)
    gallery = pictures.select([not row["tone"] for row in pictures.rows])
    asked = np.random.RandomState(CHOICE).choice(len(gallery), min(config.captions, len(gallery)), replace=False)
    unseen = pictures.split("generalisation")
    drawn = draw([gallery.captions[i][0] for i in asked])
    drawn_unseen = draw([group[0] for group in unseen.captions])
    through = [through_autoencoder(pipeline, part) for part in (gallery.select_index(asked), unseen)]
    figures = {
        "model": checkpoint.id,
        "settings": {"steps": steps, "guidance": guidance, "seed": config.seed, "sampler": sampler},
        "generated": score(judge, drawn, asked, gallery) | {"unseen_tone": tone(judge, drawn_unseen, unseen, pictures)},
        "ceiling": score(judge, through[0], asked, gallery)
        | {"unseen_tone": tone(judge, through[1], unseen, pictures)},
        "counts": {"captions": len(asked), "candidates": len(gallery), "unseen": len(unseen)},
        "vae_psnr": round(autoencoder.psnr(pipeline.vae, pictures.tensor()), 2),
    }
    if config.output is not None:
        write_json(config.output, figures)
    if config.sheet is not None:
        sheet(drawn[:64]).save(config.sheet)
    report(figures)
    return figures


def through_autoencoder(pipeline: "StableDiffusionPipeline", pictures: "Pictures") -> "NDArray[np.uint8]":
    """The real pictures, encoded and decoded."""
    from train.autoencoder import decode, encode

    decoded = decode(pipeline.vae, encode(pipeline.vae, pictures.tensor()))
    return ((decoded + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def score(
    judge: "Judge", drawn: "NDArray[np.uint8]", asked: "NDArray[np.int64]", gallery: "Pictures"
) -> dict[str, Any]:
    """Retrieval of the right emoji among the gallery, by text and by picture; kernel distance to the others."""
    from dataclasses import asdict

    from torch.nn.functional import normalize

    from kdc_edge.torch_ref.distances import kernel_distance
    from kdc_edge.torch_ref.judge import identical, retrieval

    classes = identical(gallery.pixels)
    features, real = judge.features(drawn), judge.features(gallery.pixels)
    others = np.delete(real.numpy(), asked, axis=0)
    pictures = normalize(features, dim=-1)
    by_text = pictures @ judge.texts([group[0] for group in gallery.captions]).T
    by_picture = pictures @ normalize(real, dim=-1).T
    return {
        "by_text": asdict(retrieval(by_text, asked, classes)),
        "by_picture": asdict(retrieval(by_picture, asked, classes)),
        "kid": asdict(kernel_distance(features.numpy(), others)) if min(len(drawn), len(others)) > 1 else NOT_MEASURED,
    }


def tone(judge: "Judge", drawn: "NDArray[np.uint8]", asked: "Pictures", pictures: "Pictures") -> float:
    """Share of `drawn` whose nearest picture among the tone variants of its base has the right tone."""
    embedded = judge.pictures(drawn)
    bases = np.array([row["base"] for row in pictures.rows])
    toned = np.array([bool(row["tone"]) for row in pictures.rows])
    right = []
    for vector, row in zip(embedded, asked.rows, strict=True):
        variants = pictures.select(toned & (bases == row["base"]))
        nearest = int((judge.pictures(variants.pixels) @ vector).argmax())
        right.append(variants.rows[nearest]["tone"] == row["tone"])
    return float(np.mean(right))


def shares(of: dict[str, Any], counts: dict[str, int]) -> dict[str, tuple[float, int]]:
    """Every share by name, and of how many pictures."""
    tops = {f"{by}_{top}": of[by][top] for by in ("by_text", "by_picture") for top in ("top1", "top5")}
    return {name: (value, counts["captions"]) for name, value in tops.items()} | {
        "unseen_tone": (of["unseen_tone"], counts["unseen"])
    }


def report(figures: dict[str, Any]) -> None:
    """A table with 95 % intervals."""
    import sys

    from kdc_edge.torch_ref.judge import wilson

    for name in ("generated", "ceiling"):
        for what, (share, count) in shares(figures[name], figures["counts"]).items():
            low, high = wilson(share, count)
            print(f"{name:>9} {what:<16} {share:6.1%}  [{low:.1%}, {high:.1%}] of {count}", file=sys.stderr)
        kid = figures[name]["kid"]
        seen = kid if kid == NOT_MEASURED else f"{kid['value']:6.4f}  [{kid['low']:.4f}, {kid['high']:.4f}]"
        print(f"{name:>9} {'kid':<16} {seen}", file=sys.stderr)


def main(argv: list[str] | None = None) -> None:
    command.run(evaluate, argv, prog="python -m train.evaluate")


if __name__ == "__main__":
    main()
